// Stock levels, as classes of a size's button.

const PREFIX = 'size-container__entry--level-'

const WORDS = {out: 'sold out', low: 'few left', medium: 'selling', high: 'in stock'}

/** The classes of a button at this level: only the class of the level differs. */
export const withLevel = (classes, level) =>
  [...classes].filter((name) => !name.startsWith(PREFIX)).concat(PREFIX + level)

/** The level in the classes of a button, or null. */
export const levelOf = (classes) =>
  [...classes].find((name) => name.startsWith(PREFIX))?.slice(PREFIX.length) ?? null

/** What a screen reader says of a button, whose text is the size alone. */
export const labelOf = (size, level) => `Size ${size}, ${WORDS[level] ?? level}`
