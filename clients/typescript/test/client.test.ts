import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { createServer, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { test } from "node:test";

import { Client, ConnectionFailedError, ProblemError } from "../src/client.js";

const { LAN_FER_URL, LAN_FER_PHOTO } = process.env;
assert(LAN_FER_URL && LAN_FER_PHOTO, "run by tests/clients/test_typescript_client.py");
const photo = new Blob([await readFile(LAN_FER_PHOTO)]);
const client = new Client({ baseUrl: LAN_FER_URL });
const quick = { attempts: 4, firstWaitMs: 1 };

test("reads and draws", async () => {
  assert.equal(await client.isReady(), true);
  assert((await client.model()).classifier.labels.includes("happiness"));
  const reply = await client.predict(photo, { explain: "evidence", class: "anger", max_faces: 3 });
  const [face] = reply.faces;
  assert.equal(face?.expression.label, "happiness");
  assert.equal(face?.evidence?.class, "anger");
  assert.equal(reply.image.width, 512);
  assert.equal((await client.draw(photo)).type, "image/jpeg");
  assert.equal((await client.draw(photo, {}, "image/png")).type, "image/png");
});

test("several photos keep their order", async () => {
  const [wrong, right] = await client.predictBatch([new Blob(["no photo"]), photo]);
  assert(wrong && "detail" in wrong && wrong.status === 415);
  assert(right && "faces" in right && right.faces.length === 1);
});

test("an error says what the service says", async () => {
  await assert.rejects(client.predict(photo, { max_faces: 0 }), (error: unknown) => {
    assert(error instanceof ProblemError);
    assert.equal(error.kind, "invalid-option");
    assert.match(error.message, /max_faces/);
    return true;
  });
});

test("an address without http:// is refused at once", () => {
  for (const baseUrl of ["127.0.0.1:8000", "localhost:8000", "", "http://", "/lan-fer"]) {
    assert.throws(() => new Client({ baseUrl }), /^TypeError: baseUrl .* http:\/\/127\.0\.0\.1:8000/);
  }
});

type Answer = (response: ServerResponse) => void;
const status =
  (code: number, headers: Record<string, string> = {}, body = "{}"): Answer =>
  (response) =>
    response.writeHead(code, headers).end(body);
const hangUp: Answer = (response) => response.destroy();
const json = { "content-type": "application/json" };
const read = status(200, json, '{"model": {}, "image": {}, "faces": []}');

/** Runs `body` against a server that gives these answers; returns how many were asked for. */
async function faulty(answers: Answer[], body: (url: string) => Promise<void>): Promise<number> {
  let asked = 0;
  const server = createServer((request, response) => {
    request.resume().on("end", () => answers[asked++]?.(response));
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  try {
    await body(`http://127.0.0.1:${(server.address() as AddressInfo).port}`);
  } finally {
    server.closeAllConnections();
    server.close();
  }
  return asked;
}

test("what passes is tried again", async () => {
  const answers = [status(503, { "retry-after": "0" }), hangUp, status(502), read];
  const asked = await faulty(answers, async (url) => {
    await new Client({ baseUrl: url, retries: quick }).predict(photo);
  });
  assert.equal(asked, 4);
});

test("gives up with the last error, and minds how long it is asked to wait", async () => {
  for (const answers of [[hangUp, hangUp, hangUp, status(429)], [status(503, { "retry-after": "31" })]]) {
    const asked = await faulty(answers, async (url) => {
      const impatient = new Client({ baseUrl: `${url}/`, retries: quick });
      await assert.rejects(impatient.predict(photo), ProblemError);
    });
    assert.equal(asked, answers.length);
  }
});

test("what does not pass is not tried again", async () => {
  for (const code of [400, 413, 500, 504]) {
    const asked = await faulty([status(code)], async (url) => {
      await assert.rejects(new Client({ baseUrl: url, retries: quick }).model(), ProblemError);
    });
    assert.equal(asked, 1);
  }
});

test("a late reply is not asked for twice", async () => {
  const asked = await faulty([() => undefined], async (url) => {
    const hasty = new Client({ baseUrl: url, timeoutMs: 200, retries: quick });
    await assert.rejects(hasty.predict(photo), ConnectionFailedError);
  });
  assert.equal(asked, 1);
});
