
// Formatting of numbers.
const whole = new Intl.NumberFormat('en')
const tenth = new Intl.NumberFormat('en', {maximumFractionDigits: 1})
const short = new Intl.NumberFormat('en', {notation: 'compact', maximumFractionDigits: 1})

const count = (n) => (n < 100_000 ? whole.format(Math.round(n)) : short.format(n))
const rate = (n) => `${n === 0 || n >= 100 ? count(n) : tenth.format(n)}/s`
const percent = (n) => `${Math.round(n * 100)} %`

function milliseconds(n) {
  if (n === null || n === undefined) return '–'
  if (n >= 10_000) return `${tenth.format(n / 1000)} s`
  if (n >= 100) return `${whole.format(Math.round(n))} ms`
  return `${n.toFixed(n >= 10 ? 1 : 2)} ms`
}

function age(seconds) {
  if (seconds === null) return '–'
  if (seconds < 120) return `${tenth.format(seconds)} s`
  return seconds < 7200 ? `${whole.format(seconds / 60)} min` : `${whole.format(seconds / 3600)} h`
}

function bytes(n) {
  if (n < 1024) return `${n} B`
  return n < 1024 * 1024 ? `${tenth.format(n / 1024)} KiB` : `${tenth.format(n / 1024 / 1024)} MiB`
}

// An element's text is only set when it changes.
function put(element, text) {
  if (element.textContent !== text) element.textContent = text
}
