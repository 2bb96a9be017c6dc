// chat.js - one conversation: writing, streaming, stopping, asking again, answering tool calls by hand.
import { el, byId, announce, copyButton, grow } from "/dom.js";
import { complete, emptyReply } from "/api.js";
import { ReplyView } from "/reply.js";
import { exampleOf } from "/settings.js";

const STORE = "fathom.chat";

const suggestions = [
  { title: "A sum", text: "What is 17 + 25?" },
  { title: "Countdown", text: "Use the numbers 36, 6, 9 once each with + - * / to make 39. Give the expression in <answer> tags." },
  { title: "A tool, answered by you", text: "What is 4821 * 37?", tool: "calculator" },
  { title: "A judge", text: "Judge this answer.\n\nQuestion: What is 58 + 67?\n\nAnswer:\n58 + 67 = 135\n\\boxed{135}\n\nGive a score from 1 to 10. End with \"Score: N\"." },
  { title: "A fact", text: "What is the capital of France?" },
  { title: "Several answers, compared", text: "Use the numbers 26, 9, 85, 84 once each with + - * / to make 34. Give the expression in <answer> tags.", compare: true },
];

/** Turns as the server wants them: thoughts stay with a reply while its tools are being answered. */
export function messagesOf(turns, system) {
  const out = system ? [{ role: "system", content: system }] : [];
  const asked = turns.findLastIndex((t) => t.role === "user");
  turns.forEach((turn, i) => {
    if (turn.role === "user") { out.push({ role: "user", content: turn.content }); return; }
    if (turn.error && !turn.content && !turn.calls.length) return;
    const message = { role: "assistant", content: turn.content };
    if (turn.think && i > asked) message.reasoning_content = turn.think;
    const left = turn.calls.length > 0 && !turn.results && i < turns.length - 1;   // nobody answered its calls: they are not told
    if (left && !turn.content) return;
    if (turn.calls.length && !left) {
      message.tool_calls = turn.calls.map((c) => ({ id: c.id, type: "function", function: { name: c.name, arguments: c.arguments } }));
    }
    out.push(message);
    turn.results?.forEach((text, k) => out.push({ role: "tool", tool_call_id: turn.calls[k].id, content: text }));
  });
  return out;
}

export class Chat {
  constructor({ settings, model, compare }) {
    Object.assign(this, { settings, model, compare, turns: [], views: [] });
    this.log = byId("log");
    this.scroll = byId("chat-scroll");
    this.prompt = byId("prompt");
    this.sendButton = byId("send");
    this.sticky = true;
    this.listen();
    this.restore();
    this.draw();
  }

