// dom.js - making elements, a small safe markdown, and numbers for people.
// Text of a model or a person only ever becomes a text node.

/** An element. props: attributes, `class`, `text`, `on` ({ click: fn }), booleans for flags. */
export function el(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "text") node.textContent = value;
    else if (name === "on") for (const [event, f] of Object.entries(value)) node.addEventListener(event, f);
    else if (name === "value") node.value = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((c) => c !== undefined && c !== null && c !== false));
  return node;
}

export const byId = (id) => document.getElementById(id);

/** Says something to people who can't see the page. */
export function announce(text) { byId("status").textContent = text; }

/** A textarea that is as high as its text. */
export function grow(area) {
  area.style.height = "auto";
  area.style.height = Math.min(area.scrollHeight + 2, window.innerHeight * 0.4) + "px";
}

/** A button that copies what `text()` gives and says so for a moment. */
export function copyButton(text, label = "Copy") {
  const button = el("button", { class: "link", type: "button", text: label });
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text());
      button.textContent = "Copied";
    } catch {
      button.textContent = "Not allowed here";
    }
    setTimeout(() => { button.textContent = label; }, 1400);
  });
  return button;
}

// ---- numbers ---------------------------------------------------------------------------------------------

export const count = (n) => Number(n).toLocaleString("en").replace(/,/g, "\u202f");
export const plural = (n, word) => `${count(n)} ${word}${n === 1 ? "" : "s"}`;
export const percent = (x) => `${Math.round(100 * x)} %`;
export const number = (x) => (Number.isInteger(x) ? String(x) : x.toFixed(Math.abs(x) < 10 ? 2 : 1));

export function duration(ms) {
  if (ms > 0 && ms < 0.1) return `${Math.max(1, Math.round(1000 * ms))} µs`;
  if (ms > 0 && ms < 10) return `${ms.toFixed(1)} ms`;
  if (ms < 1000) return `${Math.round(ms)} ms`;
  if (ms < 60000) return `${(ms / 1000).toFixed(1)} s`;
  return `${Math.floor(ms / 60000)} min ${Math.round(ms / 1000) % 60} s`;
}

export function bytes(n) {
  if (n < 1000) return `${n} B`;
  return n < 1e6 ? `${(n / 1000).toFixed(1)} kB` : `${(n / 1e6).toFixed(1)} MB`;
}

// ---- markdown: paragraphs, fences, lists, headings, quotes; inside a line code, bold, \boxed{} and <answer> --

const starts = [
  { kind: "heading", is: /^(#{1,4})\s+(.*)$/ },
  { kind: "item", is: /^\s*[-*]\s+(.*)$/ },
  { kind: "number", is: /^\s*(\d{1,3})[.)]\s+(.*)$/ },
  { kind: "quote", is: /^>\s?(.*)$/ },
];

const kindOf = (line) => starts.find((s) => s.is.test(line))?.kind ?? "text";

/** Text as a list of blocks { kind, lines, open? }. An open fence is one whose end has not come yet. */
export function blocks(text) {
  const out = [];
  let block = null;
  for (const line of text.split("\n")) {
    if (block?.kind === "fence") {
      if (/^\s*```\s*$/.test(line)) { block.open = false; block = null; } else block.lines.push(line);
      continue;
    }
    const fence = /^\s*```(\S*)\s*$/.exec(line);
    if (fence) {
      out.push(block = { kind: "fence", language: fence[1], lines: [], open: true });
    } else if (line.trim() === "") {
      block = null;
    } else {
      const kind = kindOf(line);
      if (!block || block.kind !== kind || kind === "heading") out.push(block = { kind, lines: [] });
      block.lines.push(line);
    }
  }
  return out;
}

function inline(text) {
  const nodes = [];
  let from = 0;
  for (const m of text.matchAll(/`([^`\n]+)`|\*\*(\S(?:[^*\n]*\S)?)\*\*|\\boxed\{([^{}\n]*)\}|<answer>([^<>\n]*)<\/answer>/g)) {
    nodes.push(text.slice(from, m.index));
    if (m[1] !== undefined) nodes.push(el("code", { text: m[1] }));
    else if (m[2] !== undefined) nodes.push(el("strong", { text: m[2] }));
    else nodes.push(el("span", { class: "boxed", text: m[3] ?? m[4].trim(), title: m[0] }));
    from = m.index + m[0].length;
  }
  nodes.push(text.slice(from));
  return nodes.filter((n) => n !== "");
}

const last = (line, pattern) => { const m = pattern.exec(line); return m ? m[m.length - 1] : line; };

function render(block) {
  const { kind, lines } = block;
  if (kind === "fence") {
    const code = lines.join("\n");
    return el("figure", { class: "code" },
      el("figcaption", {}, el("span", { text: block.language || "code" }), copyButton(() => code)),
      el("pre", { tabindex: "0" }, el("code", { text: code })));
  }
  if (kind === "heading") return el("h3", {}, ...inline(last(lines[0], starts[0].is)));
  if (kind === "item") return el("ul", {}, ...lines.map((l) => el("li", {}, ...inline(last(l, starts[1].is)))));
  if (kind === "number") {
    return el("ol", { start: starts[2].is.exec(lines[0])[1] },
      ...lines.map((l) => el("li", {}, ...inline(last(l, starts[2].is)))));
  }
  if (kind === "quote") return el("blockquote", {}, ...inline(lines.map((l) => last(l, starts[3].is)).join("\n")));
  return el("p", {}, ...inline(lines.join("\n")));
}

/** Keeps an element in step with growing markdown; blocks that did not change are left alone. */
export class Markdown {
  constructor(node) { this.node = node; this.keys = []; }

  set(text) {
    const list = blocks(text);
    list.forEach((block, i) => {
      const key = JSON.stringify(block);
      if (this.keys[i] === key) return;
      const node = render(block);
      if (this.node.children[i]) this.node.children[i].replaceWith(node); else this.node.append(node);
      this.keys[i] = key;
    });
    while (this.node.children.length > list.length) this.node.lastChild.remove();
    this.keys.length = list.length;
  }
}
