// A socket and its channels, shared by all components that use them, and counted. No React in here.
//
// A channel that nothing uses any more is left at the end of the turn, so a component that goes and another that comes in the same turn
// share the channel, and no frame is sent. Effects that run twice, as in strict mode, are no more than that.

import {Socket} from 'phoenix'

const IDLE = Object.freeze({status: 'closed', reply: null})

class SharedChannel {
  #client
  #topic
  #params = {}
  #channel = null
  #users = new Set()
  #handlers = new Map()
  #state = IDLE

  constructor(client, topic) {
    this.#client = client
    this.#topic = topic
  }

  /** The params of each join: a function, if they change. */
  withParams(params) {
    if (params !== undefined) this.#params = params
    return this
  }

  /** Joins unless it is joined, and calls `changed` whenever the state changes. Returns the function that ends it. */
  subscribe = (changed) => {
    // A function of its own, so that two users with the same `changed` are two.
    const user = () => changed()
    this.#users.add(user)
    this.#client.acquire()
    this.#open()
    return () => {
      if (this.#users.delete(user)) this.#client.release()
    }
  }

  /** `{status, reply}`: `joining`, `joined`, `refused`, `cut off` or `closed`, and the last reply to a join. */
  state = () => this.#state

  /** Calls the handler with each message of this event. Returns the function that ends it. */
  on(event, handler) {
    const handlers = this.#handlers.get(event) ?? new Set()
    this.#handlers.set(event, handlers)
    const own = (payload) => handler(payload)
    handlers.add(own)
    if (handlers.size === 1) this.#listen(event)
    return () => {
      if (!handlers.delete(own) || handlers.size > 0) return
      this.#handlers.delete(event)
      this.#channel?.off(event)
    }
  }

  /** Sends a message. The promise has the reply, or fails with an error's reply or with `null` after the timeout. */
  push(event, payload, timeout) {
    return new Promise((answered, failed) => {
      if (!this.#channel) return failed(null)
      this.#channel
        .push(event, payload, timeout)
        .receive('ok', answered)
        .receive('error', failed)
        .receive('timeout', () => failed(null))
    })
  }

  get isUsed() {
    return this.#users.size > 0
  }

  get isOpen() {
    return this.#channel !== null
  }

  /** Leaves. The promise ends with the server's answer, or without one after the timeout. */
  close() {
    const channel = this.#channel
    this.#channel = null
    this.#set(IDLE)
    return new Promise((left) => channel.leave().receive('ok', left).receive('timeout', left))
  }

  #open() {
    if (this.#channel) return
    const channel = this.#client.socket.channel(this.#topic, () =>
      typeof this.#params === 'function' ? this.#params() : this.#params,
    )
    const ours = (state) => {
      if (channel === this.#channel) this.#set(state)
    }
    this.#channel = channel
    for (const event of this.#handlers.keys()) this.#listen(event)
    channel.onError(() => ours({...this.#state, status: 'cut off'}))
    this.#set({status: 'joining', reply: null})
    channel
      .join()
      .receive('ok', (reply) => ours({status: 'joined', reply}))
      .receive('error', (reply) => ours({status: 'refused', reply}))
      .receive('timeout', () => ours({...this.#state, status: 'cut off'}))
  }

  #listen(event) {
    this.#channel?.on(event, (payload) => {
      for (const handler of [...(this.#handlers.get(event) ?? [])]) handler(payload)
    })
  }

  #set(state) {
    this.#state = Object.freeze(state)
    for (const changed of [...this.#users]) changed()
  }
}

/** A socket that is open while anything uses it. One for each address, however often components come and go. */
export class Client {
  #url
  #options
  #Socket
  #socket = null
  #users = 0
  #isSettling = false
  #isOpen = false
  #channels = new Map()
  #watchers = new Set()
  #status = 'closed'

  constructor(url, options = {}, SocketClass = Socket) {
    this.#url = url
    this.#options = options
    this.#Socket = SocketClass
  }

  /** The client's socket. It listens to the window for as long as the page lives, so there is one for good. */
  get socket() {
    if (this.#socket) return this.#socket
    this.#socket = new this.#Socket(this.#url, this.#options)
    const cutOff = () => this.#set(this.#isOpen ? 'cut off' : 'closed')
    this.#socket.onOpen(() => this.#set('open'))
    this.#socket.onClose(cutOff)
    this.#socket.onError(cutOff)
    return this.#socket
  }

  /** The channel of a topic, the same for all. */
  channel(topic) {
    const known = this.#channels.get(topic)
    if (known) return known
    const channel = new SharedChannel(this, topic)
    this.#channels.set(topic, channel)
    return channel
  }

  /** `closed`, `connecting`, `open` or `cut off`. */
  status = () => this.#status

  /** Calls `changed` whenever the status changes, and does not open the socket. */
  watch = (changed) => {
    const own = () => changed()
    this.#watchers.add(own)
    return () => this.#watchers.delete(own)
  }

  /** Opens the socket unless it is open. Each call is ended by one of `release`. */
  acquire() {
    this.#users += 1
    if (this.#isOpen) return
    this.#isOpen = true
    this.#set('connecting')
    this.socket.connect()
  }

  release() {
    this.#users -= 1
    if (this.#isSettling) return
    this.#isSettling = true
    queueMicrotask(() => {
      this.#isSettling = false
      this.#settle()
    })
  }

  /** Leaves the channels that nothing uses any more, and then closes the socket, if nothing uses it. */
  async #settle() {
    const unused = [...this.#channels.values()].filter((channel) => channel.isOpen && !channel.isUsed)
    await Promise.all(unused.map((channel) => channel.close()))
    if (this.#users > 0 || !this.#isOpen) return
    this.#isOpen = false
    this.socket.disconnect()
    this.#set('closed')
  }

  #set(status) {
    if (status === this.#status) return
    this.#status = status
    for (const changed of [...this.#watchers]) changed()
  }
}
