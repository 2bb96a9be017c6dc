// real.mjs - the page beside the real server and the small model that comes along.
import { spawn } from "node:child_process";
import { mkdirSync, rmSync } from "node:fs";
import { ask, behaves, expect, inAllSizes, open, same, settled, sideways } from "./browser.mjs";

/** Starts spec/page/server.lua; gives { url, close() }. */
export async function start(shots) {
  const folder = `${shots}/traces`;
  rmSync(folder, { recursive: true, force: true });
  mkdirSync(folder, { recursive: true });
  const child = spawn(process.env.LUA ?? "lua5.4", ["spec/page/server.lua", folder], {
    env: { LUA_PATH: "lua/?.lua;lua/?/init.lua;;", LUA_CPATH: "build/?.so;;", ...process.env }, stdio: ["pipe", "pipe", "pipe"],
  });
  let told = "";
  child.stderr.on("data", (data) => { told += data; });
  const url = await new Promise((resolve, reject) => {
    child.stdout.once("data", (data) => resolve(String(data).trim()));
    child.once("exit", () => reject(new Error(`the server did not start: ${told}`)));
  });
  return { url, close: () => child.kill() };
}

const countdown = "Use the numbers 36, 6, 9 once each with + - * / to make 39. Give the expression in <answer> tags.";

export async function real(browser, shots) {
  const server = await start(shots);
  try { await talk(browser, server.url, shots); } finally { server.close(); }
}

async function talk(browser, url, shots) {
  const { page, said, foreign } = await open(browser, url);
  const picture = (name) => inAllSizes(page, async (size) => {
    same(await sideways(page), [], `${name}, ${size}`);
    await page.screenshot({ path: `${shots}/${name}-${size}.png` });
  });
  const set = async (values) => { for (const [name, value] of Object.entries(values)) await page.fill(`#s-${name}`, String(value)); };

  await behaves("the model's thoughts and its answer come in their channels, with what they took", async () => {
    same(await page.textContent("#model"), "pocket", "the model");
    await picture("empty");
    await set({ temperature: 0 });
    const reply = await ask(page, "What is 17 + 25?");
    expect((await reply.locator(".thoughts").textContent()).includes("17 + 25 = 42"), "thoughts");
    same(await reply.locator(".boxed").textContent(), "42", "the answer");
    const facts = await reply.locator(".facts").textContent();
    expect(/\d+ tokens/.test(facts) && /prompt \d+/.test(facts) && /seed \d+/.test(facts), facts);
  });

  await behaves("the same seed says the same again, another one need not", async () => {
    await set({ temperature: 1 });
    await page.click("#new-chat");
    const texts = [];
    for (const seed of [11, 11, 12, 13]) {
      await set({ seed });
      await ask(page, countdown);
      texts.push(await page.locator(".reply").last().locator(".thoughts").textContent());
      await page.click("#new-chat");
    }
    same(texts[1], texts[0], "the same seed");
    expect(new Set(texts).size > 1, "every seed says the same");
  });

  await behaves("a tool is called, answered by hand, and the answer is used", async () => {
    await page.click("text=Defaults");
    await set({ temperature: 0 });
    await page.click("text=A tool, answered by you");
    await page.waitForSelector(".results input");
    expect((await page.locator(".call").textContent()).includes("4821 * 37"), "the call");
    await page.fill("#result-0", "178377");
    await page.press("#result-0", "Enter");
    await page.waitForFunction(() => document.querySelectorAll(".reply").length === 2);
    await settled(page);
    expect((await page.locator(".reply").last().locator(".answer").textContent()).includes("178377"), "the result is not told");
    expect(/\d cached/.test(await page.locator(".reply").last().locator(".facts").textContent()), "nothing was cached");
    await picture("chat");
  });

  await behaves("Esc ends a long reply on the server, too", async () => {
    // the small model is brief: here it may not end by itself
    await page.route("**/v1/chat/completions", (route) => route.continue({ postData: { ...route.request().postDataJSON(), max_tokens: 1500, ignore_eos: true } }));
    await page.fill("#prompt", "Tell me a story about a fox.");
    await page.press("#prompt", "Enter");
    await page.waitForFunction(() => [...document.querySelectorAll(".reply")].at(-1).textContent.length > 40);
    await page.keyboard.press("Escape");
    await settled(page);
    expect((await page.locator(".reply").last().textContent()).includes("stopped"), "not marked as stopped");
    const running = async () => Number(/^fathom_requests_running (\d+)/m.exec(await (await page.request.get(`${url}/metrics`)).text())?.[1]);
    for (let i = 0; i < 250 && await running() !== 0; i++) await page.waitForTimeout(20);
    same(await running(), 0, "requests that run");
    await page.unroute("**/v1/chat/completions");
  });

  await behaves("several answers are judged by the model, and the votes are shown", async () => {
    await page.click("text=Defaults");
    await set({ temperature: 1, seed: 3 });
    await page.click('nav a[href="#compare"]');
    await page.fill("#question", countdown);
    await page.selectOption("#votes", "2");
    await page.press("#question", "Enter");
    await page.waitForSelector(".figures", { timeout: 30000 });
    same(await page.locator(".sample").count(), 4, "answers");
    same(await page.locator(".sample .bars i").count(), 12, "bars");
    expect(await page.locator(".sample.best").count(), "no winner is marked");
    await picture("compare");
  });

  await behaves("what happened can be read as a trace", async () => {
    await page.click('nav a[href="#traces"]');
    await page.waitForSelector(".files a");
    await picture("traces");
    await page.click(".files a");
    await page.waitForSelector(".span");
    expect((await page.locator(".viewer .chip").allTextContents()).some((t) => t.startsWith("generate ")), "no generations");
    await page.fill("#trace-search", "4821");
    await page.locator(".span").first().click();
    expect((await page.textContent(".detail")).includes("calculator"), "the messages are not shown");
    await page.fill("#trace-search", "");
    await picture("trace");
  });

  await behaves("the real server's page asks nothing of another host, and its console stays empty", async () => {
    same([foreign, said], [[], []]);
    const policy = (await page.request.get(url)).headers()["content-security-policy"];
    expect(policy?.includes("default-src 'self'"), `the policy is ${policy}`);
  });
}
