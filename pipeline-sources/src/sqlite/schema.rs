//! The tables of queues in a SQLite file, and the statements on them.

use rusqlite::{Connection, ErrorCode, Row};

/// The time of an item that waits for an earlier one of its key.
pub(super) const NEVER: i64 = i64::MAX;

/// Whether the file has what [`TABLES`] creates.
pub(super) const IS_CURRENT: &str =
    "SELECT EXISTS (SELECT 1 FROM sqlite_master WHERE name = 'pipeline_items_far')";

/// From this id on, a program may choose none that is more than 2^32 above the last one, so that ids are left
/// for later items.
const HIGH: i64 = 1 << 61;

/// The name of the check of ids, which is also in the error of the trigger.
const NO_ROOM: &str = "pipeline_ids_leave_room_for_later_ones";

/// The largest id that an item has or had.
const LAST_ID: &str = "
SELECT max(coalesce((SELECT max(id) FROM pipeline_items), 0),
    coalesce((SELECT max(seq) FROM sqlite_sequence WHERE name = 'pipeline_items'), 0))";

/// The largest id of all items that were there, if a new one has failed because none is left after it.
pub(super) fn used_up_by(connection: &Connection, error: &rusqlite::Error) -> Option<i64> {
    let rusqlite::Error::SqliteFailure(failure, text) = error else { return None };
    // SQLite says of its own largest id what it says of a full disk.
    let is_full = failure.code == ErrorCode::DiskFull;
    if !is_full && !text.as_ref().is_some_and(|it| it.contains(NO_ROOM)) {
        return None;
    }
    let last: i64 = connection.query_row(LAST_ID, [], |row| row.get(0)).ok()?;
    (last == i64::MAX || !is_full && last >= HIGH).then_some(last)
}

/// Whether the items have a column. Parameters: its name.
pub(super) const HAS_COLUMN: &str =
    "SELECT EXISTS (SELECT 1 FROM pragma_table_info('pipeline_items') WHERE name = ?1)";

/// The tables, and the columns that they have had from the first version on.
const COLUMNS: [(&str, &[&str]); 3] = [
    ("pipeline_queues", &["queue", "ordered", "items", "dead_letters"]),
    (
        "pipeline_items",
        &[
            "id",
            "queue",
            "key",
            "payload",
            "headers",
            "trace",
            "enqueued_at",
            "available_at",
            "lease",
            "deliveries",
        ],
    ),
    (
        "pipeline_dead_letters",
        &[
            "id",
            "queue",
            "key",
            "payload",
            "headers",
            "trace",
            "enqueued_at",
            "deliveries",
            "reason",
            "given_up_at",
        ],
    ),
];

/// The columns of a table, and whether each is the whole primary key and counts. Parameters: its name.
const COLUMNS_OF: &str = "
SELECT name, pk = 1 AND upper(type) = 'INTEGER' AND (SELECT count(*) FROM pragma_table_info(?1) WHERE pk > 0) = 1
    FROM pragma_table_info(?1)";

/// Why the tables of these names are not those of a queue, if so, in one line: such as a table of another program.
/// Tables that are not there are created, unless they have to exist.
pub(super) fn is_foreign(
    connection: &Connection,
    have_to_exist: bool,
) -> rusqlite::Result<Option<String>> {
    for (table, expected) in COLUMNS {
        let columns = |row: &Row<'_>| Ok((row.get::<_, String>(0)?, row.get::<_, bool>(1)?));
        let mut statement = connection.prepare(COLUMNS_OF)?;
        let found = statement.query_map([table], columns)?.collect::<rusqlite::Result<Vec<_>>>()?;
        if found.is_empty() {
            if have_to_exist {
                let why = format!("it has no table {table}, so no queue was made in it");
                return Ok(Some(why));
            }
            continue;
        }
        let find = |name: &str| found.iter().find(|(it, _)| it.eq_ignore_ascii_case(name));
        let lacking: Vec<_> =
            expected.iter().copied().filter(|name| find(name).is_none()).collect();
        let expected = expected.join(", ");
        if !lacking.is_empty() {
            let lacking = lacking.join(", ");
            return Ok(Some(format!(
                "its table {table} is not that of a queue, it lacks {lacking}: expected the columns {expected}"
            )));
        }
        if find("id").is_some_and(|(_, counts)| !counts) {
            return Ok(Some(format!(
                "its table {table} is not that of a queue: expected the column id to be its INTEGER PRIMARY KEY"
            )));
        }
    }
    Ok(None)
}

