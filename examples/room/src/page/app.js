// Signs in, joins the room, and shows messages, visitors, and who is typing.

const TOPIC = "room:lobby"
// How long after the last key the visitor counts as typing.
const PAUSE_MS = 3000
// How long a WebSocket may take before the fallback to long polling.
const FALLBACK_MS = 3000
const RETRY_MS = 2000
const TIME = new Intl.DateTimeFormat([], {hour: "2-digit", minute: "2-digit", hourCycle: "h23"})

const params = new URLSearchParams(location.search)
const name = params.get("name") ?? "guest"
const device = params.get("device") ?? (matchMedia("(pointer: coarse)").matches ? "phone" : "computer")
const $ = id => document.getElementById(id)

// The number of the last message shown: repeated messages are skipped.
let last = 0
enter()

// The Phoenix client, or nothing if the server does not have it. While npm installs it there, it comes later.
async function client() {
  for (let tries = 1; ; tries += 1) {
    try {
      // Another address for each try: a browser may remember that a module could not be loaded.
      return await import(`/phoenix.mjs?try=${tries}`)
    } catch {
      const answer = await fetch("/phoenix.mjs", {method: "HEAD", cache: "no-store"}).catch(() => null)
      if (answer?.status === 404) {
        return show("error", "the Phoenix client is not installed: install npm and start the example again")
      }
      show("error", "the Phoenix client cannot be loaded, trying again")
    }
    await new Promise(resolve => setTimeout(resolve, RETRY_MS))
  }
}

async function enter() {
  const phoenix = await client()
  if (!phoenix) return
  let token = await signIn()
  if (!token) return
  const {LongPoll, Presence, Socket} = phoenix
  const polls = params.get("transport") === "longpoll"
  const transport = polls ? {transport: LongPoll} : {longPollFallbackMs: FALLBACK_MS}
  const socket = new Socket("/socket", {params: () => ({token, device}), ...transport})
  // The server may have restarted with another secret: get a new token for the next attempt.
  socket.onError(async () => {
    show("error", "disconnected, connecting again")
    token = await signIn() ?? token
  })

  const channel = socket.channel(TOPIC)
  const presence = new Presence(channel)
  presence.onSync(() => showPeople(presence.list((name, {metas}) => ({name, metas}))))
  channel.on("said", said)
  channel.join()
    .receive("ok", ({messages}) => {
      // A restarted server counts from the beginning.
      if (messages.length === 0 || messages.at(-1).number < last) last = 0
      messages.forEach(said)
      show("joined", `here as ${name}, on ${device}`)
    })
    .receive("error", ({reason}) => show("error", `may not come in: ${reason}`))
  socket.connect()
  speak(channel)
}

async function signIn() {
  try {
    const answer = await fetch(`/token?name=${encodeURIComponent(name)}`)
    if (answer.ok) return (await answer.json()).token
    show("error", `cannot sign in as ${name}: ${await answer.text()}`)
  } catch {
    show("error", "the server cannot be reached")
  }
}

// Sends the message, and reports typing.
function speak(channel) {
  let typing = false, pause
  const isTyping = now => {
    clearTimeout(pause)
    if (now) pause = setTimeout(() => isTyping(false), PAUSE_MS)
    if (now !== typing) channel.push("typing", {typing: now})
    typing = now
  }
  $("text").addEventListener("input", () => isTyping($("text").value !== ""))
  $("say").addEventListener("submit", event => {
    event.preventDefault()
    const text = $("text").value
    clearTimeout(pause)
    // The server resets the typing state when a message is sent.
    typing = false
    channel.push("say", {text})
      .receive("ok", () => { if ($("text").value === text) $("text").value = "" })
      .receive("error", ({reason}) => show("error", reason))
      .receive("timeout", () => show("error", "the server does not answer"))
  })
}

function said({number, name, text, at_ms}) {
  if (number <= last) return
  last = number
  const item = document.createElement("li")
  const at = new Date(at_ms)
  const time = Object.assign(element("time", TIME.format(at)), {dateTime: at.toISOString()})
  item.append(time, " ", element("b", name), " ", element("span", text))
  $("messages").append(item)
  item.scrollIntoView({block: "nearest"})
}

function showPeople(people) {
  people.sort((one, other) => one.name.localeCompare(other.name))
  $("people").replaceChildren(...people.map(({name, metas}) => {
    const item = element("li", name)
    item.dataset.name = name
    item.append(...metas.map(({device}) => element("small", device)))
    return item
  }))
  const typing = people.filter(person => person.name !== name && person.metas.some(meta => meta.typing))
  const names = new Intl.ListFormat("en").format(typing.map(person => person.name))
  $("typing").textContent = names && `${names} ${typing.length > 1 ? "are" : "is"} typing`
}

function element(tag, textContent) {
  return Object.assign(document.createElement(tag), {textContent})
}

function show(state, text) {
  $("status").dataset.state = state
  $("status").textContent = text
}
