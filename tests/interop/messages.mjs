// Messages of all sizes, fragmented and compressed, sent by the client `ws`. Each is an event, and the
// server replies with its payload. Prints the number of messages, or the first that differs.

import assert from "node:assert/strict";
import WebSocket from "ws";

const url = process.argv[2];
const topic = "room:other";
const sizes = [0, 1, 125, 126, 127, 128, 65535, 65536, 200_000, 1_000_000];
const offers = [
  false,
  { threshold: 0 },
  { threshold: 0, clientNoContextTakeover: true, serverNoContextTakeover: true },
  { threshold: 0, serverMaxWindowBits: 15, clientMaxWindowBits: 15 },
  { threshold: 0, serverMaxWindowBits: 9 },
];
const closes = [[1000, 1000], [1001, 1000], [3000, 1000], [4999, 1000]];

class Client {
  constructor(perMessageDeflate) {
    this.socket = new WebSocket(url, { perMessageDeflate });
    this.waiting = [];
    this.arrived = [];
    this.closed = new Promise((resolve) => this.socket.on("close", resolve));
    this.socket.on("message", (data, isBinary) => this.push({ data, isBinary }));
    this.socket.on("pong", (data) => this.push({ data, isPong: true }));
    this.opened = new Promise((resolve, reject) => {
      this.socket.on("open", resolve);
      this.socket.on("error", reject);
    });
  }

  push(message) {
    const waiting = this.waiting.shift();
    if (waiting) waiting(message);
    else this.arrived.push(message);
  }

  next() {
    if (this.arrived.length > 0) return Promise.resolve(this.arrived.shift());
    return new Promise((resolve) => this.waiting.push(resolve));
  }

  // Sends a message in this number of fragments.
  send(data, fragments) {
    const size = Math.max(1, Math.ceil(data.length / fragments));
    for (let at = 0; at === 0 || at < data.length; at += size) {
      const fin = at + size >= data.length;
      this.socket.send(data.subarray(at, at + size), { binary: this.binary, compress: true, fin });
    }
  }

  async text(payload, fragments) {
    this.binary = false;
    this.send(Buffer.from(JSON.stringify(["1", "2", topic, "ask", payload])), fragments);
    const { data, isBinary } = await this.next();
    assert.equal(isBinary, false);
    assert.equal(JSON.parse(data)[4].response, payload, `a text of ${payload.length}`);
  }

  async bytes(payload, fragments) {
    this.binary = true;
    const names = Buffer.from(`12${topic}ask`);
    this.send(Buffer.concat([Buffer.from([0, 1, 1, topic.length, 3]), names, payload]), fragments);
    const { data, isBinary } = await this.next();
    assert.equal(isBinary, true);
    const start = 5 + data[1] + data[2] + data[3] + data[4];
    assert.ok(data.subarray(start).equals(payload), `${payload.length} bytes`);
  }
}

async function connect(offer) {
  const client = new Client(offer);
  await client.opened;
  client.socket.send(JSON.stringify(["1", "1", topic, "phx_join", {}]));
  const { data } = await client.next();
  assert.equal(JSON.parse(data)[4].status, "ok");
  return client;
}

let messages = 0;
for (const offer of offers) {
  const client = await connect(offer);
  const accepts = Boolean(offer) && offer.serverMaxWindowBits !== 9;
  assert.equal(client.socket.extensions.includes("permessage-deflate"), accepts);
  for (const size of sizes) {
    for (const fragments of [1, 2, 7]) {
      await client.text("\u20ac".repeat(size % 100) + "x".repeat(size - (size % 100)), fragments);
      await client.bytes(Buffer.alloc(size, 0xfe), fragments);
      messages += 2;
    }
  }
  client.socket.ping(Buffer.alloc(125, 7));
  assert.ok((await client.next()).data.equals(Buffer.alloc(125, 7)));
  client.socket.close(1000);
  assert.equal(await client.closed, 1000);
}
for (const [code, answered] of closes) {
  const client = await connect(false);
  client.socket.close(code, "bye");
  assert.equal(await client.closed, answered);
}
const hostile = [["not a message", 1011], ["x".repeat((1 << 20) + 1), 1009]];
for (const [text, code] of hostile) {
  const client = await connect(false);
  client.socket.send(text);
  assert.equal(await client.closed, code);
}
console.log(`${messages} messages`);
