// The React variant. A socket lives as long as the routes that need it, a channel as long as its routes.

import {StrictMode} from 'react'
import {createRoot} from 'react-dom/client'

import {page} from '../common/page.js'
import {SocketProvider} from './phoenix/index.jsx'
import {CartContainer, Connection, ProductsContainer} from './shop/containers.jsx'
import {Link, usePath} from './shop/router.jsx'
import {CartPage, CartPanel, Count, Drops, Feed, Home} from './shop/views.jsx'

const SHOP_SOCKET = '/product_socket'

const WITH_PRODUCTS = {'/app/drops': Drops, '/app/feed': Feed, '/app/count': Count}

const Shop = ({loaded, Page}) => (
  <ProductsContainer loaded={loaded}>
    <CartContainer>
      <Page />
      <CartPanel />
    </CartContainer>
  </ProductsContainer>
)

const Route = ({loaded, Socket}) => {
  const path = usePath()
  const Page = WITH_PRODUCTS[path]
  if (!Page && path !== '/app/cart') return <Home products={loaded} />
  return (
    <Socket>
      {Page ? (
        <Shop loaded={loaded} Page={Page} />
      ) : (
        <CartContainer>
          <CartPage />
        </CartContainer>
      )}
    </Socket>
  )
}

const ShopSocket = ({children}) => (
  <SocketProvider url={SHOP_SOCKET}>
    <Connection />
    {children}
  </SocketProvider>
)

const NoSocket = ({children}) => children

/** With `?socket=root`, the socket is open on every route. No other component differs. */
const App = ({loaded, atRoot}) => {
  const [Root, Inner] = atRoot ? [ShopSocket, NoSocket] : [NoSocket, ShopSocket]
  return (
    <Root>
      <nav className="app-nav" aria-label="Pages">
        <Link to="/app">Home</Link>
        <Link to="/app/drops">Drops</Link>
        <Link to="/app/feed">Feed</Link>
        <Link to="/app/count">Count</Link>
        <Link to="/app/cart">Cart</Link>
      </nav>
      <Route loaded={loaded} Socket={Inner} />
    </Root>
  )
}

window.cartId = page.cartId
const root = document.getElementById('app')
const atRoot = new URLSearchParams(location.search).get('socket') === 'root'
createRoot(root).render(
  <StrictMode>
    <App loaded={JSON.parse(root.dataset.products)} atRoot={atRoot} />
  </StrictMode>,
)
