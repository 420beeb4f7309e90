
// A client of one channel: version 2 of the protocol of Phoenix Channels.
function follow(url, topic, event, {show, lost}) {
  const HEARTBEAT = 30_000
  let reference = 0
  let attempts = 0

  function connect() {
    let socket
    let beat
    let answered = true
    let over = false
    const join = String(++reference)
    const end = () => {
      if (over) return
      over = true
      clearInterval(beat)
      socket?.close()
      attempts += 1
      const wait = Math.min(500 * 2 ** (attempts - 1), 10_000) * (0.75 + Math.random() / 2)
      lost(wait)
      setTimeout(connect, wait)
    }
    const send = (joined, to, name, payload) => {
      const number = String(++reference)
      socket.send(JSON.stringify([joined, joined && name === 'phx_join' ? joined : number, to, name, payload]))
      return number
    }
    try {
      socket = new WebSocket(url)
    } catch {
      return end()
    }
    // A server that does not answer in time counts as lost.
    const patience = setTimeout(end, 10_000)
    socket.onopen = () => {
      send(join, topic, 'phx_join', {})
      beat = setInterval(() => {
        if (!answered) return end()
        answered = false
        send(null, 'phoenix', 'heartbeat', {})
      }, HEARTBEAT)
    }
    socket.onclose = end
    socket.onerror = end
    socket.onmessage = ({data}) => {
      if (over) return
      answered = true
      const [joined, number, to, name, payload] = JSON.parse(data)
      if (to !== topic) return
      if (name === event) return show(payload)
      if (joined !== join) return
      if (name === 'phx_reply' && number === join) {
        clearTimeout(patience)
        if (payload.status !== 'ok') return end()
        attempts = 0
        show(payload.response)
      } else if (name === 'phx_error' || name === 'phx_close') {
        end()
      }
    }
  }

  connect()
}
