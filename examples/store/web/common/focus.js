// The keyboard's place in the cart, which is drawn anew by this tab and by others.

const REMOVE = '.cart-item__remove'

/** What of the cart has the focus: `{id, place}` of a line's button, `{part}`, or null. */
export const focusIn = (root) => {
  const focused = document.activeElement
  if (!focused || !root?.contains(focused)) return null
  if (focused.matches('.cart__summary')) return {part: '.cart__summary'}
  if (focused.matches('.cart__checkout')) return {part: '.cart__checkout'}
  if (!focused.matches(REMOVE)) return null
  return {id: focused.dataset.itemId, place: [...root.querySelectorAll(REMOVE)].indexOf(focused)}
}

/**
 * Puts the focus where it was. If that line is gone, whichever tab has removed it, this is the line that has come to its
 * place, or else the last one, or else the page.
 */
export const keepFocus = (held, root) => {
  if (!held) return
  const buttons = [...(root?.querySelectorAll(REMOVE) ?? [])]
  const same = held.part
    ? root?.querySelector(held.part)
    : buttons.find((button) => button.dataset.itemId === held.id)
  const next = same ?? buttons[Math.min(held.place ?? buttons.length, buttons.length - 1)]
  const target = next ?? document.getElementById('content')
  if (target !== document.activeElement) target?.focus()
}