/// The names of queues, the first ones. Parameters: limit.
pub(super) const QUEUES: &str = "SELECT queue FROM pipeline_queues ORDER BY queue LIMIT ?1";

/// Whether there is a queue. Parameters: its name.
pub(super) const IS_THERE: &str = "SELECT EXISTS (SELECT 1 FROM pipeline_queues WHERE queue = ?1)";

/// The columns that older files do not have, and what adds them. Programs of the versions before do not set
/// them, and go on.
pub(super) const NEW_COLUMNS: [(&str, &str); 2] = [
    ("failures", "ALTER TABLE pipeline_items ADD COLUMN failures INTEGER NOT NULL DEFAULT 0"),
    ("waits_since", "ALTER TABLE pipeline_items ADD COLUMN waits_since INTEGER"),
];

/// The tables. An operator may read them, and insert items: `INSERT INTO pipeline_items (queue, payload)
/// VALUES ('orders', '{"id": 7}')`.
///
/// An item is available from the time `available_at` on, in milliseconds since 1970, and a new one is from 0
/// on. A lease moves that time forward, and a delay does; when they did is in `waits_since`. The triggers count items. In an ordered queue they note which wait
/// for an earlier one of their key, by a time that never comes. It is no more than a note: who takes items
/// looks whether it is their turn, and a source looks once in a while for notes that nothing has removed.
pub(super) const TABLES: &str = "
CREATE TABLE IF NOT EXISTS pipeline_queues (
    queue TEXT PRIMARY KEY NOT NULL,
    ordered INTEGER NOT NULL DEFAULT 0,
    items INTEGER NOT NULL DEFAULT 0,
    dead_letters INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS pipeline_items (
    id INTEGER PRIMARY KEY AUTOINCREMENT
        CONSTRAINT pipeline_ids_leave_room_for_later_ones CHECK (id < 4611686018427387904),
    queue TEXT NOT NULL,
    key TEXT,
    payload BLOB NOT NULL,
    headers TEXT,
    trace TEXT,
    enqueued_at INTEGER NOT NULL
        DEFAULT (CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER))
        CHECK (typeof(enqueued_at) = 'integer'),
    available_at INTEGER NOT NULL DEFAULT 0 CHECK (typeof(available_at) = 'integer'),
    lease INTEGER,
    deliveries INTEGER NOT NULL DEFAULT 0 CHECK (typeof(deliveries) = 'integer'),
    failures INTEGER NOT NULL DEFAULT 0,
    waits_since INTEGER
);
CREATE INDEX IF NOT EXISTS pipeline_items_available ON pipeline_items (queue, available_at, id);
CREATE INDEX IF NOT EXISTS pipeline_items_queue ON pipeline_items (queue, id);
CREATE INDEX IF NOT EXISTS pipeline_items_key ON pipeline_items (queue, key, id)
    WHERE key IS NOT NULL;
CREATE INDEX IF NOT EXISTS pipeline_items_leased ON pipeline_items (queue, key)
    WHERE key IS NOT NULL AND lease IS NOT NULL;
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
DROP TRIGGER IF EXISTS pipeline_items_blocked;
CREATE TRIGGER IF NOT EXISTS pipeline_items_turn AFTER INSERT ON pipeline_items
WHEN NEW.key IS NOT NULL AND (SELECT ordered FROM pipeline_queues WHERE queue = NEW.queue) = 1
BEGIN
    UPDATE pipeline_items SET available_at = 9223372036854775807
        WHERE id = NEW.id AND EXISTS (
            SELECT 1 FROM pipeline_items
                WHERE queue = NEW.queue AND key = NEW.key AND id < NEW.id
        );
