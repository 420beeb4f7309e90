// Signs in as a user, and shows that user's pushes with their delivery times.

const MINUTE_MS = 60_000
const SHOWN = 50
const RETRY_MS = 2_000
const TIME = new Intl.DateTimeFormat([], {
  hour: "2-digit", minute: "2-digit", second: "2-digit", fractionalSecondDigits: 3, hourCycle: "h23",
})

const params = new URLSearchParams(location.search)
const user = params.get("user") ?? "1"
const topic = `user:${user}`
const $ = id => document.getElementById(id)

// The pushes of the last minute, oldest first: arrival time and delivery time, in milliseconds.
const minute = []
let count = 0

showUsers()
$("try").textContent =
  `curl ${location.origin}/push -d '{"user_id":${user},"event":"push_timed","data":{"text":"hello"}}'`
$("push").addEventListener("click", pushHello)
$("retry").addEventListener("click", connect)
connect()
drawForever()
showQueue()

async function connect() {
  $("retry").hidden = true
  const Socket = await untilAnswered(client)
  const token = Socket && await untilAnswered(signIn)
  // Refused: the page says why, and asks again only if its reader wants to.
  if (!token) return $("retry").hidden = false
  listen(Socket, token)
}

// The answer, or null for a refusal. Without an answer it asks again: a server that is away may come back.
async function untilAnswered(ask) {
  for (let tries = 1; ; tries += 1) {
    const answer = await ask(tries)
    if (answer !== undefined) return answer
    await new Promise(resolve => setTimeout(resolve, RETRY_MS))
  }
}

function listen(Socket, token) {
  const socket = new Socket("/socket", {params: () => ({token})})
  // The server may have restarted with another secret: get a new token for the next attempt.
  socket.onError(async () => {
    show("error", "disconnected, connecting again")
    token = await signIn() ?? token
  })
  socket.connect()

  const channel = socket.channel(topic)
  const onMessage = channel.onMessage
  channel.onMessage = (event, payload, ref, joinRef) => {
    if (payload && payload.at_us !== undefined) arrived(event, payload)
    // With --acknowledge confirmed, the push comes again until it is confirmed.
    if (payload && payload.ack !== undefined) channel.push("ack", {id: payload.ack})
    return onMessage.call(channel, event, payload, ref, joinRef)
  }
  channel.join()
    .receive("ok", () => show("joined", `signed in, listening to ${topic}`))
    .receive("error", ({reason}) => show("error", `may not listen to ${topic}: ${reason}`))
}

// The client's class, null if the server does not have it, and undefined if it is worth another try.
async function client(tries) {
  try {
    // Another address for each try: a browser may remember that a module could not be loaded.
    return (await import(`/phoenix.mjs?try=${tries}`)).Socket
  } catch {
    return whyNoClient()
  }
}

async function whyNoClient() {
  try {
    const {status} = await fetch("/phoenix.mjs", {method: "HEAD", cache: "no-store"})
    if (status === 404) {
      show("error", "the Phoenix client is not installed: install npm and start the example again")
      return null
    }
    show("error", `the Phoenix client cannot be loaded (status ${status}), trying again`)
  } catch {
    show("error", "the server cannot be reached, trying again")
  }
}

// A token, null if the server refuses one, and undefined if it is worth another try.
async function signIn() {
  try {
    const answer = await fetch(`/token?user=${encodeURIComponent(user)}`)
    if (answer.ok) return (await answer.json()).token
    show("error", `cannot sign in as ${user}: ${await answer.text()}`)
    return answer.status < 500 ? null : undefined
  } catch {
    show("error", "the server cannot be reached, trying again")
  }
}

async function pushHello() {
  $("push").disabled = true
  const body = {user_id: Number(user), event: "push_timed", data: {text: "hello"}}
  try {
    const answer = await fetch("/push", {method: "POST", body: JSON.stringify(body)})
    if (!answer.ok) showFor(5_000, "error", `the push was refused: ${await answer.text()}`)
  } catch {
    showFor(5_000, "error", "the server cannot be reached, push again later")
  }
  $("push").disabled = false
}

function arrived(event, {data, at_us}) {
  const now = performance.timeOrigin + performance.now()
  const took = now - at_us / 1000
  minute.push({at: now, took})
  count += 1

  $("empty").hidden = $("try").hidden = true
  const item = document.createElement("li")
  const time = TIME.format(now)
  for (const text of [time, event, milliseconds(took), JSON.stringify(data)]) {
    item.append(Object.assign(document.createElement("span"), {textContent: text}))
  }
  const list = $("arrivals")
  list.prepend(item)
  while (list.childElementCount > SHOWN) list.lastElementChild.remove()
}

