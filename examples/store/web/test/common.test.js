import assert from 'node:assert/strict'
import {test} from 'node:test'

import {checkoutUrl, explain, isCart, total} from '../common/cart.js'
import {cartAccess} from '../common/cart_access.js'
import {levelOf, withLevel} from '../common/levels.js'
import {Revisions} from '../common/revisions.js'
import {storedCart} from '../common/stored_cart.js'

test('A-044: what is older than what is known is not admitted', () => {
  const revisions = new Revisions()
  assert.equal(revisions.admits(7, 8), true)
  assert.equal(revisions.admits(7, 7), false)
  assert.equal(revisions.admits(7, 8), true, 'the same again changes nothing')
  assert.equal(revisions.admits(7, 9), true)
  assert.equal(revisions.admits(8, 1), true, 'each key has revisions of its own')
  assert.equal(revisions.admits(7, undefined), true)
})

test('A-043: only the class of the level changes', () => {
  const classes = ['mine', 'size-container__entry', 'size-container__entry--level-medium', 'other']
  const changed = withLevel(classes, 'low')
  assert.deepEqual(changed, ['mine', 'size-container__entry', 'other', 'size-container__entry--level-low'])
  assert.equal(levelOf(changed), 'low')
  assert.equal(levelOf(['size-container__entry']), null)
})

test('every error of the cart has a sentence of its own', () => {
  const errors = ['duplicate_item', 'not_found', 'invalid_item', 'unknown_item', 'not_released', 'out_of_stock', 'cart_full']
  const said = errors.map((error) => explain({error}))
  assert.equal(new Set([...said, explain({}), explain({retry_after: 1})]).size, errors.length + 2)
})

test('the sum leaves out what is sold out', () => {
  assert.equal(total([{price_usd: 160}, {price_usd: 190, out_of_stock: true}]), 160)
})

test('a cart is a list of items and a token', () => {
  assert.equal(isCart({items: [], serialized: 'x'}), true)
  for (const value of [null, {}, {items: []}, {items: {}, serialized: 'x'}]) assert.equal(isCart(value), false)
})

test('the token is escaped in the address of the checkout', () => {
  assert.equal(checkoutUrl('a&b=c'), '/checkout?serialized_cart=a%26b%3Dc')
})

test('a cart is kept while the page lives, where storage is forbidden', () => {
  const forbidden = {
    getItem() {
      throw new Error()
    },
    setItem() {
      throw new Error()
    },
  }
  const stored = storedCart(forbidden)
  assert.equal(stored.read(), null)
  stored.write('x')
  assert.equal(stored.read(), 'x')
})

const access = (answers, known = {}) => {
  const asked = []
  const fetch = async (url) => {
    asked.push(url)
    const answer = answers.shift()
    if (answer instanceof Error) throw answer
    return {ok: true, json: async () => answer}
  }
  let cart = 'first'
  const stored = {read: () => cart}
  const made = cartAccess({cartId: 'c', token: 'old', stored, path: () => '/', fetch, ...known})
  return {made, asked, change: (next) => (cart = next)}
}

test('A-073: every join has the cart that is stored then', () => {
  const {made, change} = access([])
  assert.deepEqual(made.params(), {serialized: 'first', page: '/', token: 'old'})
  change('second')
  assert.equal(made.params().serialized, 'second')
})

test('A-063: a token that is too old is replaced, by one question at a time', async () => {
  const {made, asked} = access([{cart_id: 'c', token: 'new'}])
  await Promise.all([made.refused({reason: 'expired'}), made.refused({reason: 'expired'})])
  assert.deepEqual(asked, ['/cart/token'])
  assert.equal(made.params().token, 'new')
})

test('a question that failed is asked again, and other refusals ask nothing', async () => {
  const {made, asked} = access([new Error('offline'), {token: 'new'}])
  await made.refused({reason: 'unauthorized'})
  assert.equal(asked.length, 0)
  await made.refused({reason: 'expired'})
  assert.equal(made.params().token, 'old')
  await made.refused({reason: 'expired'})
  assert.equal(made.params().token, 'new')
})

test('a cookie of another cart loads the page anew', async () => {
  let loads = 0
  const {made} = access([{cart_id: 'another', token: 'new'}], {reload: () => (loads += 1)})
  await made.refused({reason: 'expired'})
  assert.equal(loads, 1)
  assert.equal(made.params().token, 'old')
})