END;
CREATE TRIGGER IF NOT EXISTS pipeline_items_far AFTER INSERT ON pipeline_items
WHEN NEW.id >= 2305843009213693952 AND NEW.id > 4294967296
    + coalesce((SELECT max(seq) FROM sqlite_sequence WHERE name = 'pipeline_items'), 0)
BEGIN
    SELECT RAISE(ABORT, 'pipeline_ids_leave_room_for_later_ones: the id is far above all others');
END;
CREATE TRIGGER IF NOT EXISTS pipeline_items_removed AFTER DELETE ON pipeline_items BEGIN
    UPDATE pipeline_queues SET items = items - 1 WHERE queue = OLD.queue;
END;
CREATE TRIGGER IF NOT EXISTS pipeline_items_moved AFTER UPDATE OF queue ON pipeline_items
WHEN OLD.queue <> NEW.queue
BEGIN
    UPDATE pipeline_queues SET items = items - 1 WHERE queue = OLD.queue;
    INSERT INTO pipeline_queues (queue, items) VALUES (NEW.queue, 1)
        ON CONFLICT (queue) DO UPDATE SET items = items + 1;
END;
DROP TRIGGER IF EXISTS pipeline_items_unblocked;
CREATE TRIGGER IF NOT EXISTS pipeline_items_next AFTER DELETE ON pipeline_items
WHEN OLD.key IS NOT NULL AND (SELECT ordered FROM pipeline_queues WHERE queue = OLD.queue) = 1
BEGIN
    UPDATE pipeline_items SET available_at = 0
        WHERE available_at = 9223372036854775807 AND id = (
            SELECT min(id) FROM pipeline_items WHERE queue = OLD.queue AND key = OLD.key
        );
END;
CREATE TRIGGER IF NOT EXISTS pipeline_items_rekeyed AFTER UPDATE OF queue, key ON pipeline_items
WHEN OLD.key IS NOT NEW.key OR OLD.queue <> NEW.queue
BEGIN
    UPDATE pipeline_items SET available_at = 0
        WHERE available_at = 9223372036854775807 AND (id = NEW.id OR id = (
            SELECT min(id) FROM pipeline_items WHERE queue = OLD.queue AND key = OLD.key
        ));
END;
CREATE TRIGGER IF NOT EXISTS pipeline_dead_letters_added AFTER INSERT ON pipeline_dead_letters BEGIN
    UPDATE pipeline_queues SET dead_letters = dead_letters + 1 WHERE queue = NEW.queue;
END;
CREATE TRIGGER IF NOT EXISTS pipeline_dead_letters_removed AFTER DELETE ON pipeline_dead_letters BEGIN
    UPDATE pipeline_queues SET dead_letters = dead_letters - 1 WHERE queue = OLD.queue;
END;
";

/// Whether a queue is ordered. Parameters: queue.
pub(super) const IS_ORDERED: &str =
    "SELECT EXISTS (SELECT 1 FROM pipeline_queues WHERE queue = ?1 AND ordered = 1)";

/// Makes a queue ordered or not. Parameters: queue, ordered.
pub(super) const DECLARE: &str = "
INSERT INTO pipeline_queues (queue, ordered) VALUES (?1, ?2)
    ON CONFLICT (queue) DO UPDATE SET ordered = excluded.ordered WHERE ordered <> excluded.ordered";

/// Adds an item. Parameters: queue, key, payload, headers, trace, and when.
pub(super) const PUSH: &str = "
INSERT INTO pipeline_items (queue, key, payload, headers, trace, enqueued_at)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6)";

/// The ids of items that are available again: after a delay, or because their process has died.
/// Parameters: queue, limit, now.
pub(super) const AGAIN: &str = "
SELECT id FROM pipeline_items WHERE queue = ?1 AND available_at > 0 AND available_at <= ?3
    ORDER BY available_at, id LIMIT ?2";

