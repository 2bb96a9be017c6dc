// odd.mjs - the page beside a server that breaks off, refuses, wants a key and says hostile things.
import { start, nasty } from "./mock.mjs";
import { ask, behaves, expect, inAllSizes, nameless, open, pale, same, settled, sideways } from "./browser.mjs";

const completions = (mock) => mock.seen.filter((r) => r.path === "/v1/chat/completions");

export async function odd(browser, shots) {
  const mock = await start();
  const { page, said, foreign } = await open(browser, mock.url);

  await behaves("text of a model stays text, wherever it is shown", async () => {
    await ask(page, "Say something nasty");
    await page.click(".think summary");
    const log = await page.textContent("#log");
    same(log.split(nasty).length - 1, 4, "thoughts, their last line, answer, fence");
    same(await page.locator("#log img, #log script").count(), 0, "elements made of text");
    same(await page.evaluate(() => window.hacked), undefined, "scripts run");
  });

  await behaves("lists, fences, bold and boxes are drawn", async () => {
    const reply = await ask(page, "Something rich");
    for (const part of ["h3", "ul li strong", "ol li", "blockquote", "figure pre", ".boxed"]) expect(await reply.locator(part).count(), `no ${part}`);
    await reply.locator("figure button").click();
    same(await page.evaluate(() => navigator.clipboard.readText()), "local x = 1 < 2", "copied code");
  });

  await behaves("a reply that breaks off says so where it broke, and can be asked for again", async () => {
    const reply = await ask(page, "Be broken");
    expect((await reply.textContent()).includes("It goes well"), "what had come is kept");
    expect((await reply.locator(".trouble").textContent()).includes("broke off"), "no word about it");
    const before = completions(mock).length;
    await reply.locator("text=Try again").click();
    await page.waitForFunction(() => document.querySelectorAll(".trouble:not([hidden])").length === 1);
    await settled(page);
    same(completions(mock).length, before + 1, "requests");
    expect(await page.locator(".reply").last().locator(".trouble").isVisible(), "the second failure is not shown");
  });

  await behaves("a refusal is shown in the server's own words", async () => {
    const text = await (await ask(page, "Be refused")).locator(".trouble").textContent();
    expect(text.includes("max_tokens must be 0 or more") && text.includes("leave it out"), text);
  });

  await behaves("Enter sends, Shift+Enter starts a line, Esc stops and closes the connection", async () => {
    await page.click("#new-chat");
    await page.fill("#prompt", "slow");
    await page.press("#prompt", "Shift+Enter");
    same(await page.inputValue("#prompt"), "slow\n", "the message");
    await page.press("#prompt", "Enter");
    await page.waitForFunction(() => document.querySelector(".live")?.textContent.includes("One moment."));
    expect(await page.locator(".think.on").count(), "thinking is not shown while it goes on");
    await page.screenshot({ path: `${shots}/streaming.png` });
    await page.locator(".think summary").last().click();
    await page.waitForFunction(() => { const s = document.querySelector("#chat-scroll"); return s.scrollHeight > s.clientHeight + 200; });
    expect(await page.evaluate(() => { const s = document.querySelector("#chat-scroll"); return s.scrollHeight - s.scrollTop - s.clientHeight < 5; }), "the end is not followed");
    await page.evaluate(() => { document.querySelector("#chat-scroll").scrollTop = 0; });
    await page.waitForSelector("#latest:not([hidden])");
    await page.waitForTimeout(150);
    same(await page.evaluate(() => document.querySelector("#chat-scroll").scrollTop), 0, "a reader is dragged away");
    await page.click("#latest");
    same(await page.textContent("#send"), "Stop", "the button");
    await page.keyboard.press("Escape");
    await settled(page);
    expect((await page.locator(".reply").last().textContent()).includes("stopped"), "not marked as stopped");
    const entry = completions(mock).at(-1);
    for (let i = 0; i < 250 && !entry.closed; i++) await page.waitForTimeout(20);
    expect(entry.closed && !entry.whole, "the connection stays open");
  });

  await behaves("the last message can be edited, and a reply asked for again with a seed of its own", async () => {
    await ask(page, "What is 17 + 25?");
    await page.press("#prompt", "ArrowUp");
    await page.fill(".edit", "What is 1 + 1?");
    await page.press(".edit", "Enter");
    await settled(page);
    same(completions(mock).at(-1).body.messages.at(-1).content, "What is 1 + 1?", "the question");
    await page.locator(".reply").last().locator("text=Ask again").click();
    await page.waitForTimeout(50);
    await settled(page);
    const [a, b] = completions(mock).slice(-2).map((r) => r.body);
    same(a.messages, b.messages, "messages");
    expect(a.seed !== b.seed, "the same seed without being asked for");
    await page.locator(".seed").last().click();
    same(await page.inputValue("#s-seed"), String(b.seed), "the seed that is kept");
    await page.click("text=Defaults");
  });

  await behaves("several tool calls are answered by hand, with the thoughts that led to them", async () => {
    await page.click("#new-chat");
    await page.fill("#system", "Use calls.");
    for (const tool of ["calculator", "get_time"]) await page.locator(".chip", { hasText: tool }).click();
    const reply = await ask(page, "What is 4821 * 37, and how late is it in Oslo?");
    same(await reply.locator(".call").count(), 2, "cards");
    expect((await reply.locator(".call").first().textContent()).includes("4821 * 37"), "arguments are not shown");
    await page.fill("#result-0", "178377");
    await page.fill("#result-1", "14:05");
    await page.press("#result-1", "Enter");
    await page.waitForFunction(() => document.querySelectorAll(".reply").length === 2);
    await settled(page);
    const { messages, tools } = completions(mock).at(-1).body;
    same(tools.map((t) => t.function.name), ["calculator", "get_time"], "tools");
    same(messages.slice(-2).map((m) => [m.role, m.tool_call_id, m.content]), [["tool", "call_0", "178377"], ["tool", "call_1", "14:05"]], "results");
    same([messages.at(-3).reasoning_content, messages.at(-3).tool_calls.length], ["I use both tools.", 2], "the message that called");
  });

  await behaves("settings are sent as they are set, and a broken list of tools is told at once", async () => {
    await page.fill("#s-temperature", "0.25");
    await page.fill("#s-max_tokens", "77");
    await ask(page, "What is 17 + 25?");
    const { body } = completions(mock).at(-1);
    same([body.temperature, body.max_tokens, "top_p" in body, body.messages[0].content], [0.25, 77, false, "Use calls."], "the request");
    await page.locator(".as-json summary").click();
    await page.fill("#tools", "[{");
    expect((await page.textContent("#tools-error")).length > 5, "no word about it");
    const before = completions(mock).length;
    await page.fill("#prompt", "What is 17 + 25?");
    await page.press("#prompt", "Enter");
    await page.fill("#tools", "");
    await page.fill("#s-temperature", "7");
    await page.press("#prompt", "Enter");
    same(completions(mock).length, before, "requests with settings that are wrong");
    await page.fill("#s-temperature", "0.25");
    await page.fill("#prompt", "");
    await page.fill("#system", "");
    await page.reload();
    same(await page.inputValue("#s-temperature"), "0.25", "kept for the tab");
    expect(await page.locator(".reply").count(), "the conversation is gone");
    await page.click("text=Defaults");
  });

  await behaves("answers stand side by side with seeds of their own, and the judge's votes beside them", async () => {
    await page.click('nav a[href="#compare"]');
    await page.selectOption("#how-many", "3");
    await page.fill("#s-seed", "700");
    await page.fill("#question", "What is 17 + 25?");
    await page.press("#question", "Enter");
    await page.waitForSelector(".figures");
    same(completions(mock).slice(-3).map((r) => r.body.seed).sort(), [700, 701, 702], "seeds");
    same(mock.seen.findLast((r) => r.path === "/v1/judge").body, { question: "What is 17 + 25?", answers: Array(3).fill("17 + 25 = 42\n\\boxed{42}"), votes: 4, mode: "pair", seed: 700 }, "what the judge is asked");
    same(await page.textContent(".verdict > p"), "C is best", "the verdict");
    same(await page.locator(".figures dd").allTextContents(), ["81 %", "4 %"], "agreement and flip rate");
    same(await page.locator(".sample.best h3").allTextContents(), ["C"], "marked");
    same(await page.locator(".sample").first().locator(".bars i").count(), 2, "bars: one for each other answer");
    await page.selectOption("#mode", "score");
    await page.selectOption("#votes", "8");
    await page.press("#question", "Enter");
    await page.waitForFunction(() => document.querySelectorAll(".sample:last-child .bars i").length === 8);
    same(await page.locator(".sample").last().locator(".bars .lost").count(), 1, "a vote that could not be read");
    await page.locator(".votes summary").last().click();
    same(await page.locator(".votes").last().locator("dd").first().textContent(), "Score: 7.333333333333333", "the text of a vote");
    await page.fill("#question", "slow");
    await page.press("#question", "Enter");
    await page.waitForSelector(".sample .think.on");
    await page.keyboard.press("Escape");
    await page.waitForFunction(() => document.querySelector(".ask .solid").textContent === "Compare");
    expect((await page.textContent(".samples")).includes("stopped"), "not marked as stopped");
    await page.fill("#question", "What is 17 + 25?");
    await page.press("#question", "Enter");
    await page.waitForSelector(".figures");
    await page.locator(".sample").last().locator("text=Go on in chat").click();
    await page.waitForSelector("#view-chat:not([hidden])");
    same(await page.locator(".chat .turn").count(), 2, "turns taken over");
    await page.click("text=Defaults");
  });

  await behaves("a trace opens as a tree over time and is searched by kind and words", async () => {
    await page.click('nav a[href="#traces"]');
    await page.click("text=odd name #1.jsonl");
    await page.waitForSelector(".span");
    same(await page.locator(".span").count(), 6, "spans");
    same(await page.locator(".span .title").allTextContents(), ["sums", "What is 4821 * 37?", "calculator", nasty, "judge", "out of tokens"], "titles");
    expect((await page.textContent(".viewer > .hint")).includes("1 line not read"), "a bad line goes unsaid");
    await page.locator('.span[aria-selected="true"]').press("ArrowDown");
    expect((await page.textContent(".detail")).includes("I use the calculator."), "the detail of the second span");
    await page.screenshot({ path: `${shots}/trace.png` });
    await page.locator('.chip[data-kind="generate"]').click();
    same(await page.locator(".span").count(), 3, "spans that are no generations");
    await page.locator('.chip[data-kind="generate"]').click();
    await page.fill("#trace-search", "178377");
    same(await page.locator(".span .title").allTextContents(), ["calculator"], "found");
    await page.setInputFiles("#trace-file", { name: "mine.jsonl", mimeType: "text/plain", buffer: Buffer.from('{"id":1,"kind":"eval","ms":5,"begun_ms":1}\n') });
    await page.waitForFunction(() => document.querySelectorAll(".span").length === 1);
  });

  await behaves("a key is asked for, used, and kept for this tab only", async () => {
    const locked = await start({ key: "open sesame" });
    const other = await open(browser, locked.url);
    await other.page.fill("#key", "wrong");
    await other.page.press("#key", "Enter");
    await other.page.waitForSelector('#state[data-state="down"]');
    await other.page.fill("#prompt", "What is 17 + 25?");
    await other.page.press("#prompt", "Enter");
    await other.page.waitForSelector("dialog[open]");
    await other.page.fill("#key", "open sesame");
    await other.page.press("#key", "Enter");
    await other.page.waitForSelector(".boxed");
    same(await other.page.evaluate(() => [sessionStorage.getItem("fathom.key"), localStorage.length, document.cookie]), ["open sesame", 0, ""], "where it is kept");
    await other.context.close();
    locked.close();
  });

  await behaves("no view scrolls sideways, is pale or has a nameless control: narrow and wide, by day and by night", async () => {
    const { page: p, context } = await open(browser, mock.url);
    const check = (what) => inAllSizes(p, async (size) => same([await sideways(p), await pale(p), await nameless(p)], [[], [], []], `${what}, ${size}`));
    await check("empty");
    await ask(p, "Something rich");
    await ask(p, "Be broken");
    await check("chat");
    await p.click('nav a[href="#compare"]');
    await p.fill("#question", "What is 17 + 25?");
    await p.press("#question", "Enter");
    await p.waitForSelector(".figures");
    await check("compare");
    await p.click('nav a[href="#traces"]');
    await p.waitForSelector(".files a");
    await check("list of traces");
    await p.click(".files a");
    await p.waitForSelector(".span");
    await check("trace");
    await context.close();
  });

  await behaves("a server that has gone is said to be gone", async () => {
    await page.click('nav a[href="#chat"]');
    mock.close();
    const text = await (await ask(page, "Are you there?")).locator(".trouble").textContent();
    expect(text.includes("can't be reached"), text);
  });

  await behaves("nothing is asked of another host, and no script fails", async () => {
    same(foreign, [], "requests elsewhere");
    same(said.filter((text) => !text.startsWith("Failed to load resource")), [], "the console");
  });
}
