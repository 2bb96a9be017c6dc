// test.mjs - the official client against the server at FATHOM_URL; prints "ok - ..." and "not ok - ..." lines.
// usage: FATHOM_NODE=$PWD/build/node FATHOM_URL=http://127.0.0.1:8080 FATHOM_KEY=KEY node spec/openai/test.mjs
import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const require = createRequire(`${process.env.FATHOM_NODE}/`);
const { default: OpenAI } = await import(pathToFileURL(require.resolve("openai")).href);
const { FATHOM_URL: url, FATHOM_KEY: apiKey } = process.env;
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey, maxRetries: 0 });
const model = "pocket";
const sum = [{ role: "user", content: "What is 17 + 25?" }];
const product = [{ role: "user", content: "What is 4821 * 37?" }];
const tools = [{ type: "function", function: { name: "calculator", description: "Evaluate an arithmetic expression.",
  parameters: { type: "object", properties: { expression: { type: "string" } }, required: ["expression"] } } }];

async function it(sentence, f) {
  try {
    await f();
    console.log(`ok - ${sentence}`);
  } catch (error) {
    console.log(`not ok - ${sentence}\n${error.stack}`);
  }
}

await it("answers a chat with thoughts and usage", async () => {
  const r = await client.chat.completions.create({ model, messages: sum, temperature: 0 });
  assert.equal(r.choices[0].message.content, "17 + 25 = 42\n\\boxed{42}");
  assert.equal(r.choices[0].message.reasoning_content, "17 + 25 = 42");
  assert.equal(r.choices[0].finish_reason, "stop");
  assert.equal(r.usage.total_tokens, r.usage.prompt_tokens + r.usage.completion_tokens);
});

await it("gives several choices, each again by its seed", async () => {
  const ask = (seed, n) => client.chat.completions.create({ model, messages: [{ role: "user", content: "Tell me a story about a fox." }], temperature: 1, seed, n, max_tokens: 24 });
  const many = await ask(7, 3);
  assert.deepEqual(many.choices.map((c) => c.index), [0, 1, 2]);
  const third = await ask(9, 1);
  assert.equal(third.choices[0].message.content, many.choices[2].message.content);
});

await it("streams, and the pieces make the whole", async () => {
  const stream = await client.chat.completions.create({ model, messages: sum, temperature: 0, stream: true, stream_options: { include_usage: true } });
  let content = "", thoughts = "", usage, finish, n = 0;
  for await (const chunk of stream) {
    n++;
    content += chunk.choices[0]?.delta.content ?? "";
    thoughts += chunk.choices[0]?.delta.reasoning_content ?? "";
    finish = chunk.choices[0]?.finish_reason ?? finish;
    usage = chunk.usage ?? usage;
  }
  assert.equal(content, "17 + 25 = 42\n\\boxed{42}");
  assert.equal(thoughts, "17 + 25 = 42");
  assert.equal(finish, "stop");
  assert.ok(usage.completion_tokens > 0 && n > 10);
});

await it("feeds the client's own stream helper", async () => {
  const stream = client.chat.completions.stream({ model, messages: product, tools, temperature: 0 });
  const calls = [];
  stream.on("tool_calls.function.arguments.done", (c) => calls.push([c.name, c.arguments]));
  const r = await stream.finalChatCompletion();
  assert.equal(r.choices[0].message.tool_calls[0].function.name, "calculator");
  assert.deepEqual(calls, [["calculator", '{"expression": "4821 * 37"}']]);
});

await it("runs tools to the end", async () => {
  const runner = client.chat.completions.runTools({ model, messages: product, temperature: 0,
    tools: [{ type: "function", function: { ...tools[0].function, parse: JSON.parse, function: ({ expression }) => String(eval(expression)) } }] });
  assert.match(await runner.finalContent(), /178377/);
});

await it("takes a turn with a tool's result", async () => {
  const first = await client.chat.completions.create({ model, messages: product, tools, temperature: 0 });
  const message = first.choices[0].message;
  assert.equal(first.choices[0].finish_reason, "tool_calls");
  const second = await client.chat.completions.create({ model, tools, temperature: 0,
    messages: [...product, message, { role: "tool", tool_call_id: message.tool_calls[0].id, content: "178377" }] });
  assert.match(second.choices[0].message.content, /178377/);
});

await it("forces the call of a tool", async () => {
  const ask = (tool_choice) => client.chat.completions.create({ model, messages: product, tools, temperature: 0, tool_choice });
  for (const choice of ["required", { type: "function", function: { name: "calculator" } }]) {
    const r = await ask(choice);
    const [call] = r.choices[0].message.tool_calls;
    assert.equal(call.function.name, "calculator");
    assert.equal(typeof JSON.parse(call.function.arguments).expression, "string");
  }
  assert.equal((await ask("none")).choices[0].message.tool_calls, undefined);
});

