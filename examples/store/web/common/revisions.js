// Which news is newer. Messages may come twice, late, or in another order than they were sent in.

/** Remembers the highest revision of each key. */
export class Revisions {
  #highest = new Map()

  /** Whether this revision is not older than what is known of the key. If so, it is known from now on. */
  admits(key, rev) {
    // What has no revision cannot be compared, and the last one counts.
    if (!Number.isFinite(rev)) return true
    if (rev < (this.#highest.get(key) ?? -Infinity)) return false
    this.#highest.set(key, rev)
    return true
  }
}
