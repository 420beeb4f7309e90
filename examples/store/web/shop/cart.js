// The cart's channel. The server is the one that changes a cart; the page asks, and draws the answer.

import {explain, isCart, NO_ANSWER} from '../common/cart.js'
import {say} from '../common/notices.js'
import {draw, mark} from './cart_panel.js'

export class Cart {
  #channel
  #stored
  #items = []

  constructor(socket, cartId, access, stored) {
    this.#stored = stored
    this.#channel = socket.channel(`cart:${cartId}`, access.params)
    this.#channel.on('cart', (cart) => this.show(cart))
    this.#channel.join().receive('error', (reply) => access.refused(reply))
  }

  add(id) {
    this.#ask('add_item', id)
  }

  remove(id) {
    this.#ask('remove_item', id)
  }

  show(cart) {
    if (!isCart(cart)) return
    this.#stored.write(cart.serialized)
    this.#items = cart.items
    const container = document.getElementById('cart-container')
    if (container) draw(container, cart)
    this.mark()
  }

  /** Marks the sizes in the cart, also on buttons that have just appeared. */
  mark() {
    mark(this.#items)
  }

  #ask(event, id) {
    this.#channel
      .push(event, {item_id: String(id)})
      .receive('ok', (cart) => this.show(cart))
      .receive('error', (reply) => say(explain(reply)))
      .receive('timeout', () => say(NO_ANSWER))
  }
}
