// The routes of the React variant: the path is the state.

import {useSyncExternalStore} from 'react'

const listeners = new Set()

const subscribe = (changed) => {
  listeners.add(changed)
  addEventListener('popstate', changed)
  return () => {
    listeners.delete(changed)
    removeEventListener('popstate', changed)
  }
}

const current = () => location.pathname.replace(/\/+$/, '')

export const usePath = () => useSyncExternalStore(subscribe, current)

export const go = (to) => {
  history.pushState(null, '', to + location.search)
  for (const changed of [...listeners]) changed()
}

export const Link = ({to, children, ...rest}) => {
  const isHere = usePath() === to
  const follow = (event) => {
    // A click with a key opens another tab, which is the browser's business.
    if (event.metaKey || event.ctrlKey || event.shiftKey || event.altKey || event.button !== 0) return
    event.preventDefault()
    if (!isHere) go(to)
  }
  return (
    <a href={to} onClick={follow} aria-current={isHere ? 'page' : undefined} {...rest}>
      {children}
    </a>
  )
}
