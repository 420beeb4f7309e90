import assert from 'node:assert/strict'
import {test} from 'node:test'

import {Client} from '../react/phoenix/client.js'

/** A socket that writes down what it would send. Everything is answered at once. */
class FakeSocket {
  sent = []
  channels = []
  #open = []
  #close = []

  onOpen(callback) {
    this.#open.push(callback)
  }
  onClose(callback) {
    this.#close.push(callback)
  }
  onError() {}
  connect() {
    this.sent.push('open')
    for (const callback of this.#open) callback()
  }
  disconnect() {
    this.sent.push('close')
  }
  cut() {
    for (const callback of this.#close) callback()
  }
  channel(topic, params) {
    const channel = new FakeChannel(this, topic, params)
    this.channels.push(channel)
    return channel
  }
}

class FakeChannel {
  bindings = []

  constructor(socket, topic, params) {
    Object.assign(this, {socket, topic, params})
  }
  #answer(status, reply) {
    const push = {
      receive(of, callback) {
        if (of === status) callback(reply)
        return push
      },
    }
    return push
  }
  join() {
    this.socket.sent.push(`join ${this.topic} ${JSON.stringify(this.params())}`)
    return this.#answer('ok', {n: 1})
  }
  leave() {
    this.socket.sent.push(`leave ${this.topic}`)
    return this.#answer('ok', {})
  }
  push(event, payload) {
    return event === 'fails' ? this.#answer('error', {error: 'no'}) : this.#answer('ok', payload)
  }
  on(event, callback) {
    this.bindings.push({event, callback})
  }
  off(event) {
    this.bindings = this.bindings.filter((binding) => binding.event !== event)
  }
  onError() {}
  hear(event, payload) {
    for (const binding of this.bindings) if (binding.event === event) binding.callback(payload)
  }
}

const turn = () => new Promise((done) => setImmediate(done))

const start = () => {
  const client = new Client('/socket', {}, FakeSocket)
  return {client, socket: client.socket}
}

test('A-129: a client that nothing uses opens nothing', () => {
  const {client, socket} = start()
  client.channel('a')
  client.watch(() => {})
  assert.deepEqual(socket.sent, [])
})

test('A-130: a hundred rounds leave nothing behind', async () => {
  const {client, socket} = start()
  for (let round = 0; round < 100; round += 1) {
    const channel = client.channel('a')
    const unlisten = channel.on('event', () => {})
    const end = channel.subscribe(() => {})
    await turn()
    end()
    unlisten()
    await turn()
    assert.deepEqual(socket.sent.splice(0), ['open', 'join a {}', 'leave a', 'close'])
  }
  assert.equal(socket.channels.flatMap(({bindings}) => bindings).length, 0)
  assert.equal(client.status(), 'closed')
})

test('A-131: one component goes and another comes in the same turn, and nothing is sent', async () => {
  const {client, socket} = start()
  const end = client.channel('a').subscribe(() => {})
  await turn()
  end()
  client.channel('a').subscribe(() => {})
  await turn()
  assert.deepEqual(socket.sent, ['open', 'join a {}'])
})

test('A-132: what is not used any more is left, and the socket stays for the rest', async () => {
  const {client, socket} = start()
  const end = client.channel('a').subscribe(() => {})
  client.channel('b').withParams(() => ({now: 1})).subscribe(() => {})
  end()
  await turn()
  assert.deepEqual(socket.sent, ['open', 'join a {}', 'join b {"now":1}', 'leave a'])
})

test('A-133: two users are one join, and each hears until it ends', async () => {
  const {client, socket} = start()
  const heard = []
  const channel = client.channel('a')
  // Effects that run twice, as in strict mode.
  channel.on('event', (payload) => heard.push(['gone', payload]))()
  channel.subscribe(() => {})()
  const first = [channel.subscribe(() => {}), channel.on('event', (payload) => heard.push(['one', payload]))]
  const second = [channel.subscribe(() => {}), channel.on('event', (payload) => heard.push(['other', payload]))]
  await turn()
  assert.deepEqual(socket.sent, ['open', 'join a {}'])
  socket.channels[0].hear('event', 1)
  for (const end of first) end()
  for (const end of first) end()
  await turn()
  socket.channels[0].hear('event', 2)
  assert.deepEqual(heard, [['one', 1], ['other', 1], ['other', 2]])
  assert.deepEqual(socket.sent, ['open', 'join a {}'])
  for (const end of second) end()
  await turn()
  assert.deepEqual(socket.sent.slice(2), ['leave a', 'close'])
})

test('the state says whether it is joined, and the status whether it is cut off', async () => {
  const {client, socket} = start()
  const channel = client.channel('a')
  let changes = 0
  const end = channel.subscribe(() => (changes += 1))
  assert.deepEqual(channel.state(), {status: 'joined', reply: {n: 1}})
  assert.equal(channel.state(), channel.state(), 'the same value until it changes')
  assert.ok(changes > 0)
  socket.cut()
  assert.equal(client.status(), 'cut off')
  end()
  await turn()
  assert.equal(channel.state().status, 'closed')
})

test('a push has its reply, its error, or null', async () => {
  const {client} = start()
  const channel = client.channel('a')
  await assert.rejects(channel.push('any', {}), (error) => error === null)
  channel.subscribe(() => {})
  assert.deepEqual(await channel.push('any', {n: 1}), {n: 1})
  await assert.rejects(channel.push('fails', {}), (error) => error.error === 'no')
})
