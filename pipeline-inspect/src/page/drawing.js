
// A drawing of a pipeline: stages in layers, from left to right, or downwards on narrow screens.
const BOX = {width: 214, height: 196, across: 64, down: 58, gap: 22}

const WORDS = {
  busy: ['●', 'busy'],
  waiting_for_events: ['◌', 'waits for events'],
  waiting_for_demand: ['◐', 'waits for demand'],
  paused: ['‖', 'paused'],
  starting: ['…', 'starting'],
  ended: ['■', 'ended'],
}

const KINDS = {
  producer: 'producer',
  producer_consumer: 'producer-consumer',
  consumer: 'consumer',
  consumer_supervisor: 'supervisor',
}

function svg(name, attributes = {}, parent = null) {
  const element = document.createElementNS('http://www.w3.org/2000/svg', name)
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value)
  parent?.append(element)
  return element
}

class Drawing {
  constructor() {
    this.element = svg('svg', {class: 'drawing', role: 'img'})
    this.lines = svg('g', {}, this.element)
    this.boxes = svg('g', {}, this.element)
    this.stages = new Map()
    this.edges = new Map()
    this.shape = ''
  }

  show(pipeline, width) {
    const {stages, edges} = pipeline
    const inside = edges.filter((edge) => stages.some((stage) => stage.name === edge.to))
    const shape = JSON.stringify([width, stages.map((s) => [s.name, s.layer, s.kind]), inside.map((e) => [e.from, e.to])])
    if (shape !== this.shape) {
      this.shape = shape
      this.arrange(stages, inside, width)
    }
    for (const stage of stages) this.stages.get(stage.name).show(stage, stage.name === pipeline.bottleneck)
    for (const edge of inside) {
      const {text, asked, flow} = this.edges.get(JSON.stringify([edge.from, edge.to]))
      put(text, rate(edge.per_second))
      put(asked, `${count(edge.pending_demand)} asked`)
      flow.classList.toggle('moves', edge.per_second > 0)
    }
    const bottleneck = pipeline.bottleneck ? `, bottleneck ${pipeline.bottleneck}` : ''
    this.element.setAttribute('aria-label', `${pipeline.name}: ${stages.map((s) => `${s.name} ${WORDS[s.mostly]?.[1] ?? s.mostly}`).join(', ')}${bottleneck}`)
  }

  arrange(stages, edges, width) {
    this.lines.replaceChildren()
    this.boxes.replaceChildren()
    this.stages.clear()
    this.edges.clear()
    const layers = []
    for (const stage of stages) (layers[stage.layer] ??= []).push(stage)
    const rows = layers.filter(Boolean)
    const breadth = rows.length * BOX.width + (rows.length - 1) * BOX.across
    const places = breadth <= width ? this.across(rows, width) : this.down(rows, width)
    for (const stage of stages) {
      const box = new StageBox(stage, places.get(stage.name))
      this.boxes.append(box.element)
      this.stages.set(stage.name, box)
    }
    for (const edge of edges) this.line(edge, places.get(edge.from), places.get(edge.to))
    this.element.setAttribute('width', width)
    this.element.setAttribute('height', this.height)
    this.element.setAttribute('viewBox', `0 0 ${width} ${this.height}`)
  }

  across(rows, width) {
    const places = new Map()
    const tallest = Math.max(...rows.map((row) => row.length))
    this.height = tallest * BOX.height + (tallest - 1) * BOX.gap + 26
    const gap = Math.min(180, rows.length > 1 ? (width - rows.length * BOX.width) / (rows.length - 1) : 0)
    rows.forEach((row, layer) => {
      const free = this.height - 26 - row.length * BOX.height - (row.length - 1) * BOX.gap
      row.forEach((stage, at) => {
        places.set(stage.name, {
          x: layer * (BOX.width + gap) + 1,
          y: 14 + free / 2 + at * (BOX.height + BOX.gap),
          width: BOX.width - 2,
          sideways: true,
        })
      })
    })
    return places
  }

  down(rows, width) {
    const places = new Map()
    let y = 14
    const fit = Math.max(1, Math.floor((width + BOX.gap) / (158 + BOX.gap)))
    for (const row of rows) {
      for (let first = 0; first < row.length; first += fit) {
        const line = row.slice(first, first + fit)
        const room = (width - (line.length - 1) * BOX.gap) / line.length
        const box = Math.min(room, line.length === 1 ? 420 : 300)
        const left = (width - line.length * box - (line.length - 1) * BOX.gap) / 2
        line.forEach((stage, at) => {
          places.set(stage.name, {x: left + at * (box + BOX.gap) + 1, y, width: box - 2, sideways: false})
        })
        y += BOX.height + (first + fit < row.length ? BOX.gap : BOX.down)
      }
    }
    this.height = y - BOX.down + 12
    return places
  }

