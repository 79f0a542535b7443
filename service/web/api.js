/** Talking to the service, and saying its problems in words. */

/**
 * What went wrong, in words for people. `passing`: trying the same again may help; retryAfter is
 * the time until then in seconds, or null; needsKey: it takes an API key, or another one.
 */
export class Trouble extends Error {
  constructor(message, { passing = true, retryAfter = null, needsKey = false } = {}) {
    super(message);
    this.passing = passing;
    this.retryAfter = retryAfter;
    this.needsKey = needsKey;
  }
}

// Of those that put the request at fault, but not for good.
const PASSING = [408, 429];
const KEY_STATUSES = [401, 403];
const KEY_HEADER = "X-API-Key";
const KEY_STORE = "api-key"; // of this tab alone, and gone with it

const TYPE_PREFIX = "urn:problem-type:lan-fer:";
// Every problem that the service knows; a test holds the two together.
const IN_WORDS = {
  "missing-key": "This service asks for an API key; whoever runs it can give you one.",
  "unknown-key": "The service does not know this API key.",
  "rate-limited": "This API key has been used as often as it may for now.",
  "empty-body": "The file is empty.",
  "malformed-request": "The photo did not reach the service in one piece.",
  "missing-image": "No photo reached the service.",
  "invalid-option": "The service does not take what was asked for.",
  "not-acceptable": "The service cannot answer in the way this page reads.",
  "headers-too-large": "The browser sent too many headers; cookies of this address may be the cause.",
  "unknown-model": "The service runs another network than was asked for.",
  "slow-request": "The upload was too slow.",
  "payload-too-large": "The file is too large.",
  "image-too-large": "The photo has too many pixels; make it smaller.",
  "too-many-images": "These are more photos at once than the service takes.",
  "unsupported-media-type": "This is no picture the service can read.",
  "invalid-image": "The picture is broken or cut off.",
  "overloaded": "The service is busy.",
  "unavailable": "The service is not ready.",
  "deadline-exceeded": "The answer took too long.",
  "inference-failed": "The service failed on this photo.",
  "unexpected-error": "The service failed.",
};
const NO_ANSWER = "The service does not answer: it may have stopped, the connection may be broken, " +
  "or it hung up because the file is too large.";

/** The reply of POST /predict to a File. Throws Trouble, or AbortError where `signal` says so. */
export function predict(photo, options, signal) {
  const body = new FormData();
  body.append("file", photo, photo.name);
  return fetchJson(predictAddress(options), { method: "POST", body, signal });
}

/** The reply of GET /model. Throws Trouble. */
export function describeModel() {
  return fetchJson(new URL("model", document.baseURI), {});
}

/** The address that predict() asks. */
export function predictAddress(options) {
  const address = new URL("predict", document.baseURI);
  address.search = new URLSearchParams(options).toString();
  return address;
}

/** Send this API key from now on. */
export function useKey(key) {
  sessionStorage.setItem(KEY_STORE, key);
}

function keyHeader() {
  const key = sessionStorage.getItem(KEY_STORE);
  return key ? { [KEY_HEADER]: key } : {};
}

/** The command that gets the same answer in a POSIX shell; an API key is not in it. */
export function curlLine(name, options) {
  const plain = /^[^",;\\]*$/.test(name);
  const path = plain ? name : `"${name.replace(/["\\]/g, "\\$&")}"`;
  const key = keyHeader()[KEY_HEADER] ? `--header "${KEY_HEADER}: $API_KEY" ` : "";
  return `curl ${key}--form ${quoted(`file=@${path}`)} ${quoted(predictAddress(options).href)}`;
}

function quoted(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

async function fetchJson(address, init) {
  let response;
  try {
    const headers = { Accept: "application/json", ...keyHeader() };
    response = await fetch(address, { ...init, headers });
    if (response.ok) return await response.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Trouble(NO_ANSWER);
  }
  throw await troubleOf(response);
}

async function troubleOf(response) {
  const retryAfter = Number.parseInt(response.headers.get("Retry-After"), 10);
  const problem = await response.json().catch(() => ({}));
  const needsKey = KEY_STATUSES.includes(response.status);
  const said = [
    IN_WORDS[problem.type?.replace(TYPE_PREFIX, "")] ?? problem.title ?? "The service failed.",
  ];
  // Of a key it tells which header it belongs in: nothing for people.
  if (!needsKey) said.push(problem.detail ?? `It answered with status ${response.status}.`);
  if (response.status === 500 && problem.request_id) said.push(`Request ${problem.request_id}.`);
  return new Trouble(said.join(" "), {
    passing: needsKey || response.status >= 500 || PASSING.includes(response.status),
    retryAfter: retryAfter > 0 ? retryAfter : null,
    needsKey,
  });
}

/** JSON as people read it: indented, with rows of numbers on one line. */
export function prettyJson(value) {
  return JSON.stringify(value, null, 2).replace(/\[[-\d.,e\s]+\]/g, (row) =>
    row.replace(/\s+/g, " ").replace("[ ", "[").replace(" ]", "]"));
}
