//! The tables of queues in a SQLite file, and the statements on them.

/// The tables. An operator may read them, and insert items: `INSERT INTO pipeline_items (queue, payload)
/// VALUES ('orders', '{"id": 7}')`.
///
/// An item is available from the time `available_at` on, in milliseconds since 1970. A lease moves that
/// time forward. The triggers count items, and keep those of an ordered queue blocked that wait for an
/// earlier one of their key.
pub(super) const TABLES: &str = "
CREATE TABLE IF NOT EXISTS pipeline_queues (
    queue TEXT PRIMARY KEY NOT NULL,
    ordered INTEGER NOT NULL DEFAULT 0,
    items INTEGER NOT NULL DEFAULT 0,
    dead_letters INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS pipeline_items (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    queue TEXT NOT NULL,
    key TEXT,
    payload BLOB NOT NULL,
    headers TEXT,
    trace TEXT,
    enqueued_at INTEGER NOT NULL
        DEFAULT (CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)),
    available_at INTEGER NOT NULL DEFAULT 0,
    lease INTEGER,
    deliveries INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX IF NOT EXISTS pipeline_items_available ON pipeline_items (queue, available_at, id);
CREATE INDEX IF NOT EXISTS pipeline_items_key ON pipeline_items (queue, key, id)
    WHERE key IS NOT NULL;
CREATE TABLE IF NOT EXISTS pipeline_dead_letters (
    id INTEGER PRIMARY KEY NOT NULL,
    queue TEXT NOT NULL,
    key TEXT,
    payload BLOB NOT NULL,
    headers TEXT,
    trace TEXT,
    enqueued_at INTEGER NOT NULL,
    deliveries INTEGER NOT NULL,
    reason TEXT NOT NULL,
    given_up_at INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS pipeline_dead_letters_queue ON pipeline_dead_letters (queue, id);
CREATE TRIGGER IF NOT EXISTS pipeline_items_added AFTER INSERT ON pipeline_items BEGIN
    INSERT INTO pipeline_queues (queue, items) VALUES (NEW.queue, 1)
        ON CONFLICT (queue) DO UPDATE SET items = items + 1;
END;
CREATE TRIGGER IF NOT EXISTS pipeline_items_blocked AFTER INSERT ON pipeline_items
WHEN NEW.key IS NOT NULL AND (SELECT ordered FROM pipeline_queues WHERE queue = NEW.queue) = 1
BEGIN
    UPDATE pipeline_items SET available_at = 9223372036854775807
        WHERE id = NEW.id AND EXISTS (
            SELECT 1 FROM pipeline_items
                WHERE queue = NEW.queue AND key = NEW.key AND id < NEW.id
        );
END;
CREATE TRIGGER IF NOT EXISTS pipeline_items_removed AFTER DELETE ON pipeline_items BEGIN
    UPDATE pipeline_queues SET items = items - 1 WHERE queue = OLD.queue;
END;
CREATE TRIGGER IF NOT EXISTS pipeline_items_unblocked AFTER DELETE ON pipeline_items
WHEN OLD.key IS NOT NULL AND (SELECT ordered FROM pipeline_queues WHERE queue = OLD.queue) = 1
BEGIN
    UPDATE pipeline_items SET available_at = 0
        WHERE available_at = 9223372036854775807 AND id = (
            SELECT min(id) FROM pipeline_items WHERE queue = OLD.queue AND key = OLD.key
        );
END;
CREATE TRIGGER IF NOT EXISTS pipeline_dead_letters_added AFTER INSERT ON pipeline_dead_letters BEGIN
    UPDATE pipeline_queues SET dead_letters = dead_letters + 1 WHERE queue = NEW.queue;
END;
CREATE TRIGGER IF NOT EXISTS pipeline_dead_letters_removed AFTER DELETE ON pipeline_dead_letters BEGIN
    UPDATE pipeline_queues SET dead_letters = dead_letters - 1 WHERE queue = OLD.queue;
END;
";

/// Makes a queue ordered or not. Parameters: queue, ordered.
pub(super) const DECLARE: &str = "
INSERT INTO pipeline_queues (queue, ordered) VALUES (?1, ?2)
    ON CONFLICT (queue) DO UPDATE SET ordered = excluded.ordered WHERE ordered <> excluded.ordered";

/// Adds an item. Parameters: queue, key, payload, headers, trace, and when.
pub(super) const PUSH: &str = "
INSERT INTO pipeline_items (queue, key, payload, headers, trace, enqueued_at)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6)";

/// The ids of available items. Parameters: queue, now, limit.
pub(super) const AVAILABLE: &str = "
SELECT id FROM pipeline_items WHERE queue = ?1 AND available_at <= ?2
    ORDER BY available_at, id LIMIT ?3";

/// Leases an item. Parameters: id, until, lease.
pub(super) const LEASE: &str = "
UPDATE pipeline_items SET available_at = ?2, lease = ?3, deliveries = deliveries + 1 WHERE id = ?1
    RETURNING key, payload, headers, trace, enqueued_at, deliveries";

/// Renews a lease. Parameters: id, lease, until.
pub(super) const RENEW: &str =
    "UPDATE pipeline_items SET available_at = ?3 WHERE id = ?1 AND lease = ?2";

/// Removes an item that was handled. Parameters: id.
pub(super) const DONE: &str = "DELETE FROM pipeline_items WHERE id = ?1";

/// Makes an item available later. Parameters: id, lease, at.
pub(super) const RETRY: &str =
    "UPDATE pipeline_items SET available_at = ?3, lease = NULL WHERE id = ?1 AND lease = ?2";

/// Gives an item back as if it had not been delivered. Parameters: id, lease, at.
pub(super) const RELEASE: &str = "
UPDATE pipeline_items SET available_at = ?3, lease = NULL, deliveries = max(deliveries - 1, 0)
    WHERE id = ?1 AND lease = ?2";

/// Copies an item to the dead letters. Parameters: id, lease, reason, now.
pub(super) const GIVE_UP: &str = "
INSERT INTO pipeline_dead_letters
        (id, queue, key, payload, headers, trace, enqueued_at, deliveries, reason, given_up_at)
    SELECT id, queue, key, payload, headers, trace, enqueued_at, deliveries, ?3, ?4
        FROM pipeline_items WHERE id = ?1 AND lease = ?2";

/// The counts of a queue. Parameters: queue.
pub(super) const COUNTS: &str = "SELECT items, dead_letters FROM pipeline_queues WHERE queue = ?1";

/// When the item was added that is delivered next. Parameters: queue, now.
pub(super) const OLDEST: &str = "
SELECT enqueued_at FROM pipeline_items WHERE queue = ?1 AND available_at <= ?2
    ORDER BY available_at, id LIMIT 1";

/// Blocks the items of a queue that wait for an earlier one of their key. Parameters: queue.
pub(super) const BLOCK: &str = "
UPDATE pipeline_items SET available_at = 9223372036854775807
    WHERE queue = ?1 AND key IS NOT NULL AND lease IS NULL AND EXISTS (
        SELECT 1 FROM pipeline_items AS earlier
            WHERE earlier.queue = ?1 AND earlier.key = pipeline_items.key
                AND earlier.id < pipeline_items.id
    )";

/// Makes the blocked items of a queue available. Parameters: queue.
pub(super) const UNBLOCK: &str = "
UPDATE pipeline_items SET available_at = 0
    WHERE queue = ?1 AND available_at = 9223372036854775807";

/// Dead letters of a queue after an id. Parameters: queue, id, limit.
pub(super) const DEAD_LETTERS: &str = "
SELECT id, key, payload, headers, trace, enqueued_at, deliveries, reason, given_up_at
    FROM pipeline_dead_letters WHERE queue = ?1 AND id > ?2 ORDER BY id LIMIT ?3";

/// Adds a dead letter to its queue again. Parameters: queue, id.
pub(super) const REPLAY: &str = "
INSERT INTO pipeline_items (queue, key, payload, headers, trace, enqueued_at)
    SELECT queue, key, payload, headers, trace, enqueued_at
        FROM pipeline_dead_letters WHERE queue = ?1 AND id = ?2";

/// Removes a dead letter. Parameters: queue, id.
pub(super) const DROP: &str = "DELETE FROM pipeline_dead_letters WHERE queue = ?1 AND id = ?2";
