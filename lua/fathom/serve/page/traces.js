// traces.js - reads traces: the files the server offers or one of your own, as a tree over time.
import { el, bytes, copyButton, duration, number, plural } from "/dom.js";
import { getJson, getText } from "/api.js";

const ROWS = 400;          // rows that are drawn at once; more on request
const shown = new Set(["id", "parent", "kind", "begun_ms", "ms", "at", "name", "children", "depth", "start"]);

const begin = (s) => s.begun_ms ?? s.start_ms ?? s.time ?? 0;

/** JSON lines as spans; a line that is none is counted, not guessed. */
export function parse(text) {
  const spans = [];
  let bad = 0;
  for (const line of text.split("\n")) {
    if (!line.trim()) continue;
    try {
      const span = JSON.parse(line);
      if (span && typeof span === "object" && span.kind) spans.push(span); else bad++;
    } catch { bad++; }
  }
  return { spans, bad };
}

// Spans end in any order; here they become a tree in the order in which they began.
function treeOf(spans) {
  const byNumber = new Map(spans.map((s) => [s.id, Object.assign(s, { children: [], start: begin(s) })]));
  const roots = [];
  for (const s of spans) (byNumber.get(s.parent)?.children ?? roots).push(s);
  const order = (list, depth) => list.sort((a, b) => a.start - b.start).flatMap((s) => {
    s.depth = depth;
    return [s, ...order(s.children, depth + 1)];
  });
  return order(roots, 0);
}

const firstLine = (text) => String(text ?? "").trim().split("\n")[0];

/** What a span is about, in a few words. */
export function title(s) {
  const name = s.name ?? s.tool ?? s.goal ?? s.question ?? s.case;
  if (name !== undefined && typeof name !== "object") return firstLine(name);
  const last = s.messages?.at?.(-1);
  const said = last?.content ?? s.answer ?? s.text ?? s.err?.message ?? s.err;
  if (typeof said !== "string" || !said.trim()) return s.kind;
  return (last?.role === "tool" ? "after " : "") + firstLine(said);
}

/** What came of a span, in a few words; the rows of a hundred votes differ in nothing else. */
export function outcome(s) {
  if (s.err) return firstLine(s.err.message ?? s.err);
  if (s.winner !== undefined || typeof s.score === "number") return String(s.winner ?? number(s.score));
  if (s.tool_calls?.length) return s.tool_calls.map((c) => c.name).join(", ");
  const said = s.answer ?? s.result ?? s.value ?? (s.kind === "agent" ? s.text : undefined);
  if (said === undefined || (said !== null && typeof said === "object")) return "";
  return String(said).trim().split("\n").pop().replace(/^<answer>(.*)<\/answer>$|^\\boxed\{(.*)\}$/, "$1$2");
}

export class Traces {
  constructor({ root }) {
    this.list = el("ul", { class: "files" });
    this.note = el("div", { class: "empty" });
    this.file = el("input", { type: "file", id: "trace-file", accept: ".jsonl,.json,.txt", class: "unseen" });
    this.search = el("input", { type: "search", id: "trace-search", placeholder: "Find in spans", "aria-label": "Find in spans" });
    this.kinds = el("div", { class: "chips", role: "group", "aria-label": "Kinds of spans" });
    this.rows = el("div", { class: "rows", role: "tree", "aria-label": "Spans" });
    this.more = el("button", { class: "quiet", type: "button", hidden: true, on: { click: () => { this.limit += ROWS; this.drawRows(); } } });
    this.detail = el("aside", { class: "detail", "aria-label": "Span", tabindex: "-1" });
    this.summary = el("p", { class: "hint" });
    this.viewer = el("div", { class: "viewer", hidden: true },
      el("div", { class: "row tools" }, this.search, this.kinds), this.summary,
      el("div", { class: "panes" }, el("div", { class: "tree" }, this.rows, this.more), this.detail));
    this.heading = el("h2", { text: "Traces" });
    root.replaceChildren(el("div", { class: "scroll" }, el("div", { class: "wide" },
      el("header", { class: "row between" }, this.heading,
        el("span", { class: "row" }, el("a", { class: "link", href: "#traces", id: "all-traces", hidden: true, text: "All traces" }),
          el("label", { class: "quiet", for: "trace-file", text: "Open a file" }), this.file)),
      this.list, this.note, this.viewer)));
    this.back = root.querySelector("#all-traces");
    this.listen(root);
  }

