// The cases of docs/spec/websocket.md that the client `ws` can send, told as steps. Prints the id of each case
// whose answers came, and stops at the first that differs.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import WebSocket from "ws";

const [url, topic, folder] = process.argv.slice(2);
const bytes = readFileSync(`${folder}/bytes`);
const cases = readFileSync(`${folder}/cases`, "utf8").split("\n").map((line) => JSON.parse(line));
const [text, close, ping, pong] = [1, 8, 9, 10];

const part = ([at, length]) => bytes.subarray(at, at + length);

// The options of an offer of compression.
function options(offer) {
  if (offer === null) return false;
  const all = { threshold: 0 };
  for (const parameter of offer.split(";").slice(1)) {
    const [name, value] = parameter.trim().split("=");
    const key = name.replace(/_(.)/g, (_, letter) => letter.toUpperCase());
    // Without a value, it is offered in any case.
    if (value !== undefined) all[key] = Number(value);
    else if (name.endsWith("takeover")) all[key] = true;
  }
  return all;
}

function exchange({ offer, accepts, steps, answers }) {
  return new Promise((resolve, reject) => {
    const socket = new WebSocket(url, { perMessageDeflate: options(offer), maxPayload: 0 });
    const closes = answers.at(-1)?.op === close;
    let answered = -1;
    const check = (act) => (...given) => {
      try {
        act(...given);
      } catch (error) {
        reject(error);
        socket.terminate();
      }
    };
    const arrived = (op, matches) => {
      if (answered === -1) {
        answered = 0;
        return begin();
      }
      const expected = answers[answered++];
      assert.equal(op, expected?.op);
      assert.ok(matches(expected), `answer ${answered}`);
      if (answered === answers.length && !closes) socket.close(1000);
    };
    const begin = () => {
      assert.equal(socket.extensions.includes("permessage-deflate"), accepts ?? false);
      let binary = false;
      for (const { op, fin, bytes: range } of steps) {
        const data = part(range);
        if (op === ping) socket.ping(data);
        else if (op === pong) socket.pong(data);
        else if (op === close) {
          if (data.length === 0) socket.close();
          else socket.close(data.readUInt16BE(), data.subarray(2));
        } else {
          if (op !== 0) binary = op !== text;
          socket.send(data, { binary, fin, compress: true });
        }
      }
      if (answers.length === 0) socket.close(1000);
    };
    socket.on("error", (error) => {
      // A server that has closed may not have read the rest.
      if (!closes) reject(error);
    });
    socket.on("open", () => socket.send(JSON.stringify(["1", "1", topic, "phx_join", {}])));
    socket.on("pong", check((data) => {
      arrived(pong, (expected) => data.equals(part(expected.bytes)));
    }));
    socket.on("message", check((data, isBinary) => {
      arrived(isBinary ? 2 : text, (expected) => {
        if (!isBinary) {
          return JSON.parse(data)[4].response === part(expected.bytes).toString("utf8");
        }
        const start = 5 + data[1] + data[2] + data[3] + data[4];
        return data.subarray(start).equals(part(expected.bytes));
      });
    }));
    socket.on("close", check((code) => {
      assert.equal(answered, answers.length - (closes ? 1 : 0), `closed with ${code}`);
      assert.equal(code, closes ? answers.at(-1).code : 1000);
      resolve();
    }));
  });
}

for (const told of cases) {
  await exchange(told);
  console.log(told.id);
}
