// What opens the cart's channel: the page's token, and the cart that this browser keeps.

/**
 * `params` are those of each join, so a function: a rejoin sends the cart and the token of then, not those of the
 * page's load. `refused` is called with a refused join, and asks for a fresh token if the old one is too old.
 */
export const cartAccess = ({cartId, token, bought, stored, path, fetch = globalThis.fetch, reload}) => {
  let current = token
  let asking = null

  const ask = async () => {
    const response = await fetch('/cart/token', {headers: {accept: 'application/json'}, cache: 'no-store'})
    if (!response.ok) return
    const fresh = await response.json()
    // The cookie is another one by now, and with it the cart's id. Only a new page knows both.
    if (fresh.cart_id !== undefined && fresh.cart_id !== cartId) reload()
    else current = fresh.token
  }

  return {
    // What was bought leaves the cart once, also when its page is loaded again later.
    params: () => ({serialized: stored.read(), page: path(), token: current, ...(bought && {bought})}),
    /** The channel joins again by itself, and then has the fresh token. */
    refused(reply) {
      if (reply?.reason !== 'expired') return Promise.resolve()
      // One question at a time. A failed one is asked again after the next join.
      asking ??= ask()
        .catch(() => {})
        .finally(() => (asking = null))
      return asking
    },
  }
}
