// Says so when the page is cut off, and reconnects a page that comes back from the browser's cache.

const CUT_OFF = 'Reconnecting… What you see may be out of date.'

export const watchConnection = (socket, notice) => {
  let leaving = false
  const cutOff = () => {
    if (leaving || !notice) return
    notice.textContent = CUT_OFF
    notice.hidden = false
  }
  const opened = socket.onOpen(() => {
    if (!notice) return
    notice.hidden = true
    notice.textContent = ''
  })
  const closed = socket.onClose(cutOff)
  const failed = socket.onError(cutOff)
  const hide = () => (leaving = true)
  const show = (event) => {
    leaving = false
    // The browser shows the page as it was when it was left. The joins bring what has changed since.
    if (event.persisted) socket.connect()
  }
  addEventListener('pagehide', hide)
  addEventListener('pageshow', show)
  return () => {
    socket.off([opened, closed, failed])
    removeEventListener('pagehide', hide)
    removeEventListener('pageshow', show)
  }
}