  listen() {
    byId("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.abort) this.stop(); else this.send(this.prompt.value);
    });
    this.prompt.addEventListener("input", () => grow(this.prompt));
    this.prompt.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        if (!this.abort) this.send(this.prompt.value);
      }
      if (event.key === "ArrowUp" && !this.prompt.value) {
        const edit = this.log.querySelector(".user .edit-last");
        if (edit) { event.preventDefault(); edit.click(); }
      }
    });
    byId("new-chat").addEventListener("click", () => this.clear());
    byId("latest").addEventListener("click", () => { this.sticky = true; this.follow(); this.prompt.focus(); });
    this.scroll.addEventListener("scroll", () => {
      const { scrollTop, scrollHeight, clientHeight } = this.scroll;
      this.sticky = scrollHeight - scrollTop - clientHeight < 40;
      byId("latest").hidden = this.sticky;
    }, { passive: true });
  }

  /** Keeps the end in sight, unless somebody has scrolled away from it. */
  follow() { if (this.sticky && this.turns.length) this.scroll.scrollTop = this.scroll.scrollHeight; }

  // ---- what is kept in this tab ----

  keep() {
    const turns = this.turns.map(({ busy, error, ...turn }) => turn);
    try { sessionStorage.setItem(STORE, JSON.stringify(turns)); } catch { /* full: the page still works */ }
  }

  restore() {
    try { this.turns = JSON.parse(sessionStorage.getItem(STORE)) ?? []; } catch { this.turns = []; }
  }

  clear() {
    this.stop();
    this.turns = [];
    this.keep();
    this.draw();
    this.prompt.focus();
  }

  /** Goes on from a conversation that was made elsewhere (a sample of the comparison). */
  take(turns) {
    this.stop();
    this.turns = turns;
    this.keep();
    this.draw();
  }

  // ---- doing ----

  send(text) {
    text = text.trim();
    if (!text || this.abort || !this.settings.check()) return;
    this.turns.push({ role: "user", content: text });
    this.prompt.value = "";
    grow(this.prompt);
    this.sticky = true;
    this.draw();
    this.run();
  }

  /** Streams the next reply to what stands there. */
  async run() {
    const { system, options, tools } = this.settings.read();
    const reply = Object.assign(emptyReply(), { busy: true, seed: options.seed });
    const messages = messagesOf(this.turns, system);
    this.turns.push(reply);
    this.draw();
    const view = this.views.at(-1);
    const abort = this.abort = new AbortController();
    this.showBusy();
    try {
      await complete({ model: this.model(), messages, tools, ...options }, reply, () => view.changed(), abort.signal);
      announce(reply.calls.length ? "The model asks for a tool." : "The reply is complete.");
    } catch (error) {
      if (error.name === "AbortError") reply.stopped = true;
      else reply.error = { message: error.message, hint: error.hint };
    }
    reply.busy = false;
    if (this.abort === abort) this.abort = null;
    this.showBusy();
    this.keep();
    if (this.turns.includes(reply)) { this.draw(); this.focusResult(); }
  }

  stop() { this.abort?.abort(); this.abort = null; }

  showBusy() {
    this.sendButton.textContent = this.abort ? "Stop" : "Send";
    this.sendButton.classList.toggle("stop", Boolean(this.abort));
  }

  /** Drops what follows the last question and asks again. */
  again() {
    if (this.abort) return;
    this.turns.length = this.turns.findLastIndex((t) => t.role === "user") + 1;
    this.run();
  }

  /** After a failure only the failed reply is asked for again, so answered tool calls are not lost. */
  retry() {
    if (this.abort) return;
    this.turns.pop();
    this.run();
  }

  answerTools(reply, results) {
    if (this.abort) return;
    reply.results = results;
    this.run();
  }

  // ---- drawing ----

  draw() {
    byId("new-chat").hidden = !this.turns.length;
    if (!this.turns.length) { this.views = []; this.log.replaceChildren(this.welcome()); this.scroll.scrollTop = 0; return; }
    const lastUser = this.turns.findLastIndex((t) => t.role === "user");
    this.views = this.turns.map((turn, i) => {
      const old = this.views.find((v) => v.turn === turn && turn.role !== "user");
      if (old) { old.last = i === this.turns.length - 1; old.changed(); return old; }
      return turn.role === "user" ? this.userView(turn, i === lastUser) : this.replyView(turn, i === this.turns.length - 1);
    });
    this.log.replaceChildren(...this.views.map((v) => v.node));
    this.follow();
  }

  userView(turn, last) {
    const node = el("article", { class: "turn user", "aria-label": "You" }, el("div", { class: "said", text: turn.content }));
    const actions = el("footer", { class: "facts" }, copyButton(() => turn.content));
    if (last) actions.prepend(el("button", { class: "link edit-last", type: "button", text: "Edit", on: { click: () => this.edit(turn, node) } }));
    node.append(actions);
    return { turn, node };
  }

  replyView(turn, last) {
    const view = new ReplyView(turn, {
      onRetry: () => this.retry(),
      onSeed: (seed) => { this.settings.set("seed", seed); announce(`Seed ${seed} will be used again.`); },
      results: (reply) => view.last && this.resultForm(reply),
      actions: (reply) => [
        reply.content && copyButton(() => reply.content),
        view.last && !reply.error && el("button", { class: "link", type: "button", text: "Ask again", on: { click: () => this.again() } }),
      ].filter(Boolean),
      drawn: () => this.follow(),
    });
    view.turn = turn;
    view.last = last;
    view.draw();
    return view;
  }

  edit(turn, node) {
    if (this.abort) return;
    const area = el("textarea", { class: "edit", "aria-label": "Edit the message", value: turn.content });
    const save = () => {
      if (!area.value.trim()) return;
      this.turns.length = this.turns.indexOf(turn);
      this.send(area.value);
      this.prompt.focus();
    };
    area.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); save(); }
      if (event.key === "Escape") { event.stopPropagation(); this.draw(); }
    });
    area.addEventListener("input", () => grow(area));
    node.replaceChildren(area, el("p", { class: "row end" },
      el("button", { class: "quiet", type: "button", text: "Cancel", on: { click: () => this.draw() } }),
      el("button", { class: "solid", type: "button", text: "Send", on: { click: save } })));
    grow(area);
    area.focus();
  }

  resultForm(reply) {
    const inputs = reply.calls.map((call, i) => el("input", { type: "text", id: `result-${i}`, autocomplete: "off",
      placeholder: exampleOf(call.name) ? `such as ${exampleOf(call.name)}` : "what the tool gives back" }));
    return el("form", { class: "results", on: { submit: (event) => {
      event.preventDefault();
      this.answerTools(reply, inputs.map((i) => i.value));
    } } },
      ...inputs.map((input, i) => el("div", {}, el("label", { for: input.id, text: `${reply.calls[i].name} gives` }), input)),
      el("button", { class: "solid", type: "submit", text: "Go on" }));
  }

  focusResult() { if (this.turns.at(-1)?.calls?.length) this.log.querySelector(".results input")?.focus(); }

  welcome() {
    return el("div", { class: "welcome" },
      el("h1", { text: "What shall it try?" }),
      el("p", { class: "lead", text: "The model runs in the process that gave you this page. Nothing is sent anywhere else." }),
      el("ul", { class: "suggestions" }, ...suggestions.map((s) => el("li", {},
        el("button", { type: "button", on: { click: () => this.suggest(s) } },
          el("strong", { text: s.title }), el("span", { text: s.text.replace(/\n+/g, " ") }))))));
  }

  suggest(s) {
    if (s.compare) { this.compare(s.text); return; }
    if (s.tool) this.settings.toggle(s.tool, true);
    this.send(s.text);
    this.prompt.focus();
  }
}
