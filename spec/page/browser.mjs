// browser.mjs - what the tests of the page share: a browser, steps with names, and what holds on every page.
import { createRequire } from "node:module";

const { chromium } = createRequire(process.env.FATHOM_NODE + "/")("playwright-core");

/** A headless browser; FATHOM_BROWSER names the program. */
export const launch = () => chromium.launch({ executablePath: process.env.FATHOM_BROWSER, args: ["--no-sandbox", "--disable-dev-shm-usage"] });

/** Runs one named behaviour and prints how it went. */
export async function behaves(name, body) {
  const began = Date.now();
  try {
    await body();
    console.log(`ok - ${name} (${Date.now() - began} ms)`);
  } catch (error) {
    console.log(`not ok - ${name}\n  ${String(error.stack ?? error).split("\n").slice(0, 12).join("\n  ")}`);
    process.exitCode = 1;
  }
}

export function expect(truth, what) { if (!truth) throw new Error(what); }

export function same(got, want, what = "value") {
  const [a, b] = [JSON.stringify(got), JSON.stringify(want)];
  if (a !== b) throw new Error(`${what}: got ${a}, expected ${b}`);
}

/**
 * Opens the page of a server in a context of its own. `said` collects errors of the console and of scripts,
 * `foreign` every request that goes to another host.
 */
export async function open(browser, url, { width = 1280, height = 900, scheme = "light", path = "/" } = {}) {
  const context = await browser.newContext({ viewport: { width, height }, colorScheme: scheme, permissions: ["clipboard-read", "clipboard-write"] });
  const page = await context.newPage();
  page.setDefaultTimeout(10000);
  const said = [], foreign = [];
  page.on("console", (m) => { if (["error", "warning"].includes(m.type())) said.push(m.text()); });
  page.on("pageerror", (e) => said.push(`raised: ${e.message}`));
  context.on("request", (r) => { if (new URL(r.url()).origin !== url) foreign.push(r.url()); });
  await page.goto(url + path);
  await page.waitForSelector('#state[data-state="up"], dialog[open]');
  return { page, context, said, foreign };
}

/** Shows a page narrow and wide, by day and by night, and calls look(name) each time. */
export async function inAllSizes(page, look) {
  for (const [size, width, height] of [["narrow", 360, 760], ["wide", 1600, 1000]]) {
    for (const colorScheme of ["light", "dark"]) {
      await page.setViewportSize({ width, height });
      await page.emulateMedia({ colorScheme });
      await page.evaluate(() => new Promise((drawn) => requestAnimationFrame(() => requestAnimationFrame(drawn))));
      await look(`${size}-${colorScheme}`);
    }
  }
}

/** Sends a message and waits until its reply is there (or has failed). */
export async function ask(page, text) {
  const before = await page.locator(".chat .reply").count();
  await page.fill("#prompt", text);
  await page.press("#prompt", "Enter");
  await page.locator(".chat .reply").nth(before).waitFor();
  await settled(page);
  return page.locator(".chat .reply").last();
}

export const settled = (page) => page.waitForSelector('.reply[aria-busy="true"]', { state: "detached", timeout: 20000 });

/** How far the page can be scrolled sideways, and what sticks out. */
export const sideways = (page) => page.evaluate(() => {
  const out = [];
  for (const box of [document.documentElement, ...document.querySelectorAll(".scroll, .settings:not([hidden])")]) {
    if (box.scrollWidth > box.clientWidth + 1) out.push(`${box.className || box.tagName}: ${box.scrollWidth} in ${box.clientWidth}`);
  }
  return out;
});

/** Texts whose contrast to what is behind them is below 4.5 to 1 (3 to 1 when large). */
export const pale = (page) => page.evaluate(() => {
  const parse = (c) => { const n = c.match(/[\d.]+/g).map(Number); return { rgb: n.slice(0, 3), a: n[3] ?? 1 }; };
  const light = (rgb) => rgb.map((v) => v / 255).map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (node) => {
    for (let n = node; n; n = n.parentElement) { const { rgb, a } = parse(getComputedStyle(n).backgroundColor); if (a === 1) return rgb; }
    return [255, 255, 255];
  };
  const found = new Set();
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !node.checkVisibility() || node.closest(".unseen, .skip, noscript, script")) continue;
    const style = getComputedStyle(node);
    const [a, b] = [light(parse(style.color).rgb), light(behind(node))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < (parseFloat(style.fontSize) >= 24 ? 3 : 4.5)) found.add(`${node.tagName}.${node.className} "${node.textContent.slice(0, 20)}" ${ratio.toFixed(2)}`);
  }
  return [...found];
});

/** Controls that nobody could name: no text, label or title. */
export const nameless = (page) => page.evaluate(() => [...document.querySelectorAll("button, a, input, select, textarea, summary")]
  .filter((n) => n.checkVisibility() && !n.textContent.trim() && !n.labels?.length && !n.getAttribute("aria-label") && !n.title)
  .map((n) => n.outerHTML.slice(0, 80)));
