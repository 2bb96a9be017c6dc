// api.js - talks to the server that gave this page; nothing else is ever asked for anything.

const KEY = "fathom.key";
let askForKey = async () => null;

/** Who asks a person for the key when the server answers 401: async () => string or null. */
export function onUnauthorized(f) { askForKey = f; }

/** What went wrong, in the server's words where it had some. */
export class ApiError extends Error {
  constructor(message, { status = 0, code, hint } = {}) {
    super(message);
    Object.assign(this, { status, code, hint });
  }
}

function headers(body) {
  const out = {};
  const key = sessionStorage.getItem(KEY);
  if (key) out.Authorization = `Bearer ${key}`;
  if (body !== undefined) out["Content-Type"] = "application/json";
  return out;
}

async function refusal(response) {
  let said = {};
  try { said = (await response.json()).error ?? {}; } catch { /* no JSON: the status must do */ }
  const message = said.message || `The server answered ${response.status} ${response.statusText}`.trim() + ".";
  return new ApiError(message, { status: response.status, code: said.code, hint: said.hint });
}

// One question at a time: several requests that are refused together wait for the same answer.
let asking = null;

async function request(path, { body, signal, again = true } = {}) {
  let response;
  try {
    response = await fetch(path, {
      method: body === undefined ? "GET" : "POST", headers: headers(body), signal,
      body: body === undefined ? undefined : JSON.stringify(body),
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server can't be reached. Is it still running?", { code: "network" });
  }
  if (response.status === 401 && again) {
    asking ??= askForKey().finally(() => { asking = null; });
    const key = await asking;
    if (key) {
      sessionStorage.setItem(KEY, key);
      return request(path, { body, signal, again: false });
    }
  }
  if (response.status === 401) sessionStorage.removeItem(KEY);
  if (!response.ok) throw await refusal(response);
  return response;
}

export const getJson = async (path, signal) => (await request(path, { signal })).json();
export const getText = async (path, signal) => (await request(path, { signal })).text();
export const postJson = async (path, body, signal) => (await request(path, { body, signal })).json();

// ---- server-sent events ------------------------------------------------------------------------------------

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      rest += value;
      const parts = rest.split(/\r?\n\r?\n/);
      rest = parts.pop();
      for (const part of parts) {
        const data = part.split(/\r?\n/).filter((l) => l.startsWith("data:")).map((l) => l.slice(5).trimStart());
        if (data.length) yield data.join("\n");
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

function takeCalls(reply, deltas) {
  for (const delta of deltas ?? []) {
    const call = reply.calls[delta.index ?? 0] ??= { id: "", name: "", arguments: "" };
    if (delta.id) call.id = delta.id;
    call.name += delta.function?.name ?? "";
    call.arguments += delta.function?.arguments ?? "";
  }
}

/** A reply before anything has come. */
export const emptyReply = () => ({ role: "assistant", think: "", content: "", calls: [], finish: null, usage: null });

/**
 * Streams one reply into `reply`, calling `changed` after every piece.
 * Times (ms): reply.waited until the first piece, reply.took in all, reply.thought inside the thoughts.
 */
export async function complete(body, reply, changed, signal) {
  const began = performance.now();
  const response = await request("/v1/chat/completions", {
    body: { ...body, stream: true, stream_options: { include_usage: true } }, signal,
  });
  let ended = false;
  try {
    for await (const data of events(response)) {
      if (data === "[DONE]") { ended = true; break; }
      const chunk = JSON.parse(data);
      if (chunk.error) throw new ApiError(chunk.error.message ?? "The server broke off.", chunk.error);
      const now = performance.now() - began;
      reply.waited ??= now;
      if (chunk.usage) reply.usage = chunk.usage;
      const choice = chunk.choices?.[0];
      if (!choice) continue;
      const delta = choice.delta ?? {};
      if (delta.reasoning_content) { reply.think += delta.reasoning_content; reply.thought = now; }
      if (delta.content) reply.content += delta.content;
      takeCalls(reply, delta.tool_calls);
      if (choice.finish_reason) reply.finish = choice.finish_reason;
      changed();
    }
  } catch (error) {
    if (error.name === "AbortError" || error instanceof ApiError) throw error;
    throw new ApiError("The connection broke off in the middle of the reply.", { code: "network" });
  } finally {
    reply.took = performance.now() - began;
  }
  if (!ended && !reply.finish) throw new ApiError("The connection ended before the reply did.", { code: "network" });
}