await it("keeps to a JSON schema", async () => {
  const schema = { type: "object", properties: { title: { type: "string", maxLength: 20 }, gold: { type: "integer", minimum: 1, maximum: 500 } },
    required: ["title", "gold"], additionalProperties: false };
  const r = await client.chat.completions.create({ model, messages: [{ role: "user", content: "Make up a quest." }],
    response_format: { type: "json_schema", json_schema: { name: "quest", schema, strict: true } } });
  const value = JSON.parse(r.choices[0].message.content);
  assert.deepEqual(Object.keys(value).sort(), ["gold", "title"]);
  assert.ok(Number.isInteger(value.gold) && value.gold >= 1 && value.gold <= 500);
});

await it("answers with a JSON object", async () => {
  const r = await client.chat.completions.create({ model, messages: [{ role: "user", content: "Make up a quest." }], max_tokens: 200,
    response_format: { type: "json_object" } });
  const value = JSON.parse(r.choices[0].message.content);
  assert.ok(value && typeof value === "object" && !Array.isArray(value));
});

await it("tells log-probabilities", async () => {
  const r = await client.chat.completions.create({ model, messages: sum, temperature: 0, logprobs: true, top_logprobs: 2 });
  const { content } = r.choices[0].logprobs;
  assert.equal(content.map((t) => t.token).join("").trim(), r.choices[0].message.content);
  for (const t of content) {
    assert.ok(t.logprob <= 0 && t.top_logprobs.length === 2 && t.top_logprobs[0].logprob === t.logprob);
    assert.equal(Buffer.from(t.bytes).toString(), t.token);
  }
});

await it("continues texts", async () => {
  const r = await client.completions.create({ model, prompt: ["2 + 2 =", "Hello"], max_tokens: 4, temperature: 0, logprobs: 1 });
  assert.equal(r.choices.length, 2);
  assert.equal(r.choices[0].logprobs.tokens.length, 4);
  let text = "";
  for await (const chunk of await client.completions.create({ model, prompt: "2 + 2 =", max_tokens: 4, temperature: 0, stream: true })) text += chunk.choices[0].text;
  assert.equal(text, r.choices[0].text);
});

await it("embeds texts, as numbers and as bytes", async () => {
  const numbers = await client.embeddings.create({ model, input: ["Hello", "What is 17 + 25?"], encoding_format: "float" });
  const bytes = await client.embeddings.create({ model, input: ["Hello", "What is 17 + 25?"] });
  assert.equal(numbers.data.length, 2);
  assert.equal(bytes.data[1].embedding.length, 256);
  numbers.data[1].embedding.forEach((v, i) => assert.ok(Math.abs(v - bytes.data[1].embedding[i]) < 1e-6));
});

await it("lists its models", async () => {
  const names = [];
  for await (const m of client.models.list()) names.push(m.id);
  assert.deepEqual(names, [model]);
  assert.equal((await client.models.retrieve(model)).id, model);
});

await it("refuses in the client's own classes of errors", async () => {
  const chat = (more, c = client) => c.chat.completions.create({ model, messages: sum, ...more });
  await assert.rejects(chat({}, new OpenAI({ baseURL: `${url}/v1`, apiKey: "wrong", maxRetries: 0 })), OpenAI.AuthenticationError);
  await assert.rejects(chat({ model: "other" }), OpenAI.NotFoundError);
  await assert.rejects(chat({ temperature: "hot" }), (e) => e instanceof OpenAI.BadRequestError && e.param === "temperature");
  await assert.rejects(chat({ messages: [{ role: "user", content: "word ".repeat(5000) }] }),
    (e) => e instanceof OpenAI.BadRequestError && e.code === "context_length_exceeded");
  await assert.rejects(chat({ messages: [{ role: "user", content: "word ".repeat(5000) }], stream: true }), OpenAI.BadRequestError);
  await assert.rejects(client.models.retrieve("other"), OpenAI.NotFoundError);
});

await it("hears back at once where there is nothing to compute", async () => {
  const times = [];
  for (let i = 0; i < 21; i++) {
    const began = performance.now();
    await (await fetch(`${url}/health`)).text();
    times.push(performance.now() - began);
  }
  assert.ok(times.sort((a, b) => a - b)[10] < 25, `median ${times[10]} ms`);
});

await it("stops when the client turns away", async () => {
  const running = async () => Number(/^fathom_requests_running (\d+)$/m.exec(
    await (await fetch(`${url}/metrics`, { headers: { authorization: `Bearer ${apiKey}` } })).text())[1]);
  const stream = await client.chat.completions.create({ model, messages: sum, stream: true, ignore_eos: true, max_tokens: 1500 });
  for await (const _ of stream) break;
  const controller = new AbortController();
  const whole = client.chat.completions.create({ model, messages: sum, ignore_eos: true, max_tokens: 1500 }, { signal: controller.signal });
  setTimeout(() => controller.abort(), 100);
  await assert.rejects(whole, OpenAI.APIUserAbortError);
  for (let i = 0; i < 200 && await running() > 0; i++) await new Promise((r) => setTimeout(r, 50));
  assert.equal(await running(), 0);
});
