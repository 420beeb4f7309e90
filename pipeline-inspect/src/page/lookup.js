// The page that looks up sockets. All text from the server is inserted as text, never as HTML.
const byId = (id) => document.getElementById(id)
const base = location.pathname.replace(/\/lookup\/*$/, '')
const seconds = (value) => (value === null ? '–' : `${Math.round(value)} s`)
let shown = null

function say(text) {
  byId('status').textContent = text
}

function button(text, end) {
  const made = document.createElement('button')
  made.type = 'button'
  made.textContent = text
  made.addEventListener('click', end)
  return made
}

async function find() {
  shown = byId('id').value
  try {
    const response = await fetch(`${base}/lookup.json?id=${encodeURIComponent(shown)}`, {cache: 'no-store'})
    if (!response.ok) return say(await response.text())
    show(await response.json())
  } catch {
    say('connection lost')
  }
}

async function end(question, query) {
  if (!confirm(question)) return
  const parts = Object.entries({id: shown, ...query}).map(([name, value]) => `${name}=${encodeURIComponent(value)}`)
  try {
    const response = await fetch(`${base}/end?${parts.join('&')}`, {method: 'POST', headers: {'x-inspect': 'end'}})
    if (!response.ok) return say(await response.text())
    await find()
  } catch {
    say('connection lost')
  }
}

function show({sockets, more}) {
  const body = byId('found').tBodies[0]
  body.replaceChildren()
  byId('all').hidden = sockets.length === 0
  const rest = more > 0 ? `, and ${more} more` : ''
  say(sockets.length === 0 ? 'no open socket on this node' : `${sockets.length} open${rest}`)
  for (const socket of sockets) {
    const row = body.insertRow()
    const {number} = socket
    const close = button('close', () => end(`Close socket ${number}?`, {socket: number}))
    row.insertCell().append(`${number} `, close)
    for (const text of [
      socket.socket, socket.transport, seconds(socket.open_seconds), seconds(socket.silent_seconds),
      seconds(socket.expires_in_seconds), `${socket.frames_waiting} (${socket.bytes_waiting} B)`,
    ]) row.insertCell().textContent = text
    const topics = row.insertCell()
    if (socket.topics === null) topics.textContent = 'no answer'
    for (const topic of socket.topics ?? []) {
      const ends = button('end', () => end(`End the channel ${topic}?`, {socket: number, topic}))
      const line = document.createElement('div')
      line.append(`${topic} `, ends)
      topics.append(line)
    }
  }
}

byId('find').addEventListener('click', find)
byId('id').addEventListener('keydown', (event) => event.key === 'Enter' && find())
byId('all').addEventListener('click', () => end(`Close all sockets of ${shown}, on all nodes?`, {}))
