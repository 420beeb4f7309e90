// The server-driven front end: the server draws what has changed, and the page puts it in the place of what it had.

import {label} from './products.js'

const KEYED = '[data-key][data-rev]'

/** Puts the HTML in the place of every element that the selector finds. What is newer already stays as it is. */
export const replace = (target, html) => {
  for (const old of document.querySelectorAll(target)) {
    const template = document.createElement('template')
    template.innerHTML = html
    const fresh = template.content
    const newer = (known) => {
      const next = fresh.querySelector(`[data-key="${CSS.escape(known.dataset.key)}"]`)
      if (next && Number(known.dataset.rev) > Number(next.dataset.rev)) next.replaceWith(known.cloneNode(true))
    }
    for (const known of old.querySelectorAll(KEYED)) newer(known)
    if (old.matches(KEYED)) newer(old)
    const focused = old.contains(document.activeElement) ? document.activeElement.dataset.key : null
    label(fresh)
    old.replaceWith(fresh)
    if (focused) document.querySelector(`[data-key="${CSS.escape(focused)}"]`)?.focus()
  }
}

export const joinPage = (socket, changed) => {
  const channel = socket.channel('page:drops')
  channel.on('fragment', ({target, html}) => {
    replace(target, html)
    changed()
  })
  channel.join().receive('ok', ({cards}) => {
    for (const {target, html} of cards ?? []) replace(target, html)
    changed()
  })
}
