// reply.js - one reply on the screen: thoughts, answer, tool calls, errors, and what it took.
import { el, Markdown, count, duration, plural } from "/dom.js";

const TAIL = 90;            // characters of a long thought that are shown while it grows
const lastLine = (text) => text.trimEnd().split("\n").pop() ?? "";

function prettyArguments(text) {
  try { return Object.entries(JSON.parse(text)); } catch { return null; }
}

// Arguments as names and values; what is no JSON object (yet) is shown as it came.
function argumentsOf(text) {
  const pairs = prettyArguments(text);
  if (!pairs) return el("pre", { class: "raw", text });
  return el("dl", { class: "args" }, ...pairs.flatMap(([name, value]) => [
    el("dt", { text: name }), el("dd", { text: typeof value === "string" ? value : JSON.stringify(value) })]));
}

const MEASURABLE_MS = 20;   // what arrives faster came in one piece: a rate would be made up

/** The words under a reply: tokens, speed, what was cached, how it ended. */
export function facts(reply) {
  const out = [];
  const u = reply.usage;
  if (u) {
    const writing = u.decode_ms ?? (reply.took - (reply.waited ?? 0));
    out.push(plural(u.completion_tokens, "token"));
    if (u.completion_tokens > 1 && writing > MEASURABLE_MS) out.push(`${count(Math.round(u.completion_tokens / writing * 1000))} a second`);
    const cached = u.prompt_tokens_details?.cached_tokens ?? 0;
    out.push(`prompt ${count(u.prompt_tokens)}` + (cached ? `, ${count(cached)} cached` : ""));
  }
  if (reply.took !== undefined) out.push(duration(reply.took));
  if (reply.finish === "length") out.push("cut at its longest");
  if (reply.stopped) out.push("stopped");
  return out;
}

/** A reply and its drawing: draw() at once, changed() for every token. */
export class ReplyView {
  /** options: { label, onRetry(), onSeed(seed), results(view) } */
  constructor(reply, options = {}) {
    this.reply = reply;
    this.options = options;
    this.live = el("span", { class: "live" });
    this.thinkLabel = el("span", { class: "label" });
    this.thinkText = document.createTextNode("");
    this.think = el("details", { class: "think", hidden: true },
      el("summary", {}, this.thinkLabel, this.live), el("div", { class: "thoughts" }));
    this.think.lastChild.append(this.thinkText);
    this.answer = el("div", { class: "answer" });
    this.markdown = new Markdown(this.answer);
    this.calls = el("div", { class: "calls" });
    this.error = el("div", { class: "trouble", role: "alert", hidden: true });
    this.foot = el("footer", { class: "facts" });
    this.wait = el("p", { class: "wait", "aria-hidden": "true" }, el("i"), el("i"), el("i"));
    this.node = el("article", { class: "turn reply", "aria-label": options.label ?? "Reply" },
      this.think, this.wait, this.answer, this.calls, this.error, this.foot);
  }

  /** Asks for one drawing in the next frame, however often it is called before. */
  changed() {
    this.frame ??= requestAnimationFrame(() => { this.frame = undefined; this.draw(); });
  }

  draw() {
    const { reply } = this;
    this.node.setAttribute("aria-busy", reply.busy ? "true" : "false");
    this.node.classList.toggle("busy", Boolean(reply.busy));
    this.wait.hidden = !reply.busy || Boolean(reply.think || reply.content || reply.calls.length);
    this.drawThoughts();
    this.markdown.set(reply.content.trim());
    this.answer.classList.toggle("writing", Boolean(reply.busy && reply.content));
    this.drawCalls();
    this.drawError();
    this.drawFacts();
    this.options.drawn?.();
  }

  drawThoughts() {
    const { reply } = this;
    const text = reply.think.trim();
    this.think.hidden = !text;
    const thinking = reply.busy && !reply.content && !reply.calls.length;
    this.think.classList.toggle("on", Boolean(thinking));
    this.thinkLabel.textContent = thinking ? "Thinking" : "Thoughts";
    const line = lastLine(text);
    this.live.textContent = thinking && line.length > TAIL ? "…" + line.slice(-TAIL) : line;
    if (this.thinkText.data !== text) {
      // appending keeps a selection that somebody has made
      if (text.startsWith(this.thinkText.data)) this.thinkText.appendData(text.slice(this.thinkText.length));
      else this.thinkText.data = text;
    }
  }

  drawCalls() {
    const { reply } = this;
    const key = JSON.stringify([reply.calls, reply.busy, reply.results, this.last]);
    if (key === this.callsKey) return;
    this.callsKey = key;
    this.calls.replaceChildren(...reply.calls.map((call, i) => el("section", { class: "call", "aria-label": `Call of ${call.name}` },
      el("h4", {}, el("span", { class: "mark", text: "tool" }), el("code", { text: call.name })),
      argumentsOf(call.arguments),
      reply.results?.[i] !== undefined && el("div", { class: "result" },
        el("span", { class: "mark", text: "result" }), el("pre", { text: reply.results[i] })))));
    if (reply.calls.length && !reply.busy && !reply.results) {
      const form = this.options.results?.(reply);
      if (form) this.calls.append(form);
    }
  }

  drawError() {
    const { error } = this.reply;
    this.error.hidden = !error;
    if (this.errorShown === error) return;
    this.errorShown = error;
    this.error.replaceChildren();
    if (!error) return;
    this.error.append(el("p", { text: error.message }));
    if (error.hint) this.error.append(el("p", { class: "hint", text: error.hint }));
    if (this.options.onRetry) {
      this.error.append(el("button", { class: "quiet", type: "button", text: "Try again", on: { click: this.options.onRetry } }));
    }
  }

  drawFacts() {
    const { reply } = this;
    this.foot.hidden = Boolean(reply.busy);
    if (reply.busy) return;
    this.foot.replaceChildren(el("span", { class: "numbers" }, ...facts(reply).map((text) => el("span", { text }))));
    if (reply.seed !== undefined) {
      const seed = el("button", { class: "link seed", type: "button", text: `seed ${reply.seed}`, title: "Use this seed again",
        on: { click: () => this.options.onSeed?.(reply.seed) } });
      this.foot.append(seed);
    }
    this.foot.append(...(this.options.actions?.(reply) ?? []));
  }
}
