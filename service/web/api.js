/** Talking to the service, and saying its problems in words. */

/**
 * What went wrong, in words for people. `passing`: trying the same again may help; retryAfter is
 * the time until then in seconds, or null.
 */
export class Trouble extends Error {
  constructor(message, { passing = true, retryAfter = null } = {}) {
    super(message);
    this.passing = passing;
    this.retryAfter = retryAfter;
  }
}

// Of those that put the request at fault, but not for good.
const PASSING = [408, 429];

const TYPE_PREFIX = "urn:problem-type:lan-fer:";
const IN_WORDS = {
  "empty-body": "The file is empty.",
  "slow-request": "The upload was too slow.",
  "payload-too-large": "The file is too large.",
  "image-too-large": "The photo has too many pixels; make it smaller.",
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

/** The command that gets the same answer in a POSIX shell. */
export function curlLine(name, options) {
  const plain = /^[^",;\\]*$/.test(name);
  const path = plain ? name : `"${name.replace(/["\\]/g, "\\$&")}"`;
  return `curl --form ${quoted(`file=@${path}`)} ${quoted(predictAddress(options).href)}`;
}

function quoted(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

async function fetchJson(address, init) {
  let response;
  try {
    response = await fetch(address, { ...init, headers: { Accept: "application/json" } });
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
  const said = [
    IN_WORDS[problem.type?.replace(TYPE_PREFIX, "")] ?? problem.title ?? "The service failed.",
    problem.detail ?? `It answered with status ${response.status}.`,
  ];
  if (response.status === 500 && problem.request_id) said.push(`Request ${problem.request_id}.`);
  if (retryAfter > 0) said.push(`Try again in ${retryAfter} s.`);
  return new Trouble(said.join(" "), {
    passing: response.status >= 500 || PASSING.includes(response.status),
    retryAfter: retryAfter > 0 ? retryAfter : null,
  });
}

/** JSON as people read it: indented, with rows of numbers on one line. */
export function prettyJson(value) {
  return JSON.stringify(value, null, 2).replace(/\[[-\d.,e\s]+\]/g, (row) =>
    row.replace(/\s+/g, " ").replace("[ ", "[").replace(" ]", "]"));
}
