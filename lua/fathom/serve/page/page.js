// page.js - puts the page together: which view is shown, the settings drawer, the state of the server, the key.
import { byId, announce } from "/dom.js";
import { getJson, onUnauthorized } from "/api.js";
import { Settings } from "/settings.js";
import { Chat } from "/chat.js";
import { Compare } from "/compare.js";
import { Traces } from "/traces.js";

const views = ["chat", "compare", "traces"];
const wide = matchMedia("(min-width: 1100px)");
let modelName = "";

const settings = new Settings(byId("settings"));
const chat = new Chat({ settings, model: () => modelName || "default",
  compare: (text) => { compare.fill(text); location.hash = "compare"; } });
const compare = new Compare({ root: byId("view-compare"), settings, model: () => modelName || "default",
  take: (turns) => { chat.take(turns); location.hash = "chat"; } });
const traces = new Traces({ root: byId("view-traces") });

// ---- which view is shown: the part of the address behind # ---------------------------------------------------

const here = () => {
  const [view, ...rest] = location.hash.slice(1).split("/");
  return { view: views.includes(view) ? view : "chat", rest: rest.map(decodeURIComponent).join("/") };
};

function route() {
  const { view, rest } = here();
  for (const name of views) byId(`view-${name}`).hidden = name !== view;
  for (const link of document.querySelectorAll(".bar nav a")) {
    if (link.hash === `#${view}`) link.setAttribute("aria-current", "page"); else link.removeAttribute("aria-current");
  }
  document.title = `${view[0].toUpperCase()}${view.slice(1)} · fathom`;
  if (view === "chat") { chat.follow(); if (wide.matches) byId("prompt").focus(); }
  if (view === "traces") traces.open(rest);
  placeSettings();
}
addEventListener("hashchange", route);
byId("skip").addEventListener("click", () => byId("main").focus());

// ---- the drawer ------------------------------------------------------------------------------------------------

settings.onWrong = () => showSettings(true);
let wanted = true;

function showSettings(open) {
  byId("settings").hidden = !open;
  byId("settings-button").setAttribute("aria-expanded", String(open));
  document.body.classList.toggle("with-settings", open);
}
// beside a wide page the drawer stands open until somebody closes it; traces have nothing to set
function placeSettings() {
  const useful = here().view !== "traces";
  byId("settings-button").hidden = !useful;
  showSettings(useful && wide.matches && wanted);
}

byId("settings-button").addEventListener("click", () => {
  const open = wanted = byId("settings").hidden;
  showSettings(open);
  if (open && !wide.matches) byId("settings-close").focus();
});
byId("settings-close").addEventListener("click", () => { wanted = false; showSettings(false); byId("settings-button").focus(); });
wide.addEventListener("change", placeSettings);

addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || byId("key-dialog").open) return;
  const { view } = here();
  if (view === "chat" && chat.abort) chat.stop();
  else if (view === "compare" && compare.abort) compare.stop();
  else if (!wide.matches && !byId("settings").hidden) { showSettings(false); byId("settings-button").focus(); }
});

// ---- the key ---------------------------------------------------------------------------------------------------

onUnauthorized(() => new Promise((resolve) => {
  const dialog = byId("key-dialog");
  byId("key").value = "";
  dialog.returnValue = "";
  dialog.addEventListener("close", () => resolve(dialog.returnValue === "use" ? byId("key").value : null), { once: true });
  dialog.showModal();
}));
byId("key-dialog").firstElementChild.addEventListener("submit", (event) => {
  event.preventDefault();
  byId("key-dialog").close("use");
});
byId("key-cancel").addEventListener("click", () => byId("key-dialog").close());

// ---- the server ------------------------------------------------------------------------------------------------

const LOOK_AGAIN_MS = 15000;

function showState(state, text, title) {
  byId("state").dataset.state = state;
  byId("state").title = title;
  if (byId("model").textContent !== text) byId("model").textContent = text;
}

async function look() {
  try {
    if (!modelName) {
      const models = await getJson("/v1/models");
      modelName = models.data?.[0]?.id ?? "";
      settings.setDefaults(models.data?.[0]?.defaults);
    } else {
      await getJson("/health");
    }
    showState("up", modelName, "The server answers");
  } catch (error) {
    showState("down", modelName || "no server", error.message);
    if (byId("state").dataset.said !== error.message) announce(error.message);
    byId("state").dataset.said = error.message;
  }
}
setInterval(() => { if (!document.hidden) look(); }, LOOK_AGAIN_MS);
document.addEventListener("visibilitychange", () => { if (!document.hidden) look(); });

route();
look();
