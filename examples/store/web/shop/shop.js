// Every shopper's page, but those of the React variant.

import {Socket} from 'phoenix'

import {cartAccess} from '../common/cart_access.js'
import {watchConnection} from '../common/connection.js'
import {page} from '../common/page.js'
import {storedCart} from '../common/stored_cart.js'
import {Cart} from './cart.js'
import {joinPage} from './drops.js'
import {Products} from './products.js'

const socket = new Socket('/product_socket')
watchConnection(socket, document.getElementById('connection'))
socket.connect()

window.cartId = page.cartId
const stored = storedCart()
const access = cartAccess({
  cartId: page.cartId,
  token: page.cartToken,
  bought: page.bought,
  stored,
  path: () => location.pathname,
  reload: () => location.reload(),
})
const products = new Products(() => cart.mark())
if (page.variant === 'drops') joinPage(socket, () => cart.mark())
else products.join(socket)
const cart = new Cart(socket, page.cartId, access, stored)

// On the document, so that elements that arrive later work, too.
document.addEventListener('click', (event) => {
  const size = event.target.closest('.size-container__entry')
  const remove = event.target.closest('.cart-item__remove')
  if (!size && !remove) return
  event.preventDefault()
  if (size) cart.add(size.value)
  else cart.remove(remove.dataset.itemId)
})
