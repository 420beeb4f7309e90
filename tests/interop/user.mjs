// A user of the push_to_users example, with the official client. Prints one line per event.
//
//   node user.mjs http://HOST:PORT USER [TOPIC]
import WebSocket from "ws"
import {Socket} from "phoenix"

const [base, user, topic = `user:${user}`] = process.argv.slice(2)
const say = what => console.log(JSON.stringify(what))
const signIn = async () => (await (await fetch(`${base}/token?user=${user}`)).json()).token

let token = await signIn()
const socket = new Socket(`${base.replace("http", "ws")}/socket`, {
  transport: WebSocket,
  params: () => ({token}),
  // Often, so that a missing reply is noticed: the client would close the connection.
  heartbeatIntervalMs: 200,
  reconnectAfterMs: () => 50,
  rejoinAfterMs: () => 60_000,
})
socket.onOpen(() => say({open: true}))
socket.onClose(({code}) => say({closed: code}))

const channel = socket.channel(topic)
channel.on("push_timed", ({data}) => say({push: data}))
channel.join()
  .receive("ok", response => say({joined: response}))
  .receive("error", response => say({refused: response}))
socket.connect()
setInterval(() => socket.ping(() => say({ping: true})), 300)