/// The ids of items that are available and were so from the beginning. Parameters: queue, limit.
pub(super) const NEW: &str = "
SELECT id FROM pipeline_items WHERE queue = ?1 AND available_at <= 0 ORDER BY available_at, id LIMIT ?2";

/// The ids of items whose time is no integer. It is greater than any. Parameters: queue, limit.
pub(super) const ODD: &str = "
SELECT id FROM pipeline_items WHERE queue = ?1 AND available_at > 9223372036854775807 LIMIT ?2";

/// Leases an item, unless it is not its turn in an ordered queue: an earlier one of its key is there, or a
/// later one is in work, as a program may choose ids. Parameters: id, until, lease, whether the queue is
/// ordered, now.
pub(super) const LEASE: &str = "
UPDATE pipeline_items SET available_at = ?2, lease = ?3, waits_since = ?5,
        deliveries = CASE typeof(deliveries) WHEN 'integer' THEN min(max(deliveries, 0), 2147483646)
            ELSE 0 END + 1
    WHERE id = ?1 AND (NOT ?4 OR key IS NULL OR NOT (EXISTS (
        SELECT 1 FROM pipeline_items AS earlier
            WHERE earlier.queue = pipeline_items.queue AND earlier.key = pipeline_items.key
                AND earlier.id < pipeline_items.id
    ) OR EXISTS (
        SELECT 1 FROM pipeline_items AS other INDEXED BY pipeline_items_leased
            WHERE other.queue = pipeline_items.queue AND other.key = pipeline_items.key
                AND other.lease IS NOT NULL
                AND other.available_at > ?5 AND other.available_at < 9223372036854775807
    )))
    RETURNING key, payload, headers, trace, enqueued_at, deliveries, failures";

/// Notes that an item waits for an earlier one of its key. Parameters: id.
pub(super) const WAIT: &str = "
UPDATE pipeline_items SET available_at = 9223372036854775807, lease = NULL WHERE id = ?1
    RETURNING key";

/// Makes the first item of a key available, if it is noted as waiting and no item of the key is in work.
/// Parameters: queue, key, now.
pub(super) const FREE: &str = "
UPDATE pipeline_items SET available_at = 0, lease = NULL
    WHERE available_at = 9223372036854775807
        AND id = (SELECT min(id) FROM pipeline_items WHERE queue = ?1 AND key = ?2)
        AND NOT EXISTS (
            SELECT 1 FROM pipeline_items INDEXED BY pipeline_items_leased
                WHERE queue = ?1 AND key = ?2 AND lease IS NOT NULL AND available_at > ?3 AND available_at < 9223372036854775807
        )";

/// The first key of a queue, and the next one after a key. Parameters: queue, and key.
pub(super) const FIRST_KEY: &str =
    "SELECT min(key) FROM pipeline_items WHERE queue = ?1 AND key IS NOT NULL";
pub(super) const NEXT_KEY: &str =
    "SELECT min(key) FROM pipeline_items WHERE queue = ?1 AND key > ?2";

/// Renews a lease. Parameters: id, lease, until, now.
pub(super) const RENEW: &str = "
UPDATE pipeline_items SET available_at = ?3, waits_since = ?4 WHERE id = ?1 AND lease = ?2";

/// Items that are available later than now, from the latest on, and since when they wait. Parameters: queue,
/// the time and the id of the item before, now, limit.
pub(super) const LATER: &str = "
SELECT id, available_at, waits_since FROM pipeline_items
    WHERE queue = ?1 AND available_at > ?4 AND (available_at, id) < (?2, ?3)
    ORDER BY available_at DESC, id DESC LIMIT ?5";

/// Makes an item wait until a time. Parameters: id, at, now.
pub(super) const WAIT_UNTIL: &str =
    "UPDATE pipeline_items SET available_at = ?2, waits_since = ?3 WHERE id = ?1";

/// Removes an item that was handled. Parameters: id.
pub(super) const DONE: &str = "DELETE FROM pipeline_items WHERE id = ?1";

/// Removes an item of a queue. Parameters: queue, id.
pub(super) const REMOVE: &str = "DELETE FROM pipeline_items WHERE queue = ?1 AND id = ?2";

