// mock.mjs - a server that speaks the contract of the page and misbehaves on request: for cases that a real one seldom shows.
// usage: node spec/page/mock.mjs [PORT]   (opens on 127.0.0.1; the test starts it inside its own process)
import http from "node:http";
import { readFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";

const folder = fileURLToPath(new URL("../../lua/fathom/serve/page", import.meta.url));
const types = { html: "text/html; charset=utf-8", css: "text/css; charset=utf-8", js: "text/javascript; charset=utf-8", svg: "image/svg+xml" };
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

export const nasty = '<img src=x onerror="window.hacked = 1"><script>window.hacked = 2</' + "script>";

// What the model "says": { think, content, calls, breakAfter, slow }.
function script(messages) {
  const last = messages.at(-1);
  const asked = messages.filter((m) => m.role === "user").at(-1)?.content ?? "";
  if (last.role === "tool") return { content: `The result is ${last.content}.` };
  if (asked.includes("broken")) return { think: "It goes well so far", breakAfter: 3, content: "never seen" };
  if (asked.includes("refused")) return { status: 400, error: { message: "max_tokens must be 0 or more, got -1", hint: "leave it out", type: "invalid_request_error" } };
  if (asked.includes("nasty")) return { think: nasty, content: nasty + "\n\n```html\n" + nasty + "\n```" };
  if (asked.includes("slow")) return { think: "One moment. ".repeat(2000), content: "done", slow: 2 };
  if (asked.includes("rich")) {
    return { think: "A list, a fence, a box.", content: "# Steps\n\n- first `a`\n- then **b**\n\n```lua\nlocal x = 1 < 2\n```\n\n1. one\n2. two\n\n> said\n\n\\boxed{42}" };
  }
  if (messages.some((m) => m.role === "system" && m.content.includes("calls"))) {
    return { think: "I use both tools.", calls: [["calculator", { expression: "4821 * 37" }], ["get_time", { city: "Oslo" }]] };
  }
  return { think: "17 + 25 = 42", content: "17 + 25 = 42\n\\boxed{42}" };
}

async function complete(body, response, closed) {
  const said = script(body.messages);
  if (said.error) { json(response, { error: said.error }, said.status); return; }
  response.writeHead(200, { "Content-Type": "text/event-stream" });
  const send = (delta, more = {}) => response.write(`data: ${JSON.stringify({ choices: [{ index: 0, delta, ...more }] })}\n\n`);
  let n = 0;
  const speak = async (text, name) => {
    for (const piece of text.match(/\s*\S+|\s+/g) ?? []) {
      if (closed()) return;
      if (said.breakAfter && ++n > said.breakAfter) {
        await pause(400);   // a broken connection may take with it what a browser has not read
        response.destroy();
        return;
      }
      send({ [name]: piece });
      await pause(said.slow ?? 2);
    }
  };
  await speak(said.think ?? "", "reasoning_content");
  if (response.destroyed) return;
  await speak(said.content ?? "", "content");
  (said.calls ?? []).forEach(([name, args], index) => {
    send({ tool_calls: [{ index, id: `call_${index}`, type: "function", function: { name, arguments: "" } }] });
    send({ tool_calls: [{ index, function: { arguments: JSON.stringify(args) } }] });
  });
  send({}, { finish_reason: said.calls ? "tool_calls" : "stop" });
  response.write(`data: ${JSON.stringify({ choices: [], usage: { prompt_tokens: 30, completion_tokens: 24, total_tokens: 54, prompt_tokens_details: { cached_tokens: 20 } } })}\n\n`);
  response.end("data: [DONE]\n\n");
}

// The last answer is the best one, in both of the judge's ways.
function judge({ answers, votes, mode }) {
  const n = answers.length, usual = { winner: n, order: answers.map((_, i) => n - i), agreement: 0.81, flip_rate: 0.04, abstention: 0 };
  if (mode === "score") {
    const scores = answers.map((_, i) => 2 + 8 * i / n);
    return { ...usual, scores, votes: scores.map((s) => Array.from({ length: votes }, (_, k) =>
      (k % 7 === 6 ? { text: "?" } : { text: `Score: ${s}`, score: Math.max(1, Math.round(s) + (k % 3) - 1) }))) };
  }
  const matches = answers.flatMap((_, i) => answers.slice(i + 1).map((_, j) =>
    ({ first: i + 1, second: i + j + 2, counts: { a: 1, b: 2 * votes - 1 }, winner: "b", flip_rate: 0.04 })));
  const share = (k) => matches.reduce((sum, m) => sum + (m.first === k ? m.counts.a : m.second === k ? m.counts.b : 0), 0) / (2 * votes * (n - 1));
  return { ...usual, scores: answers.map((_, i) => share(i + 1)), matches };
}

export const trace = [
  { id: 2, parent: 1, kind: "generate", at: 1790000000, begun_ms: 1002, ms: 240, messages: [{ role: "user", content: "What is 4821 * 37?" }],
    think: "I use the calculator.", ids: [5, 6, 7], options: { temperature: 0.6, seed: 11 }, finish: "tool", usage: { prompt: 40, completion: 22 },
    tool_calls: [{ name: "calculator", arguments: { expression: "4821 * 37" } }] },
  { id: 3, parent: 1, kind: "tool", at: 1790000000, begun_ms: 1250, ms: 3.2, name: "calculator", args: { expression: "4821 * 37" }, result: "178377" },
  { id: 4, parent: 1, kind: "generate", at: 1790000000, begun_ms: 1260, ms: 90, answer: nasty, finish: "stop" },
  { id: 6, parent: 5, kind: "generate", at: 1790000001, begun_ms: 1420, ms: 130, err: { code: "limit", message: "out of tokens" } },
  { id: 5, parent: 1, kind: "judge", at: 1790000001, begun_ms: 1410, ms: 160, votes: [{ score: 9 }, { score: 10 }], agreement: 0.5 },
  { id: 1, kind: "agent", at: 1790000000, begun_ms: 1000, ms: 600, name: "sums" },
];

function json(response, value, status = 200) {
  response.writeHead(status, { "Content-Type": "application/json" });
  response.end(JSON.stringify(value));
}

/** Starts the server; options: { key, port }. Gives { url, seen (requests), close() }. */
export async function start({ key, port = 0 } = {}) {
  const seen = [];
  const server = http.createServer(async (request, response) => {
    const path = request.url.split("?")[0];
    const name = path === "/" ? "index.html" : path.slice(1);
    const type = /^[a-z]+\.(html|css|js|svg)$/.exec(name);
    if (type) {
      response.writeHead(200, { "Content-Type": types[type[1]], "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'none'" });
      response.end(await readFile(`${folder}/${name}`));
      return;
    }
    if (key && request.headers.authorization !== `Bearer ${key}`) {
      json(response, { error: { message: "Incorrect API key provided.", type: "invalid_request_error", code: "invalid_api_key" } }, 401);
      return;
    }
    let text = "";
    for await (const part of request) text += part;
    const body = text ? JSON.parse(text) : undefined;
    const entry = { path, body, closed: false };
    seen.push(entry);
    response.on("close", () => { entry.closed = true; entry.whole = response.writableFinished; });
    if (path === "/v1/chat/completions") await complete(body, response, () => entry.closed);
    else if (path === "/v1/judge") { await pause(50); json(response, judge(body)); }
    else if (path === "/v1/models") json(response, { object: "list", data: [{ id: "mock", object: "model" }] });
    else if (path === "/health") json(response, { status: "ok" });
    else if (path === "/traces") json(response, { traces: [{ name: "odd name #1.jsonl", bytes: 1234, modified: 1790000000 }] });
    else if (path.startsWith("/traces/")) response.end(trace.map((s) => JSON.stringify(s)).join("\n") + "\nno span\n");
    else json(response, { error: { message: "no such path" } }, 404);
  });
  await new Promise((resolve) => server.listen(port, "127.0.0.1", resolve));
  return { url: `http://127.0.0.1:${server.address().port}`, seen, close: () => { server.closeAllConnections(); server.close(); } };
}

if (process.argv[1] === fileURLToPath(import.meta.url)) console.log((await start({ port: Number(process.argv[2] ?? 0) })).url);