function drawForever() {
  const now = performance.timeOrigin + performance.now()
  let old = 0
  while (old < minute.length && minute[old].at < now - MINUTE_MS) old += 1
  minute.splice(0, old)

  const sorted = minute.map(push => push.took).sort((a, b) => a - b)
  const percentile = p => sorted.length ? milliseconds(sorted[Math.ceil(sorted.length * p) - 1]) : "–"
  $("count").textContent = count.toLocaleString()
  $("p50").textContent = percentile(0.5)
  $("p95").textContent = percentile(0.95)
  $("p99").textContent = percentile(0.99)
  plot(now, sorted.at(-1) ?? 0)
  // A timer keeps a steady pace, also in a background tab.
  setTimeout(drawForever, 250)
}

// The durable queue, if the pushes wait in one.
async function showQueue() {
  let queue
  try {
    queue = await (await fetch("/queue", {cache: "no-store"})).json()
  } catch {
    queue = undefined
  }
  if (queue === null) return
  if (queue) {
    const number = n => n === null ? "–" : n.toLocaleString()
    $("queue").hidden = false
    $("queue-state").textContent = queue.connected ? "" : "not connected"
    $("backlog").textContent = number(queue.backlog)
    $("oldest").textContent = queue.oldest_seconds === null ? "–" : duration(queue.oldest_seconds)
    $("redelivered").textContent = number(queue.redelivered)
    $("retried").textContent = number(queue.retried)
    $("released").textContent = number(queue.released)
    $("set-aside").textContent = number(queue.set_aside)
    $("dead").textContent = number(queue.dead_letters)
  }
  setTimeout(showQueue, 1000)
}

function duration(seconds) {
  if (seconds < 120) return `${seconds.toFixed(1)} s`
  return seconds < 7200 ? `${Math.round(seconds / 60)} min` : `${Math.round(seconds / 3600)} h`
}

function plot(now, longest) {
  const canvas = $("plot")
  const scale = devicePixelRatio || 1
  const [width, height] = [canvas.clientWidth, canvas.clientHeight]
  canvas.width = width * scale
  canvas.height = height * scale
  const draw = canvas.getContext("2d")
  draw.scale(scale, scale)

  const color = name => getComputedStyle(document.documentElement).getPropertyValue(name)
  const top = niceCeiling(longest)
  const [left, bottom] = [64, height - 22]
  const x = at => left + (width - left - 8) * (1 - (now - at) / MINUTE_MS)
  const y = took => bottom - (bottom - 12) * Math.max(took, 0) / top

  draw.font = "12px system-ui, sans-serif"
  draw.fillStyle = color("--soft")
  draw.strokeStyle = color("--line")
  draw.textAlign = "right"
  draw.textBaseline = "middle"
  for (const part of [0, 0.5, 1]) {
    draw.fillText(`${+(top * part).toPrecision(2)} ms`, left - 8, y(top * part))
    draw.beginPath()
    draw.moveTo(left, y(top * part))
    draw.lineTo(width - 8, y(top * part))
    draw.stroke()
  }
  for (const [seconds, align] of [[60, "left"], [30, "center"], [0, "right"]]) {
    draw.textAlign = align
    draw.fillText(seconds ? `${seconds} s ago` : "now", x(now - seconds * 1000), height - 9)
  }
  draw.fillStyle = color("--accent")
  for (const {at, took} of minute) {
    draw.beginPath()
    draw.arc(x(at), y(took), 2, 0, 2 * Math.PI)
    draw.fill()
  }
}

// The next of 1, 2, 5, 10, 20, 50 … and so on.
function niceCeiling(value) {
  const power = 10 ** Math.floor(Math.log10(Math.max(value, 0.1)))
  return [1, 2, 5, 10].map(step => step * power).find(step => step >= value) ?? 10 * power
}

function milliseconds(value) {
  return `${value.toFixed(value < 10 ? 2 : value < 100 ? 1 : 0)} ms`
}

function show(state, text) {
  $("status").dataset.state = state
  $("status").textContent = text
}

// Shows something for a while, and then what was there before, unless there is news.
function showFor(ms, state, text) {
  const before = [$("status").dataset.state, $("status").textContent]
  show(state, text)
  setTimeout(() => $("status").textContent === text && show(...before), ms)
}

function showUsers() {
  for (const id of new Set(["1", "2", "3", user])) {
    const link = Object.assign(document.createElement("a"), {href: `/?user=${encodeURIComponent(id)}`, textContent: `user ${id}`})
    if (id === user) link.setAttribute("aria-current", "page")
    $("users").append(link)
  }
}
