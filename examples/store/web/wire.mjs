// What the official client and two plain sockets hear, line by line, for a test that reads it.
//
// node wire.mjs ADDRESS CART_ID CART_TOKEN ADMIN_TOKEN. A line of the input is an event of the cart, {"event", "payload"}.

import {createInterface} from 'node:readline'

import {Presence, Socket} from 'phoenix'

const [address, cartId, token, adminToken] = process.argv.slice(2)
const write = (line) => console.log(JSON.stringify(line))

const joined = (socket, who, topic, params) => {
  const channel = socket.channel(topic, params)
  channel.onMessage = (event, payload) => {
    if (!event.startsWith('chan_reply') && event !== 'phx_reply') write({who, topic, event, payload})
    return payload
  }
  channel
    .join()
    .receive('ok', (payload) => write({who, topic, event: 'joined', payload}))
    .receive('error', (payload) => write({who, topic, event: 'refused', payload}))
  return channel
}

const shopper = new Socket(`ws://${address}/product_socket`, {transport: WebSocket})
shopper.connect()
joined(shopper, 'shopper', 'product:1', {})
joined(shopper, 'shopper', 'page:drops', {})
const cart = joined(shopper, 'shopper', `cart:${cartId}`, {token, page: '/'})
joined(shopper, 'other tab', `cart:${cartId.split('').reverse().join('')}`, {token, page: '/'})

const admin = new Socket(`ws://${address}/admin_socket`, {transport: WebSocket, authToken: adminToken})
admin.connect()
const tracker = joined(admin, 'admin', 'admin:cart_tracker', {})
const presence = new Presence(tracker)
presence.onSync(() => write({who: 'presence', event: 'sync', payload: presence.list((_, {metas}) => metas.length)}))
joined(admin, 'admin', 'admin:totals', {})

for (const who of ['one', 'two']) {
  const plain = new WebSocket(`ws://${address}/product_socket/websocket?vsn=2.0.0`)
  plain.onopen = () => {
    plain.send(JSON.stringify(['1', '1', 'product:1', 'phx_join', {}]))
    plain.send(JSON.stringify(['2', '2', 'page:drops', 'phx_join', {}]))
  }
  plain.onmessage = ({data}) => write({who, text: data})
}

createInterface({input: process.stdin})
  .on('line', (line) => {
    const {event, payload} = JSON.parse(line)
    cart
      .push(event, payload)
      .receive('ok', (payload) => write({who: 'reply', event: 'ok', payload}))
      .receive('error', (payload) => write({who: 'reply', event: 'error', payload}))
  })
  .on('close', () => process.exit())
