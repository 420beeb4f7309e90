// Draws the cart. Texts are set as text, so nothing in them is ever HTML.

import {checkoutUrl, dollars, pairs, total} from '../common/cart.js'
import {focusIn, keepFocus} from '../common/focus.js'

const make = (tag, className, text = '', attributes = {}) => {
  const element = document.createElement(tag)
  element.className = className
  element.textContent = text
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value)
  return element
}

const line = (item) => {
  const row = make('li', item.out_of_stock ? 'cart-item cart-item--out' : 'cart-item')
  row.dataset.itemId = item.id
  const photo = make('img', 'cart-item__photo', '', {src: item.main_image_url, alt: '', width: 96, height: 72})
  const text = make('div', 'cart-item__text')
  text.append(
    make('p', 'cart-item__name', item.name),
    make('p', 'cart-item__detail', `${item.color}, size ${item.size}`),
  )
  if (item.out_of_stock) text.append(make('p', 'cart-item__state', 'Sold out'))
  const price = make('p', 'cart-item__price', dollars(item.price_usd))
  const label = `Remove ${item.name}, size ${item.size}`
  const remove = make('button', 'cart-item__remove', '×', {type: 'button', 'aria-label': label})
  remove.dataset.itemId = item.id
  row.append(photo, text, price, remove)
  return row
}

/** Draws the cart anew. An empty one shows nothing at all. */
export const draw = (container, {items, serialized}) => {
  const held = focusIn(container)
  const wasOpen = container.querySelector('details')?.open
  container.hidden = items.length === 0
  document.body.classList.toggle('has-cart', items.length > 0)
  if (items.length === 0) {
    container.replaceChildren()
    keepFocus(held, container)
    return
  }
  const panel = make('details', 'cart')
  panel.open = wasOpen ?? matchMedia('(min-width: 60rem)').matches
  const summary = make('summary', 'cart__summary')
  summary.append(
    make('span', 'cart__title', 'Cart'),
    make('span', 'cart__count', pairs(items.length)),
    make('span', 'cart__total', dollars(total(items))),
  )
  const list = make('ul', 'cart__lines')
  list.append(...items.map(line))
  const buy = make('a', 'button button--main cart__checkout', 'Checkout', {href: checkoutUrl(serialized)})
  const body = make('div', 'cart__body')
  body.append(list, buy)
  panel.append(summary, body)
  container.replaceChildren(panel)
  keepFocus(held, container)
}

/** Marks the sizes that are in the cart. */
export const mark = (items) => {
  const ids = new Set(items.map((item) => String(item.id)))
  for (const button of document.querySelectorAll('button.size-container__entry')) {
    const isIn = ids.has(button.value)
    button.classList.toggle('size-container__entry--in-cart', isIn)
    if (isIn) button.setAttribute('aria-pressed', 'true')
    else button.removeAttribute('aria-pressed')
  }
}
