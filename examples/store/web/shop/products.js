// The products' channels of the plain front end: releases as HTML, levels as JSON.

import {labelOf, levelOf, withLevel} from '../common/levels.js'
import {Revisions} from '../common/revisions.js'

const ENTRY = 'button.size-container__entry'

/** The button's level, in all that shows it. */
const show = (button, level) => {
  button.className = withLevel(button.classList, level).join(' ')
  button.disabled = level === 'out'
  button.setAttribute('aria-label', labelOf(button.textContent.trim(), level))
}

/** Says the levels of new buttons in words, too. */
export const label = (root) => {
  for (const button of root.querySelectorAll(ENTRY)) {
    const level = levelOf(button.classList)
    if (level) button.setAttribute('aria-label', labelOf(button.textContent.trim(), level))
  }
}

export class Products {
  #revisions = new Revisions()
  #levels = new Map()
  #changed

  /** `changed` is called after new buttons have appeared. */
  constructor(changed = () => {}) {
    this.#changed = changed
    label(document)
  }

  /** Joins the channel of every product on the page. */
  join(socket) {
    const ids = new Set()
    for (const card of document.querySelectorAll('.product-listing')) ids.add(card.dataset.productId)
    for (const id of ids) {
      const channel = socket.channel(`product:${id}`)
      channel.on('released', ({size_html}) => this.release(id, size_html))
      channel.on('stock_change', (change) => this.setLevel(change))
      // Every join brings the present state, also the one after a cut.
      channel.join().receive('ok', (state) => this.apply(id, state))
    }
  }

  /** The state of a product, as its join reply has it. */
  apply(id, {released, size_html, levels}) {
    if (released && size_html) this.release(id, size_html)
    for (const level of levels ?? []) this.setLevel(level)
  }

  /** Puts the size selector in the place of every "coming soon..." of the product, and touches nothing else. */
  release(id, html) {
    const places = document.querySelectorAll(`.product-soon-${CSS.escape(id)}`)
    if (places.length === 0) return
    const template = document.createElement('template')
    template.innerHTML = html
    for (const place of places) place.replaceWith(template.content.cloneNode(true))
    // A level may have come before the fragment, which was drawn earlier.
    for (const [item, {level, rev}] of this.#levels) {
      for (const button of this.#buttons(item)) {
        if (rev >= Number(button.dataset.rev ?? -1)) show(button, level)
      }
    }
    label(document)
    this.#changed()
  }

  setLevel({item_id, level, rev}) {
    const buttons = this.#buttons(item_id)
    // What the page was drawn with counts as well.
    for (const button of buttons) {
      const drawn = Number(button.dataset.rev ?? NaN)
      if (Number.isFinite(drawn)) this.#revisions.admits(item_id, drawn)
    }
    if (!this.#revisions.admits(item_id, rev)) return
    this.#levels.set(item_id, {level, rev: rev ?? Infinity})
    for (const button of buttons) {
      if (rev !== undefined) button.dataset.rev = rev
      show(button, level)
    }
  }

  #buttons(item) {
    return document.querySelectorAll(`${ENTRY}[value="${CSS.escape(item)}"]`)
  }
}