  listen(root) {
    this.search.addEventListener("input", () => { this.limit = ROWS; this.drawRows(); });
    this.rows.addEventListener("keydown", (event) => this.keys(event));
    this.file.addEventListener("change", () => { if (this.file.files[0]) this.read(this.file.files[0]); this.file.value = ""; });
    root.addEventListener("dragover", (event) => event.preventDefault());
    root.addEventListener("drop", (event) => {
      event.preventDefault();
      if (event.dataTransfer.files[0]) this.read(event.dataTransfer.files[0]);
    });
  }

  async read(file) { this.show(file.name, await file.text()); }

  /** Opens a trace of the server by name, or the list of them. */
  async open(name) {
    const turn = this.turn = (this.turn ?? 0) + 1;
    const current = () => turn === this.turn;
    try {
      if (name) {
        this.wait(`Reading ${name}`);
        const text = await getText(`/traces/${encodeURIComponent(name)}`);
        if (current()) this.show(name, text);
      } else {
        const { traces } = await getJson("/traces");
        if (current()) this.showList(traces);
      }
    } catch (error) {
      if (!current()) return;
      if (error.code === "no_traces" && !name) this.showList([]); else this.fail(error.message, name);
    }
  }

  wait(text) { this.list.replaceChildren(); this.viewer.hidden = true; this.say(el("p", { text })); }
  say(...nodes) { this.note.hidden = !nodes.length; this.note.replaceChildren(...nodes); }

  fail(message, name) {
    this.viewer.hidden = true;
    this.list.replaceChildren();
    this.back.hidden = !name;
    this.say(el("div", { class: "trouble", role: "alert" }, el("p", { text: message }),
      el("button", { class: "quiet", type: "button", text: "Try again", on: { click: () => this.open(name) } })));
  }

  showList(traces) {
    this.viewer.hidden = true;
    this.back.hidden = true;
    this.heading.textContent = "Traces";
    this.list.replaceChildren(...traces.map((t) => el("li", {}, el("a", { href: `#traces/${encodeURIComponent(t.name)}` },
      el("strong", { text: t.name }),
      el("span", { text: [t.bytes !== undefined && bytes(t.bytes), t.modified && when(t.modified)].filter(Boolean).join(" · ") })))));
    if (traces.length) this.say();
    else this.say(el("p", { text: "The server offers no traces. A script writes one with fathom.trace; open its file here, or drop it on this page." }));
  }

  show(name, text) {
    const { spans, bad } = parse(text);
    this.list.replaceChildren();
    this.back.hidden = false;
    this.heading.textContent = name;
    if (!spans.length) { this.viewer.hidden = true; this.say(el("p", { text: "There are no spans in this file." })); return; }
    this.say();
    this.all = treeOf(spans);
    this.closed = new Set();
    this.limit = ROWS;
    this.off = new Set();
    this.search.value = "";
    this.from = spans.reduce((least, s) => Math.min(least, s.start), Infinity);
    this.span = spans.reduce((most, s) => Math.max(most, s.start + (s.ms ?? 0) - this.from), 1e-6);
    this.summary.textContent = [plural(spans.length, "span"), duration(this.span), bad && `${plural(bad, "line")} not read`].filter(Boolean).join(" · ");
    this.viewer.hidden = false;
    this.drawKinds(spans);
    this.drawRows();
    this.select(this.all[0], false);
  }

