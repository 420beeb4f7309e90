// Short messages that are shown for a while, and read out.

const SHOWN_MS = 8000
const MOST = 3

export const say = (text, kind = 'error') => {
  const notices = document.getElementById('notices')
  if (!notices) return
  // The same again is not said twice, but is shown anew.
  for (const old of notices.children) if (old.textContent === text) old.remove()
  const notice = document.createElement('p')
  notice.className = `notice notice--${kind}`
  notice.setAttribute('role', kind === 'error' ? 'alert' : 'status')
  notice.textContent = text
  notices.append(notice)
  while (notices.children.length > MOST) notices.firstElementChild.remove()
  setTimeout(() => notice.remove(), SHOWN_MS)
}
