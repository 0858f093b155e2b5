/** Requests to the server of this page. Paths are relative to the page, so no other host is ever asked. */

const TOKEN = "ptexport-token";

/** An answer that is no success. The message is the server's own sentence. */
export class Refusal extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** Keep a bearer token for as long as this tab is open. */
export function keepToken(token) {
  sessionStorage.setItem(TOKEN, token);
}

/**
 * Send one request.
 * @param {string} path relative, such as "v2/models".
 * @param {{body?: object, signal?: AbortSignal}} options with a body: POST, else GET.
 * @returns {Promise<{text: string, took: number, headers: Headers}>} took: milliseconds until the whole body was here.
 * @throws {Refusal} any status but success; status 0: no answer. An abort is thrown as it is.
 */
export async function send(path, { body, signal } = {}) {
  const headers = {};
  const token = sessionStorage.getItem(TOKEN);
  if (token) headers.authorization = `Bearer ${token}`;
  if (body) headers["content-type"] = "application/json";
  const started = performance.now();
  const request = { method: body ? "POST" : "GET", headers, signal, cache: "no-store", redirect: "error" };
  if (body) request.body = JSON.stringify(body);
  let response, text;
  try {
    response = await fetch(path, request);
    text = await response.text();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal(0, "server: no answer, need one that runs; start it again or wait");
  }
  if (!response.ok) throw new Refusal(response.status, sentence(response, text));
  return { text, took: performance.now() - started, headers: response.headers };
}

/** Send a request whose answer is JSON, and return the answer. */
export async function read(path, options) {
  return JSON.parse((await send(path, options)).text);
}

/** The server's sentence; with 429 also when to try again. */
function sentence(response, text) {
  let said = `server: status ${response.status}`;
  try {
    said = JSON.parse(text).error ?? said;
  } catch {
    // A proxy between may answer with a page of its own.
  }
  const wait = response.headers.get("retry-after");
  return response.status === 429 && wait ? `${said}. Try again in ${wait} s.` : said;
}
