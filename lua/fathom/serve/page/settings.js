// settings.js - the side drawer: system prompt, sampling, tools. What is left empty is the model's own default.
import { el, grow } from "/dom.js";

const STORE = "fathom.settings";

/** Tools that pocket knows; a person answers their calls. */
export const presets = [
  ["calculator", "Evaluate an arithmetic expression.", { expression: "string" }, "178377"],
  ["lookup", "Look up a key in the dictionary.", { key: "string" }, "41"],
  ["roll_dice", "Roll dice.", { sides: "integer", count: "integer" }, "4, 2"],
  ["get_time", "Current time in a city.", { city: "string" }, "14:05"],
  ["get_weather", "Current weather in a city.", { city: "string" }, "rainy, 7 C"],
].map(([name, description, args, example]) => ({ name, example, tool: { type: "function", function: {
  name, description, parameters: {
    type: "object", properties: Object.fromEntries(Object.entries(args).map(([k, type]) => [k, { type }])), required: Object.keys(args),
  } } } }));

/** An example of what a tool would answer, for the field where a person writes it. */
export const exampleOf = (name) => presets.find((p) => p.name === name)?.example;

const fields = [
  { name: "temperature", label: "Temperature", min: 0, max: 2, step: 0.05, slider: true, tip: "0 always takes the likeliest token" },
  { name: "top_p", label: "Top p", min: 0.01, max: 1, step: 0.01, slider: true, tip: "keep the likeliest tokens that sum to this" },
  { name: "min_p", label: "Min p", min: 0, max: 1, step: 0.01, slider: true, tip: "drop what is less likely than this share of the best" },
  { name: "top_k", label: "Top k", min: 0, step: 1, tip: "keep this many of the likeliest" },
  { name: "max_tokens", label: "Longest reply", min: 1, step: 1, tip: "tokens" },
  { name: "seed", label: "Seed", min: 0, step: 1, tip: "the same seed gives the same reply" },
];
const general = { temperature: 0.6, top_p: 0.95, min_p: 0, top_k: 0 };

/** A seed that any JSON reader keeps exact. */
export const drawSeed = () => crypto.getRandomValues(new Uint32Array(1))[0];

function parseTools(text) {
  if (!text.trim()) return { tools: [] };
  try {
    const tools = JSON.parse(text);
    if (!Array.isArray(tools)) return { error: "The tools must be a list: [ ... ]" };
    const bad = tools.findIndex((t) => typeof t?.function?.name !== "string");
    return bad < 0 ? { tools } : { error: `Tool ${bad + 1} has no function.name` };
  } catch (error) {
    return { error: `No JSON yet: ${error.message}` };
  }
}

export class Settings {
  constructor(root) {
    this.root = root;
    this.values = {};
    this.system = el("textarea", { id: "system", rows: "3", placeholder: "None", spellcheck: "false" });
    this.tools = el("textarea", { id: "tools", class: "mono", rows: "4", spellcheck: "false", placeholder: "[ ]", "aria-label": "Tools as JSON", "aria-describedby": "tools-error" });
    this.toolsError = el("p", { class: "field-error", id: "tools-error", "aria-live": "polite" });
    this.think = el("input", { type: "checkbox", id: "s-think", checked: true });
    this.rows = new Map();
    this.build();
    this.restore();
  }

  build() {
    const close = el("button", { class: "quiet icon", type: "button", id: "settings-close", "aria-label": "Close the settings", text: "✕" });
    const reset = el("button", { class: "link", type: "button", text: "Defaults", on: { click: () => this.reset() } });
    this.chips = el("div", { class: "chips", role: "group", "aria-label": "Tools that pocket knows" }, ...presets.map((p) =>
      el("button", { class: "chip", type: "button", "aria-pressed": "false", text: p.name, on: { click: () => this.toggle(p.name) } })));
    this.root.replaceChildren(
      el("header", {}, el("h2", { text: "Settings" }), close),
      el("section", {}, el("label", { class: "title", for: "system", text: "System prompt" }), this.system),
      el("section", {}, el("div", { class: "row between" }, el("h3", { class: "title", text: "Sampling" }), reset),
        ...fields.map((f) => this.field(f)),
        el("label", { class: "field" }, el("span", { text: "Think first" }), this.think)),
      el("section", {}, el("h3", { class: "title", text: "Tools" }), this.chips,
        el("p", { class: "hint", text: "You write what they answer." }),
        this.asJson = el("details", { class: "as-json" }, el("summary", { text: "As JSON" }), this.tools), this.toolsError));
    this.asJson.addEventListener("toggle", () => grow(this.tools));
    this.think.addEventListener("change", () => this.changed());
    for (const area of [this.system, this.tools]) area.addEventListener("input", () => { grow(area); this.changed(); });
  }

