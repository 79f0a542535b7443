/** What the client makes of what comes back, which may be anyone's: a proxy's, a login page. */
import { BadReplyError, ConnectionFailedError, printable, type Problem, ProblemError } from "./errors.js";
import type { components } from "./schema.js";

type Schemas = components["schemas"];

/** A reply that has come whole. */
export interface Reply {
  readonly head: Response;
  readonly body: Blob;
}

/** Of one attempt. */
export type Outcome = { readonly reply: Reply } | { readonly failure: unknown };

const MEBIBYTE = 1024 * 1024;
const MAX_JSON_BYTES = 64 * MEBIBYTE; // many photos of many faces, all with overlays, come to some 35
const MAX_PICTURE_BYTES = 128 * MEBIBYTE; // twice what the service sends
const MAX_JSON_PARTS = 1_000_000; // commas and brackets: a face has some 200
const MAX_EXCERPT = 200; // characters
const REDIRECTS: ReadonlySet<number> = new Set([301, 302, 303, 307, 308]);

/** It would be as long a second time. */
export class TooLongError extends Error {}

/** Reads a reply to its end. Throws TooLongError, and what fetch throws. */
export async function whole(head: Response, wantsPicture: boolean): Promise<Reply> {
  const most = wantsPicture && head.ok ? MAX_PICTURE_BYTES : MAX_JSON_BYTES;
  const reader = head.body?.getReader();
  const pieces: BlobPart[] = [];
  let size = 0;
  for (;;) {
    const { value: piece } = (await reader?.read()) ?? {};
    if (piece === undefined) return { head, body: new Blob(pieces) };
    size += piece.byteLength;
    if (size > most) {
      reader?.cancel().catch(() => undefined);
      throw new TooLongError(`a reply of more than ${most / MEBIBYTE} MiB`);
    }
    pieces.push(piece);
  }
}

/** A reply that is no error. Throws ConnectionFailedError and ProblemError. */
export async function checked(outcome: Outcome): Promise<Reply> {
  if ("failure" in outcome) {
    const reason = printable(reasonOf(outcome.failure));
    throw new ConnectionFailedError(`no reply from the service: ${reason}`, { cause: outcome.failure });
  }
  const { reply } = outcome;
  if (reply.head.ok) return reply;
  throw new ProblemError(await problemOf(reply), retryAfter(reply.head));
}

/** What the body says. Throws BadReplyError where that is not what the service answers. */
export async function parsed<T>(reply: Reply, isExpected: (value: unknown) => value is T): Promise<T> {
  const value = valueOf(await reply.body.text());
  if (isExpected(value)) return value;
  throw bad(reply, `it begins with '${await excerpt(reply)}'`);
}

/** The body, an image file. Throws BadReplyError where it says that it is something else. */
export async function picture(reply: Reply, mediaType: string): Promise<Blob> {
  if (contentType(reply).split(";")[0]?.trim().toLowerCase() !== mediaType) {
    throw bad(reply, `no ${mediaType}; it begins with '${await excerpt(reply)}'`);
  }
  return reply.body.slice(0, reply.body.size, mediaType);
}

/** A reply or a problem for each of so many photos. Throws BadReplyError. */
export async function answers(
  reply: Reply,
  photos: number,
): Promise<(Schemas["PredictReply"] | Problem)[]> {
  const { results } = await parsed(reply, isBatchReply);
  const given = results.map((item) => item.reply ?? item.problem).filter((answer) => answer !== null);
  if (given.length !== photos || results.length !== photos) {
    throw bad(reply, `${given.length} answers for ${photos} photos`);
  }
  return given;
}

/** Seconds in the header Retry-After, a number or a date; undefined where it is neither. */
export function retryAfter(head: Response): number | undefined {
  const text = head.headers.get("retry-after")?.trim() ?? "";
  if (/^\d+$/.test(text)) return Number(text);
  // Date.parse takes anything for a date, "1.5" and "-1" among them.
  const moment = /^[A-Z][a-z]+, .* GMT$/.test(text) ? Date.parse(text) : NaN;
  return Number.isNaN(moment) ? undefined : Math.max(0, (moment - Date.now()) / 1000);
}

async function problemOf(reply: Reply): Promise<Problem> {
  const { status, statusText, headers, type } = reply.head;
  // A browser hides where a redirect leads, and even its status.
  if (type === "opaqueredirect" || (REDIRECTS.has(status) && headers.has("location"))) {
    const where = printable(headers.get("location") ?? "elsewhere", MAX_EXCERPT);
    const detail = `redirects are not followed; give the final address, this one leads to ${where}`;
    return foreign(reply, statusText || "Redirect", detail);
  }
  const value = valueOf(await reply.body.text());
  if (isProblem(value)) return value;
  return foreign(reply, statusText || "Unknown Error", await excerpt(reply));
}

/** Not the service's: a proxy between here and there. */
function foreign({ head }: Reply, title: string, detail: string): Problem {
  return {
    type: "about:blank",
    title: printable(title, MAX_EXCERPT),
    status: head.status,
    detail,
    request_id: printable(head.headers.get("x-request-id") ?? "", MAX_EXCERPT),
  };
}

function bad(reply: Reply, reason: string): BadReplyError {
  return new BadReplyError(reason, reply.head.status, contentType(reply));
}

function contentType(reply: Reply): string {
  return reply.head.headers.get("content-type") ?? "";
}

async function excerpt(reply: Reply): Promise<string> {
  // Four bytes are the most that a character of UTF-8 has.
  return printable(await reply.body.slice(0, 4 * (MAX_EXCERPT + 1)).text(), MAX_EXCERPT);
}

function reasonOf(failure: unknown): string {
  if (!(failure instanceof Error)) return String(failure);
  return failure.cause instanceof Error && failure.cause.message ? failure.cause.message : failure.message;
}

/** What a text in JSON says; undefined where it is none, or where it would take gigabytes. */
function valueOf(text: string): unknown {
  let parts = 0;
  for (let i = 0; i < text.length; i++) {
    const character = text[i];
    if (character === "," || character === "[" || character === "{") parts++;
  }
  if (parts > MAX_JSON_PARTS) return undefined;
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

// --- the outer shape of what the service answers -------------------------------------------------

type Fields = Readonly<Record<string, unknown>>;

function isFields(value: unknown): value is Fields {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

export function isPredictReply(value: unknown): value is Schemas["PredictReply"] {
  return (
    isFields(value) &&
    isFields(value.model) &&
    isFields(value.image) &&
    Array.isArray(value.faces) &&
    value.faces.every(isFields)
  );
}

function isBatchReply(value: unknown): value is Schemas["BatchReply"] {
  return isFields(value) && Array.isArray(value.results) && value.results.every(isItem);
}

function isItem(value: unknown): boolean {
  if (!isFields(value)) return false;
  const answer = value.reply ?? value.problem;
  return answer === null || isPredictReply(answer) || isProblem(answer);
}

export function isModelReply(value: unknown): value is Schemas["ModelReply"] {
  return isFields(value) && isFields(value.classifier) && isFields(value.detector);
}

export function isStatus(value: unknown): value is Schemas["Status"] {
  return isFields(value) && (value.status === "ready" || value.status === "live");
}

function isProblem(value: unknown): value is Problem {
  return (
    isFields(value) &&
    typeof value.status === "number" &&
    ["type", "title", "detail", "request_id"].every((name) => typeof value[name] === "string")
  );
}
