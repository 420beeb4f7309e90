// A value that outlives the components that show it.

/** `{get, set, subscribe}`, as React's `useSyncExternalStore` wants them. */
export const kept = (initial) => {
  let value = initial
  const watchers = new Set()
  return {
    get: () => value,
    set(next) {
      value = next
      for (const changed of [...watchers]) changed()
    },
    subscribe(changed) {
      const own = () => changed()
      watchers.add(own)
      return () => watchers.delete(own)
    },
  }
}
