// The dashboard's numbers, from who is present. Pure.

/**
 * `presences` is a list of `{metas}`, one for each cart. A shopper with two tabs is one shopper, on two pages; what is
 * in the cart is counted once, by the first meta.
 */
export const numbers = (presences) => {
  const pages = new Map()
  const items = new Map()
  for (const {metas} of presences) {
    for (const {page} of metas) {
      const name = typeof page === 'string' ? page : 'other'
      pages.set(name, (pages.get(name) ?? 0) + 1)
    }
    for (const id of new Set(metas[0]?.items ?? [])) items.set(String(id), (items.get(String(id)) ?? 0) + 1)
  }
  return {
    shoppers: presences.length,
    pages: [...pages].sort(([one], [other]) => (one < other ? -1 : one > other ? 1 : 0)),
    items,
  }
}

/** The same of what the server has counted, `{shoppers, tabs, pages, items}`. */
export const fromTotals = ({shoppers, pages, items}) => ({
  shoppers,
  pages: Object.entries(pages ?? {}).sort(([one], [other]) => (one < other ? -1 : one > other ? 1 : 0)),
  items: new Map(Object.entries(items ?? {})),
})
