// The signed cart, which this browser keeps, and which all of its tabs share.

const KEY = 'storedCart'

/** Storage may be forbidden, or full. The cart then lasts as long as the page. */
export const storedCart = (storage = globalThis.localStorage) => {
  let last = null
  return {
    read() {
      try {
        return storage.getItem(KEY) ?? null
      } catch {
        return last
      }
    },
    write(serialized) {
      last = serialized
      try {
        storage.setItem(KEY, serialized)
      } catch {}
    },
  }
}
