// test.mjs - the page in a headless browser; prints "ok - ..." and "not ok - ..." lines.
// usage: FATHOM_NODE=$PWD/build/node FATHOM_BROWSER=/usr/bin/chromium node spec/page/test.mjs odd|real [SHOTS]
// "picture" in place of them makes the picture of the README: SHOTS/page.png
import { mkdirSync } from "node:fs";
import { launch } from "./browser.mjs";
import { odd } from "./odd.mjs";
import { picture } from "./picture.mjs";
import { real } from "./real.mjs";

const [which, shots = "build/page"] = process.argv.slice(2);
mkdirSync(shots, { recursive: true });
const browser = await launch();
try {
  await { odd, real, picture }[which](browser, shots);
} finally {
  await browser.close();
}
