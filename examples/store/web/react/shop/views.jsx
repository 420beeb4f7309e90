// The components that draw. The classes are those of the other front ends, so styles and tests are shared.

import {Component, useEffect, useState} from 'react'
import {createPortal} from 'react-dom'

import {checkoutUrl, dollars, pairs, total} from '../../common/cart.js'
import {focusIn, keepFocus} from '../../common/focus.js'
import {labelOf} from '../../common/levels.js'
import {useCart, useProducts} from './containers.jsx'
import {Link} from './router.jsx'

export const Home = ({products}) => (
  <main className="app-home">
    <h1>Two drops. One chance.</h1>
    <p>This page holds no connection. The drops open one, and keep it while you look around.</p>
    <p>
      <Link className="button button--main" to="/app/drops">
        See the drops
      </Link>
    </p>
    <ul className="app-home__photos">
      {products.map(({id, brand, name, color, main_image_url}) => (
        <li key={id}>
          <img src={main_image_url} alt={`${brand} ${name} in ${color}, seen from the side`} width="1200" height="900" />
        </li>
      ))}
    </ul>
  </main>
)

const Size = ({item: {id, size, level, rev}, isInCart, add}) => (
  <button
    type="button"
    className={`size-container__entry size-container__entry--level-${level}${isInCart ? ' size-container__entry--in-cart' : ''}`}
    name="item_id"
    value={id}
    data-rev={rev}
    disabled={level === 'out'}
    aria-label={labelOf(size, level)}
    aria-pressed={isInCart ? true : undefined}
    onClick={() => add(id)}
  >
    {size}
  </button>
)

const Card = ({product: {id, brand, name, color, price_usd, main_image_url, released, items}}) => {
  const cart = useCart()
  const inCart = new Set(cart.items.map((item) => item.id))
  return (
    <article className="product-listing" data-product-id={id}>
      <img
        className="product-listing__photo"
        src={main_image_url}
        alt={`${brand} ${name} in ${color}, seen from the side`}
        width="1200"
        height="900"
      />
      <div className="product-listing__text">
        <p className="product-listing__brand">{brand}</p>
        <h2 className="product-listing__name">{name}</h2>
        <p className="product-listing__line">
          <span className="product-listing__color">{color}</span>{' '}
          <span className="product-listing__price">${price_usd}</span>
        </p>
        {released ? (
          <div className="size-container" role="group" aria-label={`Sizes of ${name}`}>
            {items.map((item) => (
              <Size key={item.id} item={item} isInCart={inCart.has(item.id)} add={cart.add} />
            ))}
          </div>
        ) : (
          <p className={`product-soon product-soon-${id}`}>coming soon...</p>
        )}
      </div>
    </article>
  )
}

export const Drops = () => (
  <main className="product-list">
    <h1 className="visually-hidden">Drops</h1>
    {useProducts().products.map((product) => (
      <Card key={product.id} product={product} />
    ))}
  </main>
)

const LINES = 100

/** The stock changes since this page was opened, newest first. */
export const Feed = () => {
  const {products, onStockChange} = useProducts()
  const [changes, setChanges] = useState([])
  useEffect(
    () =>
      onStockChange((change) =>
        setChanges((known) => [{...change, no: (known[0]?.no ?? 0) + 1}, ...known].slice(0, LINES)),
      ),
    [onStockChange],
  )
  const nameOf = ({product_id, item_id}) => {
    const product = products.find(({id}) => id === product_id)
    return `${product?.name ?? 'A pair'}, size ${product?.items.find(({id}) => id === item_id)?.size ?? '?'}`
  }
  return (
    <main className="app-page">
      <h1>Stock as it changes</h1>
      {changes.length === 0 && <p className="app-page__empty">Nothing has changed since you opened this page.</p>}
      <ol className="feed">
        {changes.map((change) => (
          <li key={change.no} className={`feed__line feed__line--${change.level}`}>
            <span>{nameOf(change)}</span> <strong>{change.level}</strong>
          </li>
        ))}
      </ol>
    </main>
  )
}

/** How many messages came since this page was opened. */
export const Count = () => {
  const {onMessage} = useProducts()
  const [count, setCount] = useState(0)
  useEffect(() => onMessage(() => setCount((known) => known + 1)), [onMessage])
  return (
    <main className="app-page">
      <h1>Messages</h1>
      <p className="figure">
        <strong id="message-count">{count}</strong> <span>since you opened this page</span>
      </p>
    </main>
  )
}

const Line = ({item, remove}) => (
  <li className={item.out_of_stock ? 'cart-item cart-item--out' : 'cart-item'} data-item-id={item.id}>
    <img className="cart-item__photo" src={item.main_image_url} alt="" width="96" height="72" />
    <div className="cart-item__text">
      <p className="cart-item__name">{item.name}</p>
      <p className="cart-item__detail">
        {item.color}, size {item.size}
      </p>
      {item.out_of_stock && <p className="cart-item__state">Sold out</p>}
    </div>
    <p className="cart-item__price">{dollars(item.price_usd)}</p>
    <button
      type="button"
      className="cart-item__remove"
      data-item-id={item.id}
      aria-label={`Remove ${item.name}, size ${item.size}`}
      onClick={() => remove(item.id)}
    >
      ×
    </button>
  </li>
)

/** Keeps the keyboard's place when lines of the cart go. React reads it right before it changes the page only in a class. */
class KeepFocus extends Component {
  getSnapshotBeforeUpdate() {
    return focusIn(this.props.root())
  }

  componentDidUpdate(_props, _state, held) {
    keepFocus(held, this.props.root())
  }

  render() {
    return this.props.children
  }
}

const Lines = () => {
  const {items, serialized, remove} = useCart()
  return (
    <>
      <ul className="cart__lines">
        {items.map((item) => (
          <Line key={item.id} {...{item, remove}} />
        ))}
      </ul>
      <a className="button button--main cart__checkout" href={checkoutUrl(serialized)}>
        Checkout
      </a>
    </>
  )
}

/** The cart beside the products, in the page's own place for it. An empty one shows nothing at all. */
export const CartPanel = () => {
  const {items} = useCart()
  const container = document.getElementById('cart-container')
  const isEmpty = items.length === 0
  const [wide] = useState(() => matchMedia('(min-width: 60rem)').matches)
  useEffect(() => {
    container.hidden = isEmpty
    document.body.classList.toggle('has-cart', !isEmpty)
    return () => {
      container.hidden = true
      document.body.classList.remove('has-cart')
    }
  }, [container, isEmpty])
  const panel = (
    <details className="cart" open={wide}>
      <summary className="cart__summary">
        <span className="cart__title">Cart</span>
        <span className="cart__count">{pairs(items.length)}</span>
        <span className="cart__total">{dollars(total(items))}</span>
      </summary>
      <div className="cart__body">
        <Lines />
      </div>
    </details>
  )
  return <KeepFocus root={() => container}>{isEmpty ? null : createPortal(panel, container)}</KeepFocus>
}

/** The cart as a page of its own. */
export const CartPage = () => {
  const {items} = useCart()
  return (
    <main className="app-page">
      <h1>Your cart</h1>
      <KeepFocus root={() => document.querySelector('.app-page')}>
        {items.length === 0 ? <p className="app-page__empty">It is empty.</p> : <Lines />}
      </KeepFocus>
    </main>
  )
}
