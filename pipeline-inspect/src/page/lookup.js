// The page that looks up sockets. All text from the server is inserted as text, never as HTML.
const byId = (id) => document.getElementById(id)
const base = location.pathname.replace(/\/lookup\/*$/, '')
const seconds = (value) => (value === null ? '–' : `${Math.round(value)} s`)
const wait = (socket) => `${socket.frames_waiting} (${socket.bytes_waiting} B)`
const LOST = 'connection lost'
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

async function lookUp() {
  shown = byId('id').value
  try {
    const response = await fetch(`${base}/lookup.json?id=${encodeURIComponent(shown)}`, {cache: 'no-store'})
    if (!response.ok) return say(await response.text())
    show(await response.json())
  } catch {
    say(LOST)
  }
}

async function end(question, query) {
  if (!confirm(question)) return
  const parts = Object.entries(query).map(([name, value]) => `${name}=${encodeURIComponent(value)}`)
  try {
    const response = await fetch(`${base}/end?${parts.join('&')}`, {method: 'POST', headers: {'x-inspect': 'end'}})
    if (!response.ok) return say(await response.text())
    if (query.stage) return say((await response.json()).ended > 0 ? `${query.stage} was killed` : `${query.stage} does not run`)
    await refresh()
    // A socket is there until it has ended.
    setTimeout(refresh, 1000)
  } catch {
    say(LOST)
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
    const close = button('close', () => end(`Close socket ${number}?`, {id: shown, socket: number}))
    row.insertCell().append(`${number} `, close)
    for (const text of [
      socket.socket, socket.transport, seconds(socket.open_seconds), seconds(socket.silent_seconds),
      seconds(socket.expires_in_seconds), wait(socket),
    ]) row.insertCell().textContent = text
    const topics = row.insertCell()
    if (socket.topics === null) topics.textContent = 'no answer'
    for (const topic of socket.topics ?? []) {
      const ends = button('end', () => end(`End the channel ${topic}?`, {id: shown, socket: number, topic}))
      const line = document.createElement('div')
      line.append(`${topic} `, ends)
      topics.append(line)
    }
  }
}

async function look() {
  try {
    const response = await fetch(`${base}/waiting.json`, {cache: 'no-store'})
    if (!response.ok) return say(await response.text())
    const {sockets} = await response.json()
    if (byId('status').textContent === LOST) say('')
    const body = byId('waiting').tBodies[0]
    body.replaceChildren()
    byId('waiting').hidden = sockets.length === 0
    byId('none').textContent = sockets.length === 0 ? 'nothing waits' : ''
    for (const socket of sockets) {
      const row = body.insertRow()
      const find = () => {
        byId('id').value = socket.id
        return lookUp()
      }
      const close = () => end(`Close socket ${socket.number}?`, {socket: socket.number})
      // A socket without an id cannot be looked up.
      if (socket.id === null) row.insertCell().append('– ', button('close', close))
      else row.insertCell().append(button(socket.id, find))
      for (const text of [
        `${socket.number}, ${socket.socket}`, wait(socket), seconds(socket.silent_seconds),
        socket.topics?.join(', ') ?? 'no answer',
      ]) row.insertCell().textContent = text
    }
  } catch {
    say(LOST)
  }
}

// Looks again, unless another id is typed meanwhile.
function refresh() {
  return Promise.all([byId('id').value === shown && lookUp(), look()])
}

// What may be looked up or killed is set when the program starts.
async function offer() {
  try {
    const response = await fetch(`${base}/stages.json`, {cache: 'no-store'})
    if (!response.ok) return say(await response.text())
    const {sockets, pipelines} = await response.json()
    byId('sockets').hidden = !sockets
    byId('stages').hidden = pipelines.length === 0
    for (const {name, stages} of pipelines) {
      const row = byId('killable').tBodies[0].insertRow()
      row.insertCell().textContent = name
      const cell = row.insertCell()
      for (const stage of stages) {
        const query = {pipeline: name, stage}
        const line = document.createElement('div')
        line.append(`${stage} `, button('kill', () => end(`Kill the stage ${stage} of ${name}?`, query)))
        cell.append(line)
      }
    }
    if (sockets) look()
  } catch {
    say(LOST)
  }
}

byId('again').addEventListener('click', look)
offer()

byId('find').addEventListener('click', lookUp)
byId('id').addEventListener('keydown', (event) => event.key === 'Enter' && lookUp())
byId('all').addEventListener('click', () => end(`Close all sockets of ${shown}, on all nodes?`, {id: shown}))