  drawKinds(spans) {
    const counts = new Map();
    for (const s of spans) counts.set(s.kind, (counts.get(s.kind) ?? 0) + 1);
    this.kinds.replaceChildren(...[...counts].sort().map(([kind, n]) => {
      const chip = el("button", { class: "chip", type: "button", "aria-pressed": "true", "data-kind": kind, text: `${kind} ${n}` });
      chip.addEventListener("click", () => {
        if (!this.off.delete(kind)) this.off.add(kind);
        chip.setAttribute("aria-pressed", String(!this.off.has(kind)));
        this.limit = ROWS;
        this.drawRows();
      });
      return chip;
    }));
  }

  // ---- the tree ----

  matching() {
    const words = this.search.value.trim().toLowerCase();
    const filtered = words || this.off.size;
    let hiddenBelow = Infinity;
    return this.all.filter((s) => {
      if (s.depth > hiddenBelow) return false;
      hiddenBelow = this.closed.has(s) && !filtered ? s.depth : Infinity;
      return !this.off.has(s.kind) && (!words || textOf(s).includes(words));
    });
  }

  drawRows() {
    const list = this.matching();
    this.visible = list.slice(0, this.limit);
    this.rows.replaceChildren(...this.visible.map((s) => this.row(s)));
    this.more.hidden = list.length <= this.limit;
    this.more.textContent = `Show ${Math.min(ROWS, list.length - this.limit)} more of ${list.length}`;
    if (!list.length) this.rows.append(el("p", { class: "empty", text: "No span fits." }));
    this.mark();
  }

  row(s) {
    const bar = el("i", { "data-kind": s.kind });
    bar.style.left = `${100 * (s.start - this.from) / this.span}%`;
    bar.style.width = `${100 * (s.ms ?? 0) / this.span}%`;
    const name = el("span", { class: "name" },
      el("span", { class: "twist", text: s.children.length ? (this.closed.has(s) ? "▸" : "▾") : "" }),
      el("span", { class: "mark", "data-kind": s.kind, text: s.kind }), el("span", { class: "title", text: title(s) }),
      el("span", { class: "outcome", text: outcome(s) }));
    name.style.paddingInlineStart = `${Math.min(s.depth, 8) * 0.9}rem`;
    const row = el("div", { class: "span" + (s.err ? " failed" : ""), role: "treeitem", tabindex: "-1", "aria-level": s.depth + 1,
      "aria-expanded": s.children.length ? String(!this.closed.has(s)) : undefined },
      name, el("span", { class: "lane", "aria-hidden": "true" }, bar), el("span", { class: "ms", text: duration(s.ms ?? 0) }));
    row.addEventListener("click", (event) => {
      if (event.target.classList.contains("twist") && s.children.length) this.fold(s, !this.closed.has(s));
      this.select(s);
    });
    return row;
  }

  fold(s, close) {
    if (close) this.closed.add(s); else this.closed.delete(s);
    this.drawRows();
  }

  mark(focus = false) {
    [...this.rows.children].forEach((row, i) => {
      const on = this.visible[i] === this.selected;
      row.setAttribute("aria-selected", String(on));
      row.tabIndex = on || (i === 0 && !this.visible.includes(this.selected)) ? 0 : -1;
      if (on && focus) row.focus();
    });
  }

  select(s, focus = true) {
    this.selected = s;
    this.mark(focus);
    this.drawDetail(s);
  }

  keys(event) {
    const at = this.visible.indexOf(this.selected);
    const s = this.selected;
    const steps = { ArrowDown: 1, ArrowUp: -1, Home: -Infinity, End: Infinity };
    if (event.key in steps) {
      event.preventDefault();
      this.select(this.visible[Math.max(0, Math.min(this.visible.length - 1, at + steps[event.key]))]);
    } else if (event.key === "ArrowLeft" && s) {
      event.preventDefault();
      if (s.children.length && !this.closed.has(s)) { this.fold(s, true); this.mark(true); }
      else { const up = this.all.find((p) => p.id === s.parent); if (up) this.select(up); }
    } else if (event.key === "ArrowRight" && s?.children.length) {
      event.preventDefault();
      if (this.closed.has(s)) { this.fold(s, false); this.mark(true); } else this.select(s.children[0]);
    }
  }

