// test.mjs - the page in a headless browser; prints "ok - ..." and "not ok - ..." lines.
// usage: FATHOM_NODE=$PWD/build/node FATHOM_BROWSER=/usr/bin/chromium node spec/page/test.mjs SHOTS odd|real ...
// "picture" makes the picture of the README: SHOTS/page.png
import { mkdirSync } from "node:fs";
import { launch } from "./browser.mjs";
import { odd } from "./odd.mjs";
import { picture } from "./picture.mjs";
import { real } from "./real.mjs";

const [shots, ...parts] = process.argv.slice(2);
mkdirSync(shots, { recursive: true });
const browser = await launch();
try {
  for (const part of parts) await { odd, real, picture }[part](browser, shots);
} finally {
  await browser.close();
}
