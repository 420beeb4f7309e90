import assert from 'node:assert/strict'
import {test} from 'node:test'

import {kept} from '../react/shop/kept.js'
import {initial, reduce} from '../react/shop/state.js'

const loaded = () => [
  {id: 1, released: false, rev: 1, items: [{id: 8, size: '10', level: 'high', rev: 2}, {id: 7, size: '6', level: 'low', rev: 2}]},
  {id: 2, released: true, rev: 1, items: [{id: 9, size: '6', level: 'low', rev: 1}]},
]

const after = (...events) => events.reduce(reduce, initial(loaded()))
const level = (state, product, item) => state.get(product).items.find(({id}) => id === item).level

test('sizes are in their order', () => {
  assert.deepEqual(after().get(1).items.map(({size}) => size), ['6', '10'])
})

test('a release concerns its product alone, and is one however often it comes', () => {
  const once = after({type: 'released', id: 1, rev: 2})
  assert.equal(once.get(1).released, true)
  assert.equal(once.get(2), reduce(once, {type: 'released', id: 1, rev: 2}).get(2))
  assert.equal(reduce(once, {type: 'released', id: 1, rev: 2}), once)
})

test('A-044: an older level changes nothing', () => {
  const change = (level, rev) => ({type: 'stock_change', change: {product_id: 1, item_id: 7, level, rev}})
  assert.equal(level(after(change('out', 9)), 1, 7), 'out')
  assert.equal(level(after(change('out', 9), change('low', 8)), 1, 7), 'out')
  assert.equal(level(after(change('out', 9), change('low', 10)), 1, 7), 'low')
  assert.equal(level(after(change('out', 9)), 1, 8), 'high', 'other sizes stay')
})

test('A-047: a join brings the release and the levels', () => {
  const reply = {released: true, rev: 4, levels: [{item_id: 7, level: 'out', rev: 9}, {item_id: 99, level: 'low', rev: 1}]}
  const state = after({type: 'joined', id: 1, reply})
  assert.equal(state.get(1).released, true)
  assert.equal(level(state, 1, 7), 'out')
  assert.equal(level(state, 1, 8), 'high')
})

test('what concerns an unknown product changes nothing', () => {
  const state = after()
  assert.equal(reduce(state, {type: 'released', id: 99, rev: 1}), state)
  assert.equal(reduce(state, {type: 'other'}), state)
})

test('A-132: what is kept is there for a component that comes later', () => {
  const cart = kept('nothing')
  let changes = 0
  const end = cart.subscribe(() => (changes += 1))
  cart.set('one')
  end()
  cart.set('two')
  assert.deepEqual([changes, cart.get()], [1, 'two'])
})
