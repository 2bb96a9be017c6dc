// picture.mjs - the picture of the page in the README: four answers of the small model, scored by itself.
import { open } from "./browser.mjs";
import { start } from "./real.mjs";

export async function picture(browser, shots) {
  const server = await start(shots);
  const { page } = await open(browser, server.url, { width: 1280, height: 620, path: "/#compare" });
  await page.fill("#s-temperature", "1");
  await page.fill("#s-seed", "11");
  await page.fill("#question", "Use the numbers 26, 9, 85, 84 once each with + - * / to make 34. Give the expression in <answer> tags.");
  await page.selectOption("#mode", "score");
  await page.selectOption("#votes", "8");
  await page.press("#question", "Enter");
  await page.waitForSelector(".figures", { timeout: 60000 });
  await page.locator(".brand").focus();
  await page.locator(".brand").blur();
  await page.screenshot({ path: `${shots}/page.png` });
  server.close();
}
