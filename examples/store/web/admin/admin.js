// The admin's dashboard.

import {Presence, Socket} from 'phoenix'

import {watchConnection} from '../common/connection.js'
import {say} from '../common/notices.js'
import {page} from '../common/page.js'
import {fromTotals, numbers} from './numbers.js'

const draw = ({shoppers, pages, items}) => {
  document.getElementById('shopper-count').textContent = shoppers
  const rows = pages.map(([name, count]) => {
    const row = document.createElement('tr')
    const path = document.createElement('th')
    path.scope = 'row'
    path.textContent = name
    const number = document.createElement('td')
    number.className = 'number'
    number.dataset.pageCount = name
    number.textContent = count
    row.append(path, number)
    return row
  })
  document.getElementById('page-counts').replaceChildren(...rows)
  // An item that the page has no place for is left out. All that are in no cart are 0 again.
  for (const place of document.querySelectorAll('[data-item-count]')) {
    place.textContent = items.get(place.dataset.itemCount) ?? 0
  }
}

const socket = new Socket('/admin_socket', {authToken: page.adminToken})
watchConnection(socket, document.getElementById('connection'))
socket.connect()

// With tens of thousands of carts, the server can count: `/admin?count=server` gets four sums a second at most.
if (new URLSearchParams(location.search).get('count') === 'server') {
  const channel = socket.channel('admin:totals')
  channel.on('totals', (totals) => draw(fromTotals(totals)))
  channel.join()
} else {
  const channel = socket.channel('admin:cart_tracker')
  const presence = new Presence(channel)
  presence.onSync(() => draw(numbers(presence.list((_key, entry) => entry))))
  channel.join()
  window.presence = presence
}

document.addEventListener('submit', async (event) => {
  const form = event.target.closest('.admin-product__release')
  if (!form) return
  event.preventDefault()
  const button = form.querySelector('button')
  button.disabled = true
  try {
    // The page's own address may have a name and a password, with which nothing can be fetched.
    const address = location.origin + new URL(form.action).pathname
    const response = await fetch(address, {method: 'POST', body: new URLSearchParams(new FormData(form))})
    // Another admin may have been quicker.
    if (!response.ok && response.status !== 409) throw new Error(`status ${response.status}`)
    const state = document.createElement('p')
    state.className = 'admin-product__state'
    state.textContent = 'Released'
    form.replaceWith(state)
  } catch (error) {
    button.disabled = false
    // The answer may have been lost after the release.
    say(`The release failed: ${error.message}. Load the page again to see whether the product is released.`)
  }
})