  // ---- one span ----

  drawDetail(s) {
    const raw = () => JSON.stringify(s, (k, v) => (["children", "depth", "start"].includes(k) ? undefined : v), 2);
    this.detail.replaceChildren(
      el("header", {}, el("span", { class: "mark", "data-kind": s.kind, text: s.kind }), el("h3", { text: title(s) })),
      el("p", { class: "hint", text: [`span ${s.id}`, s.parent !== undefined && `in ${s.parent}`, `begins at ${duration(s.start - this.from)}`,
        `takes ${duration(s.ms ?? 0)}`, s.at && when(s.at)].filter(Boolean).join(" · ") }),
      ...Object.keys(s).filter((k) => !shown.has(k) && s[k] !== "").sort(byRank).map((k) => field(k, s[k])),
      el("footer", { class: "facts" }, copyButton(raw, "Copy as JSON")));
  }
}

// ---- how fields are shown -------------------------------------------------------------------------------------

const rank = ["err", "question", "goal", "case", "messages", "think", "answer", "text", "tool_calls", "asked", "args", "result", "score", "scores",
  "winner", "votes", "agreement", "flip_rate", "finish", "usage", "options"];
const byRank = (a, b) => ((rank.indexOf(a) + 1 || 99) - (rank.indexOf(b) + 1 || 99)) || a.localeCompare(b);

const textOf = (s) => (s.find ??= JSON.stringify(s, (k, v) => (k === "children" || k === "find" ? undefined : v)).toLowerCase());
shown.add("find");

function when(seconds) {
  const date = typeof seconds === "number" ? new Date(seconds * 1000) : new Date(seconds);
  return Number.isNaN(date.getTime()) ? "" : date.toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
}

const isPlain = (v) => v === null || typeof v !== "object";
const short = (v) => (typeof v === "number" ? number(v) : String(v));

function pairs(value) {
  return el("dl", { class: "args" }, ...Object.entries(value).flatMap(([k, v]) => [
    el("dt", { text: k }), el("dd", { text: isPlain(v) ? short(v) : JSON.stringify(v) })]));
}

function value(v) {
  if (typeof v === "string" && (v.length > 40 || v.includes("\n"))) return el("pre", { class: "words", text: v });
  if (isPlain(v)) return el("p", { text: short(v) });
  if (Array.isArray(v) && v.every((m) => m && m.role !== undefined)) {
    return el("div", { class: "messages" }, ...v.map((m) => el("div", {}, el("span", { class: "mark", text: m.role }),
      m.content && el("pre", { class: "words", text: typeof m.content === "string" ? m.content : JSON.stringify(m.content) }),
      ...Object.keys(m).filter((k) => k !== "role" && k !== "content").map((k) => field(k, m[k])))));
  }
  if (Array.isArray(v) && v.every(isPlain)) return el("pre", { class: "words ids", text: v.join(" ") });
  if (Array.isArray(v)) return el("ol", { class: "values" }, ...v.map((x) => el("li", {}, isPlain(x) ? short(x) : Array.isArray(x) ? value(x) : pairs(x))));
  return pairs(v);
}

const folded = new Set(["asked", "options", "text", "think"]);

function field(name, v) {
  const long = Array.isArray(v) && v.every(isPlain) && v.length > 40;
  const label = el("span", { class: "label", text: name.replaceAll("_", " ") });
  if (long || folded.has(name)) {
    return el("details", { class: "field " + name }, el("summary", {}, label, el("span", { class: "live", text: long ? plural(v.length, "value") : "" })), value(v));
  }
  return el("div", { class: "field " + name }, label, value(v));
}
