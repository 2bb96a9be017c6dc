// compare.js - several answers to one question side by side, each with its own seed, and the model as their judge.
import { el, announce, copyButton, grow, number, percent, plural } from "/dom.js";
import { ApiError, complete, emptyReply, postJson } from "/api.js";
import { ReplyView } from "/reply.js";
import { messagesOf } from "/chat.js";

const AT_ONCE = 5;         // browsers open six connections to a host; one stays free for the judge and for looking
const TOP_SCORE = 10;      // of the judge's usual scale

const letter = (i) => String.fromCharCode(65 + i);

function choose(id, label, values, chosen, words = {}) {
  const select = el("select", { id }, ...values.map((v) => el("option", { value: v, text: words[v] ?? v, selected: v === chosen })));
  return [select, el("label", { class: "pick", for: id }, el("span", { text: label }), select)];
}

export class Compare {
  constructor({ root, settings, model, take }) {
    Object.assign(this, { settings, model, take, samples: [] });
    this.question = el("textarea", { id: "question", rows: "2", "aria-label": "Question", placeholder: "A question for all of them" });
    const [howMany, pickMany] = choose("how-many", "Answers", [2, 3, 4, 6, 8], 4);
    const [mode, pickMode] = choose("mode", "Judge by", ["pair", "score"], "pair", { pair: "pairs", score: "scores" });
    const [votes, pickVotes] = choose("votes", "Votes", [1, 2, 4, 8, 16, 32], 4);
    pickVotes.title = "for each answer, or for each pair in each order";
    Object.assign(this, { howMany, votes, mode });
    this.rubric = el("input", { type: "text", id: "rubric", placeholder: "The model's own", autocomplete: "off" });
    this.go = el("button", { class: "solid", type: "submit", text: "Compare" });
    this.form = el("form", { class: "ask" }, this.question,
      el("div", { class: "row" }, pickMany, pickMode, pickVotes,
        el("label", { class: "pick grow", for: "rubric" }, el("span", { text: "Rubric" }), this.rubric), this.go));
    this.verdict = el("section", { class: "verdict", "aria-label": "Verdict", "aria-live": "polite", hidden: true });
    this.grid = el("div", { class: "samples" });
    this.empty = el("p", { class: "empty", text: "Ask once, read several answers, and let the model vote on which is best." });
    root.replaceChildren(el("div", { class: "scroll" }, el("div", { class: "wide" }, this.form, this.verdict, this.empty, this.grid)));
    this.listen();
  }

