
// The page. All text from the server is inserted as text, never as HTML.
const byId = (id) => document.getElementById(id)
const base = location.pathname.replace(/\/+$/, '')
const drawn = []
let latest = null

byId('json').href = `${base}/data.json`
// It is there only if sockets may be looked up.
if (byId('lookup')) byId('lookup').href = `${base}/lookup`

function make(name, properties = {}, ...children) {
  const element = Object.assign(document.createElement(name), properties)
  element.append(...children)
  return element
}

function showPipelines(pipelines) {
  while (drawn.length > pipelines.length) drawn.pop().section.remove()
  pipelines.forEach((pipeline, at) => {
    if (!drawn[at]) {
      const name = make('span')
      const phase = make('span', {className: 'phase'})
      const verdict = make('span', {className: 'verdict'})
      const drawing = new Drawing()
      const section = make('section', {className: 'pipeline'}, make('h2', {}, name, phase, verdict), drawing.element)
      byId('pipelines').append(section)
      drawn[at] = {section, name, phase, verdict, drawing}
    }
    const {section, name, phase, verdict, drawing} = drawn[at]
    put(name, pipeline.name)
    put(phase, pipeline.phase)
    const bottleneck = pipeline.bottleneck
    verdict.dataset.bottleneck = String(bottleneck !== null)
    put(verdict, bottleneck === null ? 'no bottleneck' : `bottleneck: ${bottleneck}`)
    drawing.show(pipeline, Math.floor(section.clientWidth))
  })
}

// Cards keep their elements, so that the layout is stable when numbers change.
function cards(parent, list) {
  list.forEach(({label, value}, at) => {
    const card = parent.children[at] ?? parent.appendChild(make('div', {className: 'card'}, make('b'), make('span')))
    put(card.children[0], value)
    put(card.children[1], label)
  })
}

function table(id, rows) {
  const body = byId(id).tBodies[0]
  while (body.rows.length > rows.length) body.deleteRow(-1)
  rows.forEach((cells, at) => {
    const row = body.rows[at] ?? body.insertRow()
    cells.forEach((cell, column) => put(row.cells[column] ?? row.insertCell(), cell))
  })
}

// Why a part of a push's time is long.
const LEGS = {
  queued: 'the workers are too few or too slow',
  waited: 'a stage has taken more than its workers handle',
  worked: 'a database, a service',
  written: 'clients read slowly, or the machine is busy',
}

// Items that a source may not fetch yet, although it has demand for them.
const HELD_BACK = 'or items of a source are in work elsewhere, or wait for their key, a delay or a lease, which more workers do not change'

function showLegs(legs, heldBack) {
  const most = Math.max(0, ...legs.map((leg) => leg.p99 ?? 0))
  const why = (leg) => (leg === 'queued' && heldBack ? `${LEGS.queued}; ${HELD_BACK}` : LEGS[leg] ?? '')
  const normal = ({normal_ms}) => normal_ms == null ? 'what your work takes' : `below ${normal_ms} ms`
  table('legs', legs.map((leg) => [leg.leg, ...[leg.p50, leg.p99, leg.max].map(milliseconds), normal(leg), why(leg.leg)]))
  legs.forEach((leg, at) => {
    byId('legs').tBodies[0].rows[at].dataset.longest = String(most > 0 && leg.p99 === most)
  })
}

function showDelivered({windows, history, legs}, heldBack) {
  showLegs(legs ?? [], heldBack)
  const parent = byId('delivery')
  windows.forEach((window, at) => {
    if (!parent.children[at]) {
      const terms = ['p50', 'p90', 'p99', 'max'].flatMap((term) => [make('dt', {textContent: term}), make('dd')])
      parent.append(make('div', {className: 'card'}, make('h3'), make('dl', {}, ...terms)))
    }
    const card = parent.children[at]
    const over = window.seconds < 60 ? `${window.seconds} s` : `${window.seconds / 60} min`
    put(card.children[0], `last ${over} · ${count(window.count)}`)
    const values = card.querySelectorAll('dd')
    ;['p50', 'p90', 'p99', 'max'].forEach((term, i) => put(values[i], milliseconds(window[term])))
  })
  const most = Math.max(0, ...history.map((point) => point.p99 ?? 0))
  // The first point of the history comes after five seconds.
  const delivered = windows.some((window) => window.count > 0)
  const empty = delivered ? 'measuring' : 'nothing delivered yet'
  put(byId('peak'), most > 0 ? milliseconds(most) : empty)
  const spark = byId('spark')
  spark.setAttribute('viewBox', '0 0 59 100')
  spark.setAttribute('preserveAspectRatio', 'none')
  for (const part of ['p99', 'p50']) {
    const path = spark.querySelector(`.${part}`) ?? svg('path', {class: part}, spark)
    let pen = 'M'
    const steps = history.map((point, at) => {
      const value = point[part]
      if (value === null || most === 0) {
        pen = 'M'
        return ''
      }
      const step = `${pen}${59 - (history.length - 1 - at)} ${97 - (value / most) * 94}`
      pen = 'L'
      return step
    })
    path.setAttribute('d', steps.join(''))
  }
}

