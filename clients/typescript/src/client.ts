/**
 * Client of lan-fer, the REST service that reads facial expressions from photos.
 *
 * Types come from the service's OpenAPI document (schema.ts, generated). It needs nothing but `fetch`:
 * a browser, Node 20 or newer, Deno, Bun.
 */
import type { components, paths } from "./schema.js";

type Schemas = components["schemas"];
export type PredictReply = Schemas["PredictReply"];
export type FaceReply = Schemas["FaceReply"];
export type ModelReply = Schemas["ModelReply"];
export type Problem = Schemas["Problem"];
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
const MAX_FOREIGN_TEXT = 200;

/** The service, or a proxy before it, answered with an error. */
export class ProblemError extends Error {
  override readonly name = "ProblemError";

  constructor(
    readonly problem: Problem,
    /** After how many seconds the service asks to try again; undefined where it does not. */
    readonly retryAfterSeconds: number | undefined,
  ) {
    super(`${problem.status} ${problem.title}: ${problem.detail}`);
  }

  /** The last part of the problem's type, as "image-too-large"; it never changes. */
  get kind(): string {
    return this.problem.type.slice(this.problem.type.lastIndexOf(":") + 1);
  }
}

/** No reply came in any attempt: refused, broken off, or not in time. `cause` says which. */
export class ConnectionFailedError extends Error {
  override readonly name = "ConnectionFailedError";
}

interface Call {
  readonly method: "GET" | "POST";
  readonly path: string;
  readonly options?: PredictOptions;
  readonly photos?: readonly Blob[];
  readonly accept?: string;
}

type Outcome = { readonly response: Response } | { readonly failure: unknown };

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

  /** The faces in one photo. Throws ProblemError and ConnectionFailedError. */
  async predict(photo: Blob, options: PredictOptions = {}): Promise<PredictReply> {
    const call: Call = { method: "POST", path: "/predict", photos: [photo], options };
    return (await (await this.#send(call)).json()) as PredictReply;
  }

  /** A reply, or what is wrong, for each photo in order, in one call. Throws as predict. */
  async predictBatch(
    photos: readonly Blob[],
    options: PredictOptions = {},
  ): Promise<(PredictReply | Problem)[]> {
    const call: Call = { method: "POST", path: "/predict/batch", photos, options };
    const reply = (await (await this.#send(call)).json()) as Schemas["BatchReply"];
    return reply.results.map(({ reply, problem }) => {
      const answer = reply ?? problem;
      if (answer === null) throw new TypeError("an item with neither a reply nor a problem");
      return answer;
    });
  }

  /** The photo with everything drawn on it, as an image file. Throws as predict. */
  async draw(
    photo: Blob,
    options: PredictOptions = {},
    accept: PictureType = "image/jpeg",
  ): Promise<Blob> {
    const call: Call = { method: "POST", path: "/predict", photos: [photo], options, accept };
    return await (await this.#send(call)).blob();
  }

  /** What is being served: labels, contract, licences. Throws as predict. */
  async model(): Promise<ModelReply> {
    return (await (await this.#send({ method: "GET", path: "/model" })).json()) as ModelReply;
  }

  /** Whether it takes photos; asked once. Throws ConnectionFailedError without a reply. */
  async isReady(): Promise<boolean> {
    const outcome = await this.#once({ method: "GET", path: "/health/ready" });
    if ("response" in outcome && outcome.response.status === UNAVAILABLE) return false;
    await checked(outcome);
    return true;
  }

  async #send(call: Call): Promise<Response> {
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
    try {
      const response = await fetch(url, {
        method: call.method,
        headers: { ...this.#headers, Accept: call.accept ?? "application/json" },
        body: call.photos === undefined ? null : formOf(call.photos),
        signal: AbortSignal.timeout(this.#timeoutMs),
      });
      return { response };
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
  if ("response" in outcome) {
    if (!RETRIED_STATUSES.has(outcome.response.status)) return undefined;
    const asked = retryAfter(outcome.response);
    if (asked !== undefined) return asked * 1000 <= retries.longestWaitMs ? asked * 1000 : undefined;
  } else if (isTimeout(outcome.failure)) {
    return undefined; // a reply that was late would not come sooner a second time
  }
  const wait = Math.min(retries.longestWaitMs, retries.firstWaitMs * 2 ** (attempt - 1));
  // Half of it is left to chance: clients refused together must not come back together.
  return wait * (0.5 + Math.random() / 2);
}

/** Seconds in the header Retry-After, a number or a date; undefined where it is neither. */
function retryAfter(response: Response): number | undefined {
  const text = response.headers.get("retry-after")?.trim() ?? "";
  if (/^\d+$/.test(text)) return Number(text);
  const moment = Date.parse(text);
  return Number.isNaN(moment) ? undefined : Math.max(0, (moment - Date.now()) / 1000);
}

function isTimeout(failure: unknown): boolean {
  return failure instanceof DOMException && failure.name === "TimeoutError";
}

async function checked(outcome: Outcome): Promise<Response> {
  if ("failure" in outcome) {
    throw new ConnectionFailedError("no reply from the service", { cause: outcome.failure });
  }
  if (outcome.response.ok) return outcome.response;
  throw new ProblemError(await problemOf(outcome.response), retryAfter(outcome.response));
}

async function problemOf(response: Response): Promise<Problem> {
  const text = await response.text();
  if (response.headers.get("content-type")?.startsWith("application/problem+json")) {
    return JSON.parse(text) as Problem;
  }
  // Not the service's: a proxy between here and there.
  return {
    type: "about:blank",
    title: response.statusText,
    status: response.status,
    detail: text.slice(0, MAX_FOREIGN_TEXT),
    request_id: response.headers.get("x-request-id") ?? "",
  };
}
