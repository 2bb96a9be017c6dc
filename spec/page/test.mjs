// test.mjs - the page in a headless browser; prints "ok - ..." and "not ok - ..." lines.
// usage: FATHOM_NODE=build/node FATHOM_BROWSER=/usr/bin/chromium node spec/page/test.mjs SHOTS [URL of a real server]
import { mkdirSync } from "node:fs";
import { launch } from "./browser.mjs";
import { odd } from "./odd.mjs";
import { real } from "./real.mjs";

const [shots = "build/page", url] = process.argv.slice(2);
mkdirSync(shots, { recursive: true });
const browser = await launch();
try {
  await odd(browser, shots);
  if (url) await real(browser, url, shots);
} finally {
  await browser.close();
}