  field(f) {
    const input = el("input", { type: "number", id: `s-${f.name}`, min: f.min, max: f.max, step: f.step, inputmode: "decimal", title: f.tip });
    const slider = f.slider && el("input", { type: "range", min: f.min, max: f.max, step: f.step, "aria-label": `${f.label}, slider`, tabindex: "-1" });
    input.addEventListener("input", () => { this.show(f.name); this.changed(); });
    slider && slider.addEventListener("input", () => { input.value = slider.value; this.show(f.name); this.changed(); });
    this.rows.set(f.name, { f, input, slider });
    return el("div", { class: "field" }, el("label", { for: `s-${f.name}`, text: f.label }), slider, input);
  }

  // a slider without a value of its own stands at the default, and looks so
  show(name) {
    const { f, input, slider } = this.rows.get(name);
    const standard = this.defaults?.[name] ?? general[name];
    input.placeholder = name === "seed" ? "drawn" : standard === undefined ? "model's" : standard === 0 && name !== "temperature" ? "off" : String(standard);
    if (!slider) return;
    slider.classList.toggle("own", input.value !== "");
    slider.value = input.value === "" ? standard ?? f.min : input.value;
  }

  /** Takes the model's own defaults (a table as /v1/models gives it, or nothing). */
  setDefaults(defaults) {
    this.defaults = defaults;
    for (const name of this.rows.keys()) this.show(name);
  }

  set(name, value) {
    this.rows.get(name).input.value = value;
    this.show(name);
    this.changed();
  }

  reset() {
    for (const [name, row] of this.rows) { row.input.value = ""; this.show(name); }
    this.think.checked = true;
    this.changed();
  }

  /** Switches one of the presets on or off in the JSON. */
  toggle(name, on) {
    const { tools = [] } = parseTools(this.tools.value);
    const rest = tools.filter((t) => t.function.name !== name);
    if (on === undefined ? rest.length === tools.length : on) rest.push(presets.find((p) => p.name === name).tool);
    this.tools.value = rest.length ? `[${rest.map((t) => JSON.stringify(t)).join(",\n")}]` : "";
    grow(this.tools);
    this.changed();
  }

  changed() {
    const { tools, error } = parseTools(this.tools.value);
    this.toolsError.textContent = error ?? "";
    if (error) this.asJson.open = true;
    const names = new Set((tools ?? []).map((t) => t.function.name));
    [...this.chips.children].forEach((chip, i) => chip.setAttribute("aria-pressed", names.has(presets[i].name)));
    const options = Object.fromEntries([...this.rows].map(([name, row]) => [name, row.input.value]));
    sessionStorage.setItem(STORE, JSON.stringify({ system: this.system.value, tools: this.tools.value, options, direct: !this.think.checked }));
    this.onChange?.();
  }

  restore() {
    let kept = {};
    try { kept = JSON.parse(sessionStorage.getItem(STORE)) ?? {}; } catch { /* somebody else's words */ }
    this.system.value = kept.system ?? "";
    this.tools.value = kept.tools ?? "";
    this.think.checked = !kept.direct;
    for (const [name, row] of this.rows) { row.input.value = kept.options?.[name] ?? ""; this.show(name); }
    this.changed();
  }

  /** Whether everything can be sent; if not, shows where it can't. */
  check() {
    const wrong = [...this.rows.values()].map((row) => row.input).find((input) => !input.validity.valid) ?? (this.toolsError.textContent && this.tools);
    if (!wrong) return true;
    this.onWrong?.();
    if (wrong.reportValidity()) wrong.focus();
    return false;
  }

  /** What a request carries: { system, options, tools }. The seed is drawn here when none is given. */
  read() {
    const options = {};
    for (const [name, { input }] of this.rows) {
      if (input.value !== "") options[name] = Number(input.value);
    }
    options.seed ??= drawSeed();
    if (!this.think.checked) options.think = false;
    const { tools } = parseTools(this.tools.value);
    return { system: this.system.value.trim(), options, tools: tools?.length ? tools : undefined };
  }
}
