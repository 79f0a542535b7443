/** What the client makes of a server that is not ours, or not well: typed errors, in time. */
import assert from "node:assert/strict";
import { type AddressInfo, createServer, type Socket } from "node:net";
import { test } from "node:test";
import { setTimeout as pause } from "node:timers/promises";
import { gzipSync } from "node:zlib";

import { BadReplyError, Client, ConnectionFailedError, ProblemError } from "../src/client.js";

const photo = new Blob(["photo"]);
const JSON_TYPE = "Content-Type: application/json";
const HTML = "Content-Type: text/html";
const PROBLEM = "Content-Type: application/problem+json";
const READ = Buffer.from('{"request_id": "r", "model": {}, "image": {}, "faces": [], "notes": []}');
const PAGE = "<html>login</html>";
const MAX_JSON_BYTES = 64 * 1024 * 1024;
const PAUSE_MS = 50;
const PAUSES = 20; // what is late takes several times as long as a client waits, and then would be right
const TIMEOUT_MS = 300;

type Script = (socket: Socket) => Promise<void> | void;

/** Runs `body` against a server of nothing but sockets; returns how many connections it had. */
async function served(script: Script, body: (url: string) => Promise<void>): Promise<number> {
  const sockets: Socket[] = [];
  const server = createServer((socket) => {
    sockets.push(socket);
    socket.on("error", () => undefined);
    socket.once("data", () => void script(socket));
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  try {
    await body(`http://127.0.0.1:${(server.address() as AddressInfo).port}`);
  } finally {
    for (const socket of sockets) socket.destroy();
    server.close();
  }
  return sockets.length;
}

function head(status: string, ...headers: string[]): string {
  return [`HTTP/1.1 ${status}`, ...headers, "Connection: close", "", ""].join("\r\n");
}

function reply(status: string, headers: string[] = [], body: string | Buffer = ""): Script {
  const length = `Content-Length: ${Buffer.byteLength(body)}`;
  return (socket) => {
    socket.write(head(status, ...headers, length));
    socket.end(body);
  };
}

/** Sends the piece again and again, far too slowly. */
async function drip(socket: Socket, piece: string): Promise<void> {
  for (let i = 0; i < PAUSES && !socket.destroyed; i++) {
    socket.write(piece);
    await pause(PAUSE_MS);
  }
}

function patient(url: string, timeoutMs = 30_000): Client {
  return new Client({ baseUrl: url, apiKey: "secret", timeoutMs, retries: { attempts: 3, firstWaitMs: 1 } });
}

const slow: Record<string, Script> = {
  "a slow body": async (socket) => {
    socket.write(head("200 OK", JSON_TYPE, `Content-Length: ${READ.length + PAUSES}`));
    await drip(socket, " ");
    socket.end(READ);
  },
  "a slow head": async (socket) => {
    socket.write("HTTP/1.1 200 OK\r\nX: ");
    await drip(socket, "x");
    socket.end(`\r\nContent-Length: ${READ.length}\r\n\r\n${READ.toString()}`);
  },
  "one head after another": async (socket) => {
    await drip(socket, "HTTP/1.1 103 Early Hints\r\n\r\n");
    socket.end(head("200 OK", JSON_TYPE, `Content-Length: ${READ.length}`) + READ.toString());
  },
};

for (const [name, script] of Object.entries(slow)) {
  test(`the time-out bounds the whole attempt: ${name}`, async () => {
    const connections = await served(script, async (url) => {
      await assert.rejects(patient(url, TIMEOUT_MS).predict(photo), ConnectionFailedError);
    });
    assert.equal(connections, 1);
  });
}

test("a reply without end is not kept", async () => {
  const endless = reply("200 OK", [JSON_TYPE], Buffer.concat([Buffer.alloc(MAX_JSON_BYTES, " "), READ]));
  const connections = await served(endless, async (url) => {
    await assert.rejects(patient(url).predict(photo), /^ConnectionFailedError: .* more than 64 MiB$/);
  });
  assert.equal(connections, 1);
});

test("a reply that is broken off, or cannot be unpacked, is asked for again", async () => {
  const cut: Script = (socket) => {
    socket.end(`${head("200 OK", JSON_TYPE, `Content-Length: ${READ.length + 1}`)}${READ.toString()}`);
  };
  const packed = reply("200 OK", [JSON_TYPE, "Content-Encoding: gzip"], "no gzip");
  for (const script of [cut, packed]) {
    const connections = await served(script, async (url) => {
      await assert.rejects(patient(url).predict(photo), ConnectionFailedError);
    });
    assert.equal(connections, 3);
  }
});

test("what is packed counts unpacked", async () => {
  const bomb = gzipSync(Buffer.concat([Buffer.alloc(MAX_JSON_BYTES, " "), READ]), { level: 1 });
  await served(reply("200 OK", [JSON_TYPE, "Content-Encoding: gzip"], bomb), async (url) => {
    await assert.rejects(patient(url).predict(photo), /more than 64 MiB/);
  });
});

const bad: Record<string, Script> = {
  html: reply("200 OK", [HTML], PAGE),
  cut: reply("200 OK", [JSON_TYPE], READ.subarray(0, 30)),
  empty: reply("200 OK", [JSON_TYPE]),
  "204": (socket) => void socket.end(head("204 No Content")),
  null: reply("200 OK", [JSON_TYPE], "null"),
  NaN: reply("200 OK", [JSON_TYPE], '{"faces": NaN}'),
  wrong: reply("200 OK", [JSON_TYPE], '{"model": {}, "image": {}, "faces": "x", "results": 5}'),
  "wrong faces": reply("200 OK", [JSON_TYPE], '{"model": {}, "image": {}, "faces": [null]}'),
  deep: reply("200 OK", [JSON_TYPE], "[".repeat(100_000)),
  many: reply("200 OK", [JSON_TYPE], `{"x": [${"0,".repeat(1_000_000)}0],${READ.toString().slice(1)}`),
};

for (const [name, script] of Object.entries(bad)) {
  test(`a reply that is not the service's says so: ${name}`, async () => {
    await served(script, async (url) => {
      const client = patient(url);
      const calls = [
        () => client.predict(photo),
        () => client.predictBatch([photo]),
        () => client.draw(photo),
        () => client.model(),
        () => client.isReady(),
      ];
      for (const call of calls) {
        await assert.rejects(call(), (error: unknown) => {
          assert(error instanceof BadReplyError);
          assert.equal(error.status, name === "204" ? 204 : 200);
          assert(error.message.length < 500);
          return true;
        });
      }
    });
  });
}

test("a login page is named", async () => {
  await served(reply("200 OK", [HTML], PAGE), async (url) => {
    for (const call of [() => patient(url).draw(photo), () => patient(url).isReady()]) {
      await assert.rejects(call(), /^BadReplyError: .*\(200, text\/html\): .*<html>login/);
    }
  });
});

test("a batch has an answer for each photo", async () => {
  for (const results of ["[]", '[{"status": 200, "reply": null, "problem": null}]']) {
    const script = reply("200 OK", [JSON_TYPE], `{"request_id": "r", "results": ${results}}`);
    await served(script, async (url) => {
      await assert.rejects(patient(url).predictBatch([photo]), /^BadReplyError: .*0 answers for 1 photos/);
    });
  }
});

const errors: Record<string, Script> = {
  "520 Web Server: sorry": reply("520 Web Server", [HTML], "sorry"),
  "599 X: ": reply("599 X"),
  '422 X: {"type":': reply("422 X", [PROBLEM], '{"type":'),
  "422 X: null": reply("422 X", [PROBLEM], "null"),
  '422 X: {"type": 5}': reply("422 X", [PROBLEM], '{"type": 5}'),
};

for (const [said, script] of Object.entries(errors)) {
  test(`every error is a problem: ${said}`, async () => {
    await served(script, async (url) => {
      await assert.rejects(patient(url).predict(photo), (error: unknown) => {
        assert(error instanceof ProblemError);
        assert.equal(error.message, said);
        assert.equal(error.problem.type, "about:blank");
        return true;
      });
    });
  });
}

test("redirects are not followed", async () => {
  for (const status of [301, 302, 303, 307, 308]) {
    const visits = await served(reply("200 OK", [JSON_TYPE], READ), async (elsewhere) => {
      const script = reply(`${status} Moved`, [`Location: ${elsewhere}/predict`]);
      await served(script, async (url) => {
        await assert.rejects(patient(url).predict(photo), (error: unknown) => {
          assert(error instanceof ProblemError);
          assert.equal(error.problem.status, status);
          assert(error.message.includes("redirects are not followed"));
          assert(error.message.includes(elsewhere));
          return true;
        });
      });
    });
    assert.equal(visits, 0);
  }
});

test("a message holds nothing that a terminal acts upon", async () => {
  const escapes = "\x1b]0;title\x07\x1b[31m\u202ered\r\n";
  const said = { type: "x", title: "t", status: 400, request_id: "", detail: escapes.repeat(1000) };
  for (const script of [
    reply("400 X", ["Content-Type: text/plain"], escapes),
    reply("400 X", [PROBLEM], JSON.stringify(said)),
  ]) {
    await served(script, async (url) => {
      await assert.rejects(patient(url).predict(photo), (error: unknown) => {
        assert(error instanceof ProblemError);
        assert.match(error.message, /\\u\{1b\}\[31m\\u\{202e\}red\\u\{d\}\\u\{a\}/);
        assert.doesNotMatch(error.message, /\p{C}/u);
        assert(error.message.length < 8000);
        return true;
      });
    });
  }
});

test("Retry-After is a whole number or a date, and nothing else", async () => {
  const soon = new Date(Date.now() + 20_000).toUTCString();
  for (const [text, least, most] of [
    ["7", 7, 7],
    [soon, 15, 20],
    ["Wed, 21 Oct 2015 07:28:00 GMT", 0, 0],
  ] as const) {
    const asked = await askedToWait(text);
    assert(asked !== undefined && asked >= least && asked <= most, text);
  }
  for (const text of ["1.5", "-1", "-5", "5, 7", "1e3", "soon", "May 5", ""]) {
    assert.equal(await askedToWait(text), undefined, text);
  }
});

async function askedToWait(text: string): Promise<number | undefined> {
  let seconds: number | undefined;
  await served(reply("503 X", [`Retry-After: ${text}`]), async (url) => {
    const once = new Client({ baseUrl: url, retries: { attempts: 1 } });
    await assert.rejects(once.model(), (error: unknown) => {
      assert(error instanceof ProblemError);
      seconds = error.retryAfterSeconds;
      return true;
    });
  });
  return seconds;
}
