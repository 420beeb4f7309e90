//! The tables.

/// The tables of the shop. Revisions grow with every change of their row.
pub(super) const TABLES: &str = "
CREATE TABLE IF NOT EXISTS products (
    id INTEGER PRIMARY KEY,
    position INTEGER NOT NULL,
    sku TEXT NOT NULL UNIQUE,
    brand TEXT NOT NULL,
    name TEXT NOT NULL,
    color TEXT NOT NULL,
    price_usd INTEGER NOT NULL CHECK (price_usd >= 0),
    main_image_url TEXT NOT NULL,
    released INTEGER NOT NULL DEFAULT 0 CHECK (released IN (0, 1)),
    release_at INTEGER,
    rev INTEGER NOT NULL DEFAULT 1
);
CREATE TABLE IF NOT EXISTS items (
    id INTEGER PRIMARY KEY,
    product_id INTEGER NOT NULL REFERENCES products (id),
    sku TEXT NOT NULL UNIQUE,
    size TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS items_by_product ON items (product_id);
CREATE TABLE IF NOT EXISTS item_availabilities (
    item_id INTEGER PRIMARY KEY REFERENCES items (id),
    available_count INTEGER NOT NULL CHECK (available_count >= 0),
    rev INTEGER NOT NULL DEFAULT 1
);
CREATE TABLE IF NOT EXISTS orders (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    key TEXT NOT NULL,
    cart TEXT NOT NULL,
    placed_at INTEGER NOT NULL,
    UNIQUE (cart, key)
);
CREATE TABLE IF NOT EXISTS order_items (
    order_id INTEGER NOT NULL REFERENCES orders (id),
    item_id INTEGER NOT NULL REFERENCES items (id),
    price_usd INTEGER NOT NULL,
    PRIMARY KEY (order_id, item_id)
) WITHOUT ROWID;
";

pub(super) const PRODUCTS: &str = "
SELECT id, position, sku, brand, name, color, price_usd, main_image_url, released, release_at, rev FROM products";

pub(super) const ITEMS: &str = "
SELECT items.id, product_id, sku, size, available_count, rev
FROM items JOIN item_availabilities ON item_id = items.id";

pub(super) const RELEASE: &str =
    "UPDATE products SET released = 1, rev = rev + 1 WHERE id = ? AND released = 0 RETURNING rev";

pub(super) const SELL: &str = "
UPDATE item_availabilities SET available_count = available_count - 1, rev = rev + 1
WHERE item_id = ? AND available_count > 0 RETURNING available_count, rev";

pub(super) const STOCK: &str = "
UPDATE item_availabilities SET available_count = ?2, rev = rev + 1
WHERE item_id = ?1 RETURNING available_count, rev";

pub(super) const RAISE_ITEM: &str = "
UPDATE item_availabilities SET rev = ?2 + 1 WHERE item_id = ?1 AND rev <= ?2 RETURNING available_count, rev";

pub(super) const RAISE_PRODUCT: &str =
    "UPDATE products SET rev = ?2 + 1 WHERE id = ?1 AND rev <= ?2 RETURNING released, rev";

pub(super) const FOR_SALE: &str = "
SELECT price_usd, released FROM items JOIN products ON products.id = product_id WHERE items.id = ?";