  line(edge, from, to) {
    let path, x, y
    if (from.sideways) {
      const [x1, y1, x2, y2] = [from.x + from.width, from.y + BOX.height / 2, to.x, to.y + BOX.height / 2]
      const bend = (x2 - x1) / 2
      path = `M${x1} ${y1} C${x1 + bend} ${y1} ${x2 - bend} ${y2} ${x2} ${y2}`
      ;[x, y] = [(x1 + x2) / 2, (y1 + y2) / 2 - 8]
    } else {
      const [x1, y1, x2, y2] = [from.x + from.width / 2, from.y + BOX.height, to.x + to.width / 2, to.y]
      const bend = (y2 - y1) / 2
      path = `M${x1} ${y1} C${x1} ${y1 + bend} ${x2} ${y2 - bend} ${x2} ${y2}`
      ;[x, y] = [(x1 + x2) / 2, (y1 + y2) / 2 - 2]
    }
    svg('path', {class: 'edge', d: path}, this.lines)
    const flow = svg('path', {class: 'flow', d: path}, this.lines)
    const text = svg('text', {class: 'rate', x, y}, this.lines)
    const asked = svg('text', {class: 'rate soft', x, y: y + (from.sideways ? 26 : 16)}, this.lines)
    this.edges.set(JSON.stringify([edge.from, edge.to]), {text, asked, flow})
  }
}

// The box of a stage. Its lines keep their places when their text changes.
class StageBox {
  constructor(stage, {x, y, width}) {
    const left = x + 16
    const right = x + width - 12
    this.room = right - left
    this.left = left
    this.element = svg('g', {class: 'stage', 'data-stage': stage.name})
    svg('rect', {class: 'box', x, y, width, height: BOX.height, rx: 10}, this.element)
    svg('rect', {class: 'stripe', x: x + 5, y: y + 12, width: 4, height: BOX.height - 24, rx: 2}, this.element)
    const text = (kind, at, down) => svg('text', {class: kind, x: at, y: y + down}, this.element)
    const name = text('name', left, 25)
    name.textContent = clipped(stage.name, Math.floor(this.room / 9.2))
    svg('title', {}, name).textContent = stage.name
    text('soft', left, 42).textContent = KINDS[stage.kind] ?? stage.kind
    this.state = text('state', left, 64)
    this.rate = text('big value', right, 90)
    this.rateLabel = text('label', left, 89)
    svg('rect', {class: 'track', x: left, y: y + 99, width: this.room, height: 7, rx: 2}, this.element)
    this.shares = ['busy', 'demand', 'events'].map((kind) =>
      svg('rect', {class: `bar ${kind}`, x: left, y: y + 99, width: this.room, height: 7}, this.element))
    this.rows = lines(stage).map(([label, read, filled], at) => {
      const down = 127 + at * 23
      text('label', left, down).textContent = label
      const value = text('value', right, down)
      if (!filled) return {value, read}
      const bar = {x: left, y: y + down + 5, width: this.room, height: 3, rx: 1.5}
      svg('rect', {class: 'track', ...bar}, this.element)
      const fill = svg('rect', {class: 'bar fill', ...bar}, this.element)
      return {value, fill, read}
    })
    const flag = svg('g', {class: 'flag'}, this.element)
    const wide = Math.min(112, width - 16)
    svg('rect', {x: x + width - wide - 8, y: y - 10, width: wide, height: 20, rx: 10}, flag)
    this.flag = svg('text', {x: x + width - wide / 2 - 8, y: y + 4}, flag)
    this.flag.textContent = 'BOTTLENECK'
  }

  show(stage, isBottleneck) {
    const [icon, plain] = WORDS[stage.mostly] ?? ['', stage.mostly]
    const word = stage.items_held_back > 0 ? `${count(stage.items_held_back)} held back` : plain
    this.element.setAttribute('data-state', stage.mostly)
    this.element.classList.toggle('bottleneck', isBottleneck)
    const narrow = this.room < 180
    put(this.state, `${icon} ${narrow ? word.replace('waits for', 'no') : word}`)
    const emits = stage.kind === 'producer' || stage.kind === 'producer_consumer'
    put(this.rateLabel, emits ? 'out' : 'in')
    put(this.rate, rate(emits ? stage.out_per_second : stage.in_per_second))
    let before = 0
    const parts = [stage.busy, stage.waiting_for_demand, stage.waiting_for_events]
    parts.forEach((part, at) => {
      this.shares[at].style.transform = `translateX(${before * this.room}px) scaleX(${part})`
      before += part
    })
    for (const {value, fill, read} of this.rows) {
      const {text, part, alarm} = read(stage)
      put(value, text)
      if (!fill) continue
      fill.style.transform = `scaleX(${Math.min(1, Math.max(0, part))})`
      fill.classList.toggle('full', Boolean(alarm))
    }
  }
}

// The lines of a stage of this kind, and how full it is.
function lines(stage) {
  const plain = (read) => (s) => ({text: count(read(s))})
  const of = (n, bound) => (bound === null ? {text: count(n)} : {text: `${count(n)} of ${count(bound)}`, part: n / Math.max(1, bound), alarm: n >= bound})
  const queued = ['queue', (s) => of(s.queued, s.queue_capacity), true]
  const buffered = ['buffer', (s) => of(s.buffered, s.buffer_capacity), stage.buffer_capacity !== null]
  const demand = ['demand', plain((s) => s.demand)]
  const waiting = ['waiting', plain((s) => s.waiting)]
  const workers = ['workers', plain((s) => s.workers ?? 0)]
  const restarts = ['restarts', plain((s) => s.restarts)]
  const failed = ['failed', plain((s) => s.worker_failures)]
  switch (stage.kind) {
    case 'producer': return [stage.queue_capacity === null ? restarts : queued, buffered, demand]
    case 'producer_consumer': return [waiting, buffered, demand]
    case 'consumer_supervisor': return [workers, waiting, failed]
    default: return [waiting, restarts]
  }
}

function clipped(text, most) {
  return text.length > most ? `${text.slice(0, most - 1)}…` : text
}