  listen() {
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.abort) this.stop(); else this.run();
    });
    this.question.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        if (!this.abort) this.run();
      }
    });
    for (const event of ["input", "focus"]) this.question.addEventListener(event, () => grow(this.question));
    addEventListener("resize", () => grow(this.question));
  }

  /** Puts a question into the field; nothing is asked yet. */
  fill(text) {
    this.question.value = text;
    setTimeout(() => { grow(this.question); this.go.focus(); });
  }

  stop() { this.abort?.abort(); }

  showBusy() {
    this.go.textContent = this.abort ? "Stop" : "Compare";
    this.go.classList.toggle("stop", Boolean(this.abort));
  }

  async run() {
    const question = this.question.value.trim();
    if (!question) { this.question.focus(); return; }
    if (!this.settings.check()) return;
    const { system, options } = this.settings.read();
    this.asked = { question, system };
    this.empty.hidden = true;
    this.verdict.hidden = true;
    this.samples = Array.from({ length: Number(this.howMany.value) }, (_, i) => this.sample(i, options.seed + i));
    this.grid.replaceChildren(...this.samples.map((s) => s.node));
    await this.under(async (signal) => {
      const waiting = [...this.samples];
      const worker = async () => { while (waiting.length && !signal.aborted) await this.fetch(waiting.shift(), options, signal); };
      await Promise.all(Array.from({ length: AT_ONCE }, worker));
      if (!signal.aborted) await this.judge(signal);
    });
  }

  // Runs work that the stop button ends.
  async under(work) {
    const abort = this.abort = new AbortController();
    this.showBusy();
    try { await work(abort.signal); } finally {
      this.abort = null;
      for (const s of this.samples) if (s.reply.busy) { s.reply.busy = false; s.reply.stopped = true; s.view.changed(); }
      this.showBusy();
    }
  }

  sample(i, seed) {
    const reply = Object.assign(emptyReply(), { busy: true, seed });
    const s = { i, reply };
    s.view = new ReplyView(reply, {
      label: `Answer ${letter(i)}`,
      onRetry: () => this.retry(s),
      onSeed: (value) => { this.settings.set("seed", value); announce(`Seed ${value} will be used again.`); },
      actions: () => reply.content ? [copyButton(() => reply.content),
        el("button", { class: "link", type: "button", text: "Go on in chat", on: { click: () => this.carry(s) } })] : [],
    });
    s.view.draw();
    s.marks = el("div", { class: "marks" });
    s.votes = el("div", { class: "votes" });
    s.badge = el("span", { class: "badge", hidden: true, text: "Best" });
    s.node = el("section", { class: "sample", "aria-label": `Answer ${letter(i)}` },
      el("header", {}, el("h3", { text: letter(i) }), s.badge, s.marks), s.view.node, s.votes);
    return s;
  }

  carry(s) {
    const { busy, error, ...reply } = s.reply;
    this.take([{ role: "user", content: this.asked.question }, reply]);
  }

  async fetch(s, options, signal) {
    const messages = messagesOf([{ role: "user", content: this.asked.question }], this.asked.system);
    try {
      await complete({ model: this.model(), messages, ...options, seed: s.reply.seed }, s.reply, () => s.view.changed(), signal);
    } catch (error) {
      if (error.name === "AbortError") s.reply.stopped = true;
      else s.reply.error = { message: error.message, hint: error.hint };
    }
    s.reply.busy = false;
    s.view.changed();
  }

  retry(s) {
    if (this.abort) return;
    Object.assign(s.reply, emptyReply(), { error: undefined, busy: true, stopped: false });
    s.view.changed();
    this.under(async (signal) => {
      await this.fetch(s, this.settings.read().options, signal);
      if (!signal.aborted) await this.judge(signal);
    });
  }

  // ---- the judge ----

  async judge(signal) {
    const judged = this.samples.filter((s) => s.reply.content && !s.reply.error);
    for (const s of this.samples) this.drawMarks(s, null);
    if (judged.length < 2) { this.say("Two answers are needed for a verdict."); return; }
    this.say(`Voting on ${plural(judged.length, "answer")}`, true);
    try {
      const body = { question: this.asked.question, answers: judged.map((s) => s.reply.content.trim()),
        votes: Number(this.votes.value), mode: this.mode.value, seed: this.samples[0].reply.seed };
      if (this.rubric.value.trim()) body.rubric = this.rubric.value.trim();
      this.drawVerdict(judged, await postJson("/v1/judge", body, signal));
    } catch (error) {
      if (error.name === "AbortError") { this.say("Stopped before a verdict."); return; }
      this.say(error instanceof ApiError ? error.message : "The verdict can't be read.", false, () => this.under((again) => this.judge(again)));
    }
  }

  say(text, busy = false, retry = null) {
    this.verdict.hidden = false;
    this.verdict.classList.toggle("busy", busy);
    this.verdict.classList.toggle("trouble", Boolean(retry));
    this.verdict.replaceChildren(el("p", { text }),
      ...(retry ? [el("button", { class: "quiet", type: "button", text: "Try again", on: { click: () => { if (!this.abort) retry(); } } })] : []));
  }

  drawVerdict(judged, result) {
    const top = Math.max(...judged.map((_, k) => result.scores[k] || 0));
    const best = judged.filter((_, k) => result.scores[k] === top);
    judged.forEach((s, k) => this.drawMarks(s, marksOf(result, k, (other) => letter(judged[other].i)), best.includes(s)));
    const names = best.map((s) => letter(s.i));
    this.say(best.length === 1 ? `${names[0]} is best` : `${names.slice(0, -1).join(", ")} and ${names.at(-1)} share the first place`);
    const figures = [
      ["agreement", result.agreement, "the share of votes that say what the verdict says"],
      ["flip rate", result.matches && result.flip_rate, "the share of votes that change with the order of the two answers"],
      ["not read", result.abstention || undefined, "the share of votes without a verdict"],
    ].filter(([, value]) => typeof value === "number");
    this.verdict.append(el("dl", { class: "figures" }, ...figures.map(([name, value, tip]) =>
      el("div", { title: tip }, el("dt", { text: name }), el("dd", { text: percent(value) })))));
    announce(this.verdict.firstChild.textContent);
  }

  drawMarks(s, marks, best = false) {
    s.badge.hidden = !best;
    s.node.classList.toggle("best", best);
    s.marks.replaceChildren();
    s.votes.replaceChildren();
    if (!marks) return;
    s.marks.append(el("span", { class: "bars", "aria-hidden": "true" }, ...marks.bars.map((share) => {
      const bar = el("i", { class: share === null ? "lost" : "" });
      bar.style.height = share === null ? "2px" : `${Math.max(8, 100 * share)}%`;
      return bar;
    })), el("strong", { text: marks.score }));
    s.votes.append(el("details", { class: "think" },
      el("summary", {}, el("span", { class: "label", text: "Votes" }), el("span", { class: "live", text: marks.lines.map(([short]) => short).join(", ") })),
      el("dl", {}, ...marks.lines.flatMap(([short, long]) => [el("dt", { text: short }), el("dd", { text: long })]))));
  }
}

// What the judge says of answer k (from 0; the judge counts from 1): { score, bars, lines }. For each vote there is a bar from
// 0 to 1 (null: it could not be read) and a line [short, long]; in a tournament for each other answer, which name(k) names.
function marksOf(result, k, name) {
  if (result.matches) {
    const matches = result.matches.filter((m) => m.first === k + 1 || m.second === k + 1).map((m) => {
      const { a = 0, b = 0, tie = 0 } = m.counts;
      const [won, lost] = m.first === k + 1 ? [a, b] : [b, a];
      return { won, lost, tie, all: a + b + tie, other: name((m.first === k + 1 ? m.second : m.first) - 1) };
    });
    return { score: percent(result.scores[k]), bars: matches.map((m) => (m.all ? (m.won + m.tie / 2) / m.all : null)),
      lines: matches.map((m) => [`${m.won} : ${m.lost}`, `against ${m.other}` + (m.tie ? `, ${plural(m.tie, "tie")}` : "")]) };
  }
  const votes = result.votes?.[k] ?? [];
  const score = result.scores[k];
  return { score: typeof score === "number" ? number(score) : "?", bars: votes.map((v) => typeof v.score === "number" ? v.score / TOP_SCORE : null),
    lines: votes.map((v) => [String(v.score ?? "not read"), (v.text ?? "").replace(/<\/?think>/g, "").trim()]) };
}
