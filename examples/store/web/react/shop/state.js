// The products of the React variant, as a value. Pure.

/** The state of the products that the page came with. */
export const initial = (products) =>
  new Map(products.map((product) => [product.id, {...product, items: product.items.toSorted(bySize)}]))

/** Numbers first, from the smallest. */
export const bySize = ({size: one}, {size: other}) => {
  const [a, b] = [Number(one), Number(other)]
  if (Number.isNaN(a) !== Number.isNaN(b)) return Number.isNaN(a) ? 1 : -1
  return Number.isNaN(a) ? one.localeCompare(other) : a - b
}

/** The products after an event. What is older than what is known changes nothing. */
export const reduce = (products, event) => {
  switch (event.type) {
    case 'joined':
      return (event.reply.levels ?? []).reduce(
        (state, level) => withLevel(state, {...level, product_id: event.id}),
        event.reply.released ? withRelease(products, event.id, event.reply.rev) : products,
      )
    case 'released':
      return withRelease(products, event.id, event.rev)
    case 'stock_change':
      return withLevel(products, event.change)
    default:
      return products
  }
}

const change = (products, id, update) => {
  const product = products.get(id)
  const next = product && update(product)
  return !next || next === product ? products : new Map(products).set(id, next)
}

const withRelease = (products, id, rev) =>
  change(products, id, (product) =>
    product.released ? product : {...product, released: true, rev: Math.max(product.rev, rev ?? 0)},
  )

const withLevel = (products, {product_id, item_id, level, rev}) =>
  change(products, product_id, (product) => {
    const index = product.items.findIndex(({id}) => id === item_id)
    const item = product.items[index]
    if (!item || (rev !== undefined && rev < item.rev)) return product
    return {...product, items: product.items.with(index, {...item, level, rev: rev ?? item.rev})}
  })
