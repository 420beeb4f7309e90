// A user with the official client, whose socket the server closes. Prints one line per event.
//
//   node closes.mjs http://HOST:PORT TRANSPORT NAMES [REFRESHES]
//
// NAMES and REFRESHES are separated by commas: the parameter `name` of each connection, by how many
// have been closed before, the last one for all that follow, and what is pushed as `refresh` each time the end of the socket is near.
import WebSocket from "ws"
import {Socket, LongPoll} from "phoenix"

const [base, transport, names, refreshes = ""] = process.argv.slice(2)
const say = what => console.log(JSON.stringify(what))
const all = names.split(",")
let closed = 0
const fresh = refreshes.split(",").filter(token => token)

const socket = new Socket(`${base.replace("http", "ws")}/socket`, {
  transport: transport === "longpoll" ? LongPoll : WebSocket,
  params: () => ({name: all[Math.min(closed, all.length - 1)]}),
  reconnectAfterMs: () => 50,
  rejoinAfterMs: () => 50,
})
socket.onOpen(() => say({open: true}))
socket.onClose(({code, reason}) => {
  closed += 1
  say({closed: [code, `${reason}`]})
})

const channel = socket.channel("user:1")
channel.on("socket_expiring", ({expires_in}) => {
  say({told: expires_in})
  const token = fresh.shift()
  if (token) channel.push("refresh", token).receive("ok", () => say({refreshed: true}))
})
channel.join().receive("ok", () => say({joined: true}))
socket.connect()
