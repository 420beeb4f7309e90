// What the page says about itself, in its `meta` elements.

const meta = (name) => document.querySelector(`meta[name="${name}"]`)?.content ?? ''

export const page = {
  cartId: meta('cart-id'),
  cartToken: meta('cart-token'),
  csrfToken: meta('csrf-token'),
  variant: meta('variant'),
  adminToken: meta('admin-token'),
  bought: meta('cart-bought'),
}
