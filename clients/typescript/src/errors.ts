/** What a call may throw. */
import type { components } from "./schema.js";

export type Problem = components["schemas"]["Problem"];

const MAX_MESSAGE = 1000;

/** The service, or a proxy before it, answered with an error, or with a redirect, which is not followed. */
export class ProblemError extends Error {
  override readonly name = "ProblemError";

  constructor(
    readonly problem: Problem,
    /** After how many seconds the service asks to try again; undefined where it does not. */
    readonly retryAfterSeconds: number | undefined,
  ) {
    super(printable(`${problem.status} ${problem.title}: ${problem.detail}`));
  }

  /** The last part of the problem's type, as "image-too-large"; it never changes. */
  get kind(): string {
    return this.problem.type.slice(this.problem.type.lastIndexOf(":") + 1);
  }
}

/** No whole reply came in any attempt: refused, broken off, too long, or not in time. `cause` says which. */
export class ConnectionFailedError extends Error {
  override readonly name = "ConnectionFailedError";
}

/** A reply that says that all is well, but not what the service answers: another server's. */
export class BadReplyError extends Error {
  override readonly name = "BadReplyError";

  constructor(
    reason: string,
    readonly status: number,
    /** As the reply has it, which may be nothing. */
    readonly contentType: string,
  ) {
    const of = printable(contentType, 100) || "no content type";
    super(`not a reply of the service (${status}, ${of}): ${printable(reason)}`);
  }
}

/** At most so many characters of it, those that a terminal would act upon as escapes. */
export function printable(text: string, most = MAX_MESSAGE): string {
  const cut = text.length > most ? `${text.slice(0, most)}…` : text;
  return cut.replace(/(?! )[\p{C}\p{Z}]/gu, (character) => {
    return `\\u{${(character.codePointAt(0) ?? 0).toString(16)}}`;
  });
}
