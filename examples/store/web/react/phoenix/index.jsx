// Sockets and channels for React: a provider and three hooks. `client.js` does the work.

import {createContext, useContext, useEffect, useEffectEvent, useState, useSyncExternalStore} from 'react'

import {Client} from './client.js'

const ClientContext = createContext(null)

/** One client for each address, so that a socket's listeners do not grow with the number of visits to a route. */
const clients = new Map()

const clientOf = (url, options) => {
  const client = clients.get(url) ?? new Client(url, options)
  clients.set(url, client)
  return client
}

/** Keeps a socket open while it is mounted, for the hooks below it. */
export const SocketProvider = ({url, options, children}) => {
  const [client] = useState(() => clientOf(url, options))
  useEffect(() => {
    client.acquire()
    return () => client.release()
  }, [client])
  return <ClientContext value={client}>{children}</ClientContext>
}

const useClient = () => {
  const client = useContext(ClientContext)
  if (!client) throw new Error('useChannel needs a SocketProvider above it')
  return client
}

/** `closed`, `connecting`, `open` or `cut off`. */
export const useSocketStatus = () => {
  const client = useClient()
  return useSyncExternalStore(client.watch, client.status)
}

/** The channel of a topic, which is joined while any component uses it: `{status, reply, push}`. */
export const useChannel = (topic, params) => {
  const shared = useClient().channel(topic).withParams(params)
  const {status, reply} = useSyncExternalStore(shared.subscribe, shared.state)
  return {status, reply, shared, push: (event, payload, timeout) => shared.push(event, payload, timeout)}
}

/** Calls the handler of the last drawing with each message of this event. */
export const useEvent = ({shared}, event, handler) => {
  const latest = useEffectEvent(handler)
  useEffect(() => shared.on(event, (payload) => latest(payload)), [shared, event])
}
