// The components that own channels. They offer functions in the shop's words; what draws knows no socket.

import {
  createContext,
  useContext,
  useEffect,
  useEffectEvent,
  useReducer,
  useRef,
  useState,
  useSyncExternalStore,
} from 'react'

import {explain, isCart, NO_ANSWER} from '../../common/cart.js'
import {cartAccess} from '../../common/cart_access.js'
import {say} from '../../common/notices.js'
import {page} from '../../common/page.js'
import {storedCart} from '../../common/stored_cart.js'
import {useChannel, useEvent, useSocketStatus} from '../phoenix/index.jsx'
import {kept} from './kept.js'
import {initial, reduce} from './state.js'

const ProductsContext = createContext(null)
const CartContext = createContext(null)

/** `{products, onStockChange, onMessage}`. */
export const useProducts = () => useContext(ProductsContext)

/** `{items, serialized, add, remove}`. */
export const useCart = () => useContext(CartContext)

/** Functions that are called with each of something. */
const useListeners = () => {
  const [listeners] = useState(() => new Set())
  const [offer] = useState(() => (listener) => {
    const own = (value) => listener(value)
    listeners.add(own)
    return () => listeners.delete(own)
  })
  const tell = (value) => {
    for (const listener of [...listeners]) listener(value)
  }
  return [offer, tell]
}

const ProductChannel = ({id, dispatch, message, stockChange}) => {
  const channel = useChannel(`product:${id}`)
  useEvent(channel, 'released', ({rev}) => {
    dispatch({type: 'released', id, rev})
    message({event: 'released', id})
  })
  useEvent(channel, 'stock_change', (change) => {
    dispatch({type: 'stock_change', change})
    stockChange(change)
    message({event: 'stock_change', id})
  })
  const {reply, status} = channel
  const joined = useEffectEvent(() => dispatch({type: 'joined', id, reply}))
  useEffect(() => {
    if (status === 'joined') joined()
  }, [status, reply])
  return null
}

/** Joins the channel of every product. */
export const ProductsContainer = ({loaded, children}) => {
  const [products, dispatch] = useReducer(reduce, loaded, initial)
  const [onStockChange, stockChange] = useListeners()
  const [onMessage, message] = useListeners()
  return (
    <ProductsContext value={{products: [...products.values()], onStockChange, onMessage}}>
      {loaded.map(({id}) => (
        <ProductChannel key={id} {...{id, dispatch, message, stockChange}} />
      ))}
      {children}
    </ProductsContext>
  )
}

const stored = storedCart()

const access = cartAccess({
  cartId: page.cartId,
  token: page.cartToken,
  stored,
  path: () => location.pathname,
  reload: () => location.reload(),
})

// The channel stays joined from one page of the app to the next, and the server pushes the cart after a join. So the last cart
// is kept outside the component that goes.
const lastCart = kept({items: [], serialized: null})

/** Joins the cart's channel. */
export const CartContainer = ({children}) => {
  const cart = useSyncExternalStore(lastCart.subscribe, lastCart.get)
  const channel = useChannel(`cart:${page.cartId}`, access.params)
  const show = (next) => {
    if (!isCart(next)) return
    stored.write(next.serialized)
    lastCart.set(next)
  }
  useEvent(channel, 'cart', show)
  const refused = useEffectEvent(() => access.refused(channel.reply))
  useEffect(() => {
    if (channel.status === 'refused') refused()
  }, [channel.status, channel.reply])
  const ask = (event, id) =>
    channel
      .push(event, {item_id: String(id)})
      .then(show, (error) => say(error === null ? NO_ANSWER : explain(error)))
  const value = {...cart, add: (id) => ask('add_item', id), remove: (id) => ask('remove_item', id)}
  return <CartContext value={value}>{children}</CartContext>
}

/** Says so when the page is cut off. */
export const Connection = () => {
  const status = useSocketStatus()
  const notice = useRef(document.getElementById('connection'))
  useEffect(() => {
    const element = notice.current
    if (!element) return
    element.hidden = status !== 'cut off'
    element.textContent = element.hidden ? '' : 'Reconnecting… What you see may be out of date.'
    return () => {
      element.hidden = true
    }
  }, [status])
  return null
}
