/**
 * Client of lan-fer, the REST service that reads facial expressions from photos.
 *
 * Types come from the service's OpenAPI document (schema.ts, generated). It needs nothing but `fetch`:
 * a browser, Node 20 or newer, Deno, Bun.
 */
import type { Problem } from "./errors.js";
import {
  answers,
  checked,
  isModelReply,
  isPredictReply,
  isStatus,
  type Outcome,
  parsed,
  picture,
  type Reply,
  retryAfter,
  TooLongError,
  whole,
} from "./replies.js";
import type { components, paths } from "./schema.js";

export { BadReplyError, ConnectionFailedError, type Problem, ProblemError } from "./errors.js";

type Schemas = components["schemas"];
export type PredictReply = Schemas["PredictReply"];
export type FaceReply = Schemas["FaceReply"];
export type ModelReply = Schemas["ModelReply"];
/** How to read a photo; what is left out is left to the service. */
export type PredictOptions = NonNullable<paths["/predict"]["post"]["parameters"]["query"]>;
export type PictureType = "image/jpeg" | "image/png";

/** How often to send a request, and how patiently; waits in milliseconds. */
export interface Retries {
  /** In all; 1 never sends again. */
  readonly attempts: number;
  /** Doubles with each attempt, where the reply does not say how long to wait. */
  readonly firstWaitMs: number;
  /** No single wait is longer; a reply that asks for a longer one is given to the caller. */
  readonly longestWaitMs: number;
}

export interface ClientSettings {
  readonly baseUrl: string;
  readonly apiKey?: string;
  /** Of each attempt, from sending to the end of the reply. */
  readonly timeoutMs?: number;
  readonly retries?: Partial<Retries>;
}

const DEFAULT_TIMEOUT_MS = 60_000; // the service's own deadline is 30 seconds
const DEFAULT_RETRIES: Retries = { attempts: 5, firstWaitMs: 250, longestWaitMs: 30_000 };
// Full for now, a proxy without a server behind it, starting or stopping.
const RETRIED_STATUSES: ReadonlySet<number> = new Set([429, 502, 503]);
const UNAVAILABLE = 503;
const JSON_TYPE = "application/json";

interface Call {
  readonly method: "GET" | "POST";
  readonly path: string;
  readonly options?: PredictOptions;
  readonly photos?: readonly Blob[];
  readonly accept?: string;
}

export class Client {
  readonly #baseUrl: string;
  readonly #headers: Readonly<Record<string, string>>;
  readonly #timeoutMs: number;
  readonly #retries: Retries;

  /** Throws TypeError where `baseUrl` does not begin with http:// or https://. */
  constructor(settings: ClientSettings) {
    if (!/^https?:\/\/[^/]/i.test(settings.baseUrl)) {
      const wrong = JSON.stringify(settings.baseUrl);
      throw new TypeError(`baseUrl is an address such as http://127.0.0.1:8000, not ${wrong}`);
    }
    this.#baseUrl = settings.baseUrl.replace(/\/+$/, "");
    this.#headers = settings.apiKey === undefined ? {} : { "X-API-Key": settings.apiKey };
    this.#timeoutMs = settings.timeoutMs ?? DEFAULT_TIMEOUT_MS;
    this.#retries = { ...DEFAULT_RETRIES, ...settings.retries };
  }

  /** The faces in one photo. Throws ProblemError, ConnectionFailedError and BadReplyError. */
  async predict(photo: Blob, options: PredictOptions = {}): Promise<PredictReply> {
    const call: Call = { method: "POST", path: "/predict", photos: [photo], options };
    return await parsed(await this.#send(call), isPredictReply);
  }

  /** A reply, or what is wrong, for each photo in order, in one call. Throws as predict. */
  async predictBatch(
    photos: readonly Blob[],
    options: PredictOptions = {},
  ): Promise<(PredictReply | Problem)[]> {
    const call: Call = { method: "POST", path: "/predict/batch", photos, options };
    return await answers(await this.#send(call), photos.length);
  }

  /** The photo with everything drawn on it, as an image file. Throws as predict. */
  async draw(
    photo: Blob,
    options: PredictOptions = {},
    accept: PictureType = "image/jpeg",
  ): Promise<Blob> {
    const call: Call = { method: "POST", path: "/predict", photos: [photo], options, accept };
    return await picture(await this.#send(call), accept);
  }

  /** What is being served: labels, contract, licences. Throws as predict. */
  async model(): Promise<ModelReply> {
    return await parsed(await this.#send({ method: "GET", path: "/model" }), isModelReply);
  }

  /**
   * Whether it takes photos; asked once. Throws ConnectionFailedError without a reply, ProblemError and
   * BadReplyError for another's.
   */
  async isReady(): Promise<boolean> {
    const outcome = await this.#once({ method: "GET", path: "/health/ready" });
    if ("reply" in outcome && outcome.reply.head.status === UNAVAILABLE) return false;
    return (await parsed(await checked(outcome), isStatus)).status === "ready";
  }

  async #send(call: Call): Promise<Reply> {
    for (let attempt = 1; ; attempt++) {
      const outcome = await this.#once(call);
      const wait = waitAfter(this.#retries, attempt, outcome);
      if (wait === undefined) return await checked(outcome);
      await new Promise((resolve) => setTimeout(resolve, wait));
    }
  }

  async #once(call: Call): Promise<Outcome> {
    const url = new URL(this.#baseUrl + call.path);
    for (const [name, value] of Object.entries(call.options ?? {})) {
      if (value !== undefined && value !== null) url.searchParams.set(name, String(value));
    }
    const accept = call.accept ?? JSON_TYPE;
    try {
      const head = await fetch(url, {
        method: call.method,
        headers: { ...this.#headers, Accept: accept },
        body: call.photos === undefined ? null : formOf(call.photos),
        redirect: "manual", // else the key and the photos would go along to any other host
        signal: AbortSignal.timeout(this.#timeoutMs),
      });
      return { reply: await whole(head, accept !== JSON_TYPE) };
    } catch (failure) {
      return { failure };
    }
  }
}

function formOf(photos: readonly Blob[]): FormData {
  const form = new FormData();
  for (const photo of photos) form.append("file", photo, "photo");
  return form;
}

/** Milliseconds to wait after the given attempt (from 1); undefined where it was the last. */
function waitAfter(retries: Retries, attempt: number, outcome: Outcome): number | undefined {
  if (attempt >= retries.attempts) return undefined;
  if ("reply" in outcome) {
    if (!RETRIED_STATUSES.has(outcome.reply.head.status)) return undefined;
    const asked = retryAfter(outcome.reply.head);
    if (asked !== undefined) return asked * 1000 <= retries.longestWaitMs ? asked * 1000 : undefined;
  } else if (isFinal(outcome.failure)) {
    return undefined;
  }
  const wait = Math.min(retries.longestWaitMs, retries.firstWaitMs * 2 ** (attempt - 1));
  // Half of it is left to chance: clients refused together must not come back together.
  return wait * (0.5 + Math.random() / 2);
}

/** A reply that was late or too long would not be better a second time. */
function isFinal(failure: unknown): boolean {
  const isLate = failure instanceof DOMException && failure.name === "TimeoutError";
  return isLate || failure instanceof TooLongError;
}