function showEndpoint(endpoint, heldBack) {
  byId('endpoint').hidden = endpoint === null
  if (endpoint === null) return
  showDelivered(endpoint.delivered, heldBack)
  cards(byId('frames'), [
    {label: 'frames out', value: rate(endpoint.frames_out_per_second)},
    {label: 'frames in', value: rate(endpoint.frames_in_per_second)},
    {label: 'broadcasts', value: rate(endpoint.broadcasts_per_second)},
    {label: `frames wait, ${bytes(endpoint.bytes_waiting)}`, value: count(endpoint.frames_waiting)},
    {label: 'dropped', value: rate(endpoint.dropped_per_second)},
    {label: 'closed, too slow', value: count(endpoint.closed_slow)},
  ])
  table('sockets', endpoint.sockets.map((s) => [s.path, count(s.open), count(s.connected), count(s.refused)]))
  table('channels', endpoint.channels.map((c) => [c.pattern, count(c.topics), count(c.open), count(c.refused)]))
}

// Items that a queue did not take: their senders know.
const refusals = {
  queue_full: 'refused, the queue was full',
  key_full: 'refused, the queue was full for the key',
  gave_up: 'the sender stopped waiting for room',
}

function showDrops({pipelines, endpoint}) {
  const rows = []
  for (const pipeline of pipelines) {
    for (const stage of pipeline.stages) {
      const of = `${pipeline.name} › ${stage.name}`
      for (const [reason, n] of Object.entries(stage.discarded_by)) rows.push([of, reason, count(n)])
      for (const [reason, n] of Object.entries(stage.refused_by)) rows.push([of, refusals[reason] ?? `${reason}, refused`, count(n)])
    }
  }
  for (const [reason, n] of Object.entries(endpoint?.dropped ?? {})) rows.push(['frames', reason, count(n)])
  byId('drops').hidden = rows.length === 0
  byId('no-drops').hidden = rows.length > 0
  table('drops', rows)
}

function showSources(pipelines) {
  const known = (n) => (n === null ? '–' : count(n))
  const rows = []
  for (const pipeline of pipelines) {
    for (const {name, source} of pipeline.stages) {
      if (!source) continue
      const state = source.connected ? 'connected' : 'not connected'
      rows.push([
        `${pipeline.name} › ${name}`, source.broker, state, known(source.backlog), age(source.oldest_age_seconds),
        count(source.held), count(source.redelivered), count(source.given_up), known(source.dead_letters),
        count(source.connection_errors), source.last_error ?? '–',
      ])
    }
  }
  byId('sources').hidden = rows.length === 0
  table('source-table', rows)
}

function showNodes(nodes) {
  const traffic = (broadcasts, size) => `${rate(broadcasts)}, ${bytes(Math.round(size))}/s`
  const state = (node) => {
    if (node.is_gone) return `gone for ${age(node.silent_seconds)}`
    if (node.between && !node.between.is_connected) return 'cut off'
    return node.is_draining ? 'draining' : 'up'
  }
  byId('nodes').hidden = nodes.length === 0
  table('node-table', nodes.map((node) => {
    const between = node.between
    return [
      node.is_this ? `${node.name} (this)` : node.name, state(node), count(node.sockets), count(node.channels),
      rate(node.frames_out_per_second), milliseconds(node.delivered_p99),
      between ? traffic(between.sent_per_second, between.sent_bytes_per_second) : '–',
      between ? traffic(between.received_per_second, between.received_bytes_per_second) : '–',
      between ? milliseconds(between.lag_ms) : '–', between ? `${count(between.gaps)}, ${count(between.lost)} lost` : '–',
      between ? count(between.waiting) : '–', node.bottlenecks.join(', ') || '–',
    ]
  }))
}

function show(view) {
  latest = view
  showNodes(view.nodes)
  showPipelines(view.pipelines)
  showSources(view.pipelines)
  showEndpoint(view.endpoint, view.pipelines.some(({stages}) => stages.some((stage) => stage.items_held_back > 0)))
  showDrops(view)
}

function status(state, text) {
  byId('status').dataset.state = state
  put(byId('status'), text)
  document.body.classList.toggle('stale', state === 'lost')
}

// While the channel is not available, data.json is polled.
async function ask() {
  try {
    const response = await fetch(`${base}/data.json`, {cache: 'no-store'})
    if (!response.ok) throw new Error(String(response.status))
    show(await response.json())
    return true
  } catch {
    return false
  }
}

const scheme = location.protocol === 'https:' ? 'wss:' : 'ws:'
let asking = null
follow(`${scheme}//${location.host}${base}/socket/websocket?vsn=2.0.0`, 'inspect', 'view', {
  show(view) {
    clearInterval(asking)
    asking = null
    show(view)
    status('live', 'live')
  },
  lost() {
    if (asking !== null) return
    status('lost', 'connection lost, trying again')
    const timer = setInterval(async () => {
      const there = await ask()
      if (asking !== timer) return
      if (there) status('asking', 'polling every second')
      else status('lost', 'connection lost, trying again')
    }, 1000)
    asking = timer
  },
})

new ResizeObserver(() => latest && showPipelines(latest.pipelines)).observe(byId('pipelines'))
