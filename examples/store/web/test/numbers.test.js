import assert from 'node:assert/strict'
import {test} from 'node:test'

import {fromTotals, numbers} from '../admin/numbers.js'

test('A-113: three shoppers, one with two tabs, are three shoppers on four pages', () => {
  const shown = numbers([
    {metas: [{page: '/', items: [7]}, {page: '/checkout', items: [9]}]},
    {metas: [{page: '/', items: [7, 9]}]},
    {metas: [{page: '/drops', items: []}]},
  ])
  assert.equal(shown.shoppers, 3)
  assert.deepEqual(shown.pages, [['/', 2], ['/checkout', 1], ['/drops', 1]])
  assert.deepEqual([...shown.items], [['7', 2], ['9', 1]])
})

test('A-114: an item that is in no cart has no number', () => {
  assert.equal(numbers([{metas: [{page: '/', items: []}]}]).items.get('7'), undefined)
})

test('A-116: a page that is no text is another', () => {
  assert.deepEqual(numbers([{metas: [{page: null}, {page: 7}]}]).pages, [['other', 2]])
})

test('what the server has counted is shown alike', () => {
  const totals = {shoppers: 2, tabs: 3, pages: {'/drops': 1, '/': 2}, items: {7: 1}}
  const shown = fromTotals(totals)
  assert.deepEqual([shown.shoppers, shown.pages, [...shown.items]], [2, [['/', 2], ['/drops', 1]], [['7', 1]]])
})