/// Makes an item available later. Parameters: id, lease, at, now, and how often it has failed.
pub(super) const RETRY: &str = "
UPDATE pipeline_items SET available_at = ?3, waits_since = ?4, lease = NULL, failures = ?5
    WHERE id = ?1 AND lease = ?2";

/// Gives an item back as if it had not been delivered. Parameters: id, lease, at, now.
pub(super) const RELEASE: &str = "
UPDATE pipeline_items SET available_at = ?3, waits_since = ?4, lease = NULL,
        deliveries = max(deliveries - 1, 0)
    WHERE id = ?1 AND lease = ?2";

/// Ends the delay of an item. Parameters: id, now.
pub(super) const WAKE: &str = "
UPDATE pipeline_items SET available_at = ?2, waits_since = ?2
    WHERE id = ?1 AND lease IS NULL AND available_at > ?2 AND available_at < 9223372036854775807";

/// Copies an item to the dead letters. It keeps its id, unless there is a dead letter with it. Parameters:
/// id, lease, reason, now.
pub(super) const GIVE_UP: &str = "
INSERT INTO pipeline_dead_letters
        (id, queue, key, payload, headers, trace, enqueued_at, deliveries, reason, given_up_at)
    SELECT CASE WHEN EXISTS (SELECT 1 FROM pipeline_dead_letters WHERE id = ?1) THEN NULL ELSE id END,
            queue, key, payload, headers, trace, enqueued_at, deliveries, ?3, ?4
        FROM pipeline_items WHERE id = ?1 AND lease = ?2";

/// The counts of a queue. Parameters: queue.
pub(super) const COUNTS: &str = "SELECT items, dead_letters FROM pipeline_queues WHERE queue = ?1";

/// When the first item was added that is not done. Parameters: queue.
pub(super) const OLDEST: &str =
    "SELECT enqueued_at FROM pipeline_items WHERE queue = ?1 ORDER BY id LIMIT 1";

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

/// The same of up to so many. Parameters: queue, limit.
pub(super) const UNBLOCK_SOME: &str = "
UPDATE pipeline_items SET available_at = 0 WHERE id IN (
    SELECT id FROM pipeline_items WHERE queue = ?1 AND available_at = 9223372036854775807 LIMIT ?2
)";

/// Dead letters of a queue after an id. Parameters: queue, id, limit, and the last id.
pub(super) const DEAD_LETTERS: &str = "
SELECT id, key, payload, headers, trace, enqueued_at, deliveries, reason, given_up_at
    FROM pipeline_dead_letters WHERE queue = ?1 AND id > ?2 AND id <= ?4 ORDER BY id LIMIT ?3";

/// The last dead letter of a queue. Parameters: queue.
pub(super) const LAST_DEAD_LETTER: &str =
    "SELECT max(id) FROM pipeline_dead_letters WHERE queue = ?1";

/// The ids of the dead letters of a queue after an id, up to another. Parameters: queue, id, the last id, limit.
pub(super) const DEAD_IDS: &str = "
SELECT id FROM pipeline_dead_letters WHERE queue = ?1 AND id > ?2 AND id <= ?3 ORDER BY id LIMIT ?4";

/// Items of a queue after an id. Parameters: queue, id, limit.
pub(super) const ITEMS: &str = "
SELECT id, key, payload, headers, trace, enqueued_at, deliveries, available_at, lease IS NOT NULL
    FROM pipeline_items WHERE queue = ?1 AND id > ?2 ORDER BY id LIMIT ?3";

/// Adds a dead letter to its queue again. Parameters: queue, id, now.
pub(super) const REPLAY: &str = "
INSERT INTO pipeline_items (queue, key, payload, headers, trace, enqueued_at)
    SELECT queue, key, payload, headers, trace, ?3
        FROM pipeline_dead_letters WHERE queue = ?1 AND id = ?2";

/// Removes a dead letter. Parameters: queue, id.
pub(super) const DROP: &str = "DELETE FROM pipeline_dead_letters WHERE queue = ?1 AND id = ?2";
