// The cart as the server draws it: `{items: [..], serialized: token}`. Pure.

const ERRORS = {
  duplicate_item: 'This size is in your cart already.',
  not_found: 'This size is not in your cart any more.',
  invalid_item: 'The shop does not know this size.',
  unknown_item: 'The shop does not sell this size any more.',
  not_released: 'This pair is not released yet.',
  out_of_stock: 'Too late: this size has just sold out.',
  cart_full: 'Your cart is full. Remove a pair to add another.',
}

/** What is said about a reply that is an error. */
export const explain = (reply) => {
  if (reply?.retry_after !== undefined) return 'That was too quick. Try again in a moment.'
  return ERRORS[reply?.error] ?? 'The shop refused this. Try again.'
}

/** What is said when no reply came in time. */
export const NO_ANSWER = 'The shop did not answer. Try again when you are connected.'

/** What all items cost that can still be bought. */
export const total = (items) =>
  items.filter((item) => !item.out_of_stock).reduce((sum, item) => sum + item.price_usd, 0)

/** How many pairs, in words. */
export const pairs = (count) => (count === 1 ? '1 pair' : `${count} pairs`)

export const dollars = (amount) => `$${amount.toLocaleString('en-US')}`

/** What a cart is: of other messages nothing is drawn. */
export const isCart = (value) => Array.isArray(value?.items) && typeof value.serialized === 'string'

/** Where the cart can be bought. */
export const checkoutUrl = (serialized) => `/checkout?${new URLSearchParams({serialized_cart: serialized})}`
