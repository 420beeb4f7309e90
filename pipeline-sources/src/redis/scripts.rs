//! What is done at the server in one step.
//!
//! A script reads the server's clock, so that processes whose clocks differ agree about leases and delays.

/// Takes items for a consumer: those that were given back, those of dead consumers, those whose delay is over, and new
/// ones, which have half of the other places if there are so many. Keys: stream, later, failures. Arguments: group, consumer,
/// the most, lease, where the search for items of dead consumers begins, or nothing, 1 if new items have the
/// smaller half, the bytes with which it has enough, and how many new ones are read first.
///
/// The server tells the size of an item only with the item. So a few are read at a time, one at first and twice as many
/// each time, unless those before were small.
///
/// Returns the items with their deliveries and failures, where the next search begins, and in how many milliseconds the
/// next delay is over.
pub(super) const TAKE: &str = "
local stream, later, failures = KEYS[1], KEYS[2], KEYS[3]
local group, consumer, cursor = ARGV[1], ARGV[2], ARGV[5]
local most = tonumber(ARGV[3])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local most_bytes, at_once = tonumber(ARGV[7]), tonumber(ARGV[8])
local taken, new, bytes, largest = {}, {}, 0, 0
local function left()
    if bytes >= most_bytes then return 0 end
    return most - #taken - #new
end
-- How many of those are read together whose sizes are not known.
local function few()
    local fitting = math.floor((most_bytes - bytes) / math.max(largest, 1))
    return math.min(at_once, left(), math.max(fitting, 1))
end
local function measure(fields)
    local size = 0
    for _, value in ipairs(fields) do size = size + #value end
    bytes = bytes + size
    if size > largest then largest = size end
end
local function take(id)
    local entry = redis.call('XCLAIM', stream, group, consumer, 0, id)[1]
    if entry then
        measure(entry[2])
        local pending = redis.call('XPENDING', stream, group, id, id, 1)[1]
        local failed = redis.call('HGET', failures, id)
        taken[#taken + 1] = {entry[1], pending[4], tonumber(failed or 0) or 0, entry[2]}
    else
        -- An operator has removed it.
        redis.call('XACK', stream, group, id)
        redis.call('HDEL', failures, id)
    end
end
local function take_due(from, to, count)
    for _, id in ipairs(redis.call('ZRANGEBYSCORE', later, from, to, 'LIMIT', 0, count)) do
        if left() <= 0 then break end
        redis.call('ZREM', later, id)
        take(id)
    end
end
local function take_new(count)
    count = math.min(count, left())
    while count > 0 do
        local asked = math.min(count, few())
        local read = redis.call(
            'XREADGROUP', 'GROUP', group, consumer, 'COUNT', asked, 'STREAMS', stream, '>')
        if not read then return end
        for _, entry in ipairs(read[1][2]) do
            measure(entry[2])
            new[#new + 1] = {entry[1], 1, 0, entry[2]}
        end
        if #read[1][2] < asked then return end
        count = math.min(count - asked, left())
        at_once = math.min(at_once * 2, 16)
    end
end
-- What was given back without a delay comes first.
take_due('-inf', 0, most)
-- Of the others, new items have half of the places, if there are so many.
local again = math.floor((left() + tonumber(ARGV[6])) / 2)
if cursor == '' then again = math.min(again, redis.call('ZCOUNT', later, '(0', now)) end
take_new(left() - again)
if cursor ~= '' then
    local looks = left()
    while looks > 0 do
        local asked = few()
        looks = looks - asked
        local found = redis.call(
            'XAUTOCLAIM', stream, group, consumer, ARGV[4], cursor, 'COUNT', asked, 'JUSTID')
        cursor = found[1]
        for _, id in ipairs(found[2]) do
            -- An item that waits for its delay is in no consumer's work.
            if not redis.call('ZSCORE', later, id) then take(id) end
        end
        if cursor == '0-0' or left() <= 0 then break end
        -- A look that has found none has told no size.
        if #found[2] > 0 then at_once = math.min(at_once * 2, 16) end
    end
end
take_due('(0', now, left())
take_new(left())
for _, entry in ipairs(new) do taken[#taken + 1] = entry end
local first = redis.call('ZRANGE', later, 0, 0, 'WITHSCORES')
local due = -1
if first[2] then due = math.max(tonumber(first[2]) - now, 0) end
return {taken, cursor, due}
";

/// Stores outcomes, each on its own. Keys: stream, later, failures, dead letters. Arguments: group, whether items
/// that are done stay, and of each outcome its name, the item's id, its consumer, its deliveries, how often it
/// has failed, and a delay or a reason. Returns the places of those that could not be stored, and why.
///
/// An item that another consumer has taken over is left to it, unless it is done.
pub(super) const SETTLE: &str = "
local stream, later, failures, dead = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local group, stays = ARGV[1], ARGV[2] == '1'
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function done(...)
    redis.call('XACK', stream, group, ...)
    redis.call('ZREM', later, ...)
    redis.call('HDEL', failures, ...)
    if not stays then redis.call('XDEL', stream, ...) end
end
local function settle(outcome, id, consumer, deliveries, failed, more)
    local pending = redis.call('XPENDING', stream, group, id, id, 1)[1]
    if not pending or pending[2] ~= consumer or pending[4] ~= tonumber(deliveries) then return end
    if outcome == 'retry' then
        redis.call('HSET', failures, id, failed)
        redis.call('ZADD', later, now + more, id)
    elseif outcome == 'release' then
        redis.call('XCLAIM', stream, group, consumer, 0, id,
            'RETRYCOUNT', math.max(deliveries - 1, 0), 'JUSTID')
        -- What is not delayed comes first.
        local delay = tonumber(more)
        redis.call('ZADD', later, delay > 0 and now + delay or 0, id)
    else
        local entry = redis.call('XRANGE', stream, id, id)[1]
        if entry then
            -- So many values can be passed to a command here.
            local kept = math.min(#entry[2], 4000)
            if kept < #entry[2] then
                more = more .. ' (' .. (#entry[2] - kept) / 2 .. ' of its fields did not fit)'
            end
            local fields = {
                'dead:id', id, 'dead:reason', more,
                'dead:deliveries', deliveries, 'dead:at', string.format('%d', now),
            }
            for n = 1, kept do fields[#fields + 1] = entry[2][n] end
            redis.call('XADD', dead, '*', unpack(fields))
        end
        done(id)
    end
end
-- A server without memory refuses what needs some, unless the script has begun to write. What is stored here
-- is small, or frees as much.
redis.call('XACK', stream, group, '0-0')
-- What is done goes first, in one call of each command.
local handled, failed = {}, {}
for i = 3, #ARGV, 6 do
    if ARGV[i] == 'done' then handled[#handled + 1] = ARGV[i + 1] end
end
if #handled > 0 then done(unpack(handled)) end
for i = 3, #ARGV, 6 do
    local stored, why = true, nil
    if ARGV[i] ~= 'done' then
        stored, why =
            pcall(settle, ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3], ARGV[i + 4], ARGV[i + 5])
    end
    if not stored then
        why = type(why) == 'table' and why.err or tostring(why)
        -- The group is created again by a new session.
        if string.find(why, 'NOGROUP') then return redis.error_reply(why) end
        failed[#failed + 1] = {(i - 3) / 6, why}
    end
end
return failed
";

/// Renews leases. Keys: stream. Arguments: group, and of each item its id, its consumer and its deliveries.
pub(super) const RENEW: &str = "
local stream, group = KEYS[1], ARGV[1]
for i = 2, #ARGV, 3 do
    local id, consumer = ARGV[i], ARGV[i + 1]
    local pending = redis.call('XPENDING', stream, group, id, id, 1)[1]
    if pending and pending[2] == consumer and pending[4] == tonumber(ARGV[i + 2]) then
        redis.call('XCLAIM', stream, group, consumer, 0, id, 'JUSTID')
    end
end
return redis.status_reply('OK')
";

/// Removes what all groups of a stream have done, of a stream that several read. Keys: stream.
///
/// What is before the oldest item in work and before the last delivered one of each group has been done in
/// all of them.
pub(super) const TRIM: &str = "
local function numbers(id)
    local ms, seq = string.match(id, '([0-9]+)-([0-9]+)')
    return tonumber(ms), tonumber(seq)
end
local function trim(stream)
    if redis.call('EXISTS', stream) == 0 then return end
    local first
    for _, flat in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
        local group = {}
        for i = 1, #flat, 2 do group[flat[i]] = flat[i + 1] end
        local oldest = group['last-delivered-id']
        local ms, seq = numbers(oldest)
        -- The last delivered one itself may be removed if it is done.
        seq = seq + 1
        if group['pending'] > 0 then
            ms, seq = numbers(redis.call('XPENDING', stream, group['name'])[2])
        end
        if not first or ms < first[1] or (ms == first[1] and seq < first[2]) then
            first = {ms, seq}
        end
    end
    if first then
        redis.call('XTRIM', stream, 'MINID', string.format('%d', first[1]) .. '-' .. string.format('%d', first[2]))
    end
end
";

/// The rest of the script that trims.
pub(super) const TRIM_NOW: &str = "
trim(KEYS[1])
return redis.status_reply('OK')
";

/// Adds items, or none if there are too many, after the functions of [`TRIM`]. Keys: stream. Arguments: the
/// most items or 0, whether items that are done stay, and of each item the number of its values and the
/// values.
pub(super) const PUSH: &str = "
local most = tonumber(ARGV[1])
if most > 0 then
    local items, i = 0, 3
    while i <= #ARGV do
        items = items + 1
        i = i + ARGV[i] + 1
    end
    if redis.call('XLEN', KEYS[1]) + items > most then
        if ARGV[2] == '1' then trim(KEYS[1]) end
        if redis.call('XLEN', KEYS[1]) + items > most then return {} end
    end
end
local ids, i = {}, 3
while i <= #ARGV do
    local last = i + ARGV[i]
    ids[#ids + 1] = redis.call('XADD', KEYS[1], '*', unpack(ARGV, i + 1, last))
    i = last + 1
end
return ids
";

/// Adds a dead letter to the stream again. Keys: stream, dead letters. Arguments: its id.
pub(super) const REPLAY: &str = "
local entry = redis.call('XRANGE', KEYS[2], ARGV[1], ARGV[1])[1]
-- Half an id is that of the first one of its millisecond.
if not entry or entry[1] ~= ARGV[1] then return false end
local fields = {}
for i = 1, #entry[2], 2 do
    local name = entry[2][i]
    -- Its age begins anew.
    if string.sub(name, 1, 5) ~= 'dead:' and name ~= 'enqueued_at' then
        fields[#fields + 1] = name
        fields[#fields + 1] = entry[2][i + 1]
    end
end
local id = redis.call('XADD', KEYS[1], '*', unpack(fields))
redis.call('XDEL', KEYS[2], ARGV[1])
return id
";

/// Dead letters up to one, as many as have so many bytes. Keys: dead letters. Arguments: where they begin, the last
/// one or nothing if it is the last that there is, the most, and the bytes.
///
/// Returns the id of the last one and the dead letters.
pub(super) const DEAD: &str = "
local from, last = ARGV[1], ARGV[2]
if last == '' then
    local newest = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
    if not newest then return {'', {}} end
    last = newest[1]
end
local found, bytes = {}, 0
while #found < tonumber(ARGV[3]) and bytes < tonumber(ARGV[4]) do
    local entry = redis.call('XRANGE', KEYS[1], from, last, 'COUNT', 1)[1]
    if not entry then break end
    -- The server works for each, however small it is.
    bytes = bytes + 100
    for _, value in ipairs(entry[2]) do bytes = bytes + #value end
    found[#found + 1] = entry
    from = '(' .. entry[1]
end
return {last, found}
";

/// Creates the consumer group unless it is there, and removes consumers that have nothing in work and have not
/// been seen for a while. Keys: stream. Arguments: group, and how long in milliseconds.
pub(super) const OPEN: &str = "
-- So that a server without memory does not refuse it.
redis.call('XACK', KEYS[1], ARGV[1], '0-0')
local created = redis.pcall('XGROUP', 'CREATE', KEYS[1], ARGV[1], 0, 'MKSTREAM')
if created.err and not string.find(created.err, 'BUSYGROUP') then return created end
for _, flat in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
    local consumer = {}
    for i = 1, #flat, 2 do consumer[flat[i]] = flat[i + 1] end
    if consumer['pending'] == 0 and consumer['idle'] > tonumber(ARGV[2]) then
        redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], consumer['name'])
    end
end
return redis.status_reply('OK')
";

/// What waits. Keys: stream, dead letters. Arguments: group, and whether several groups read the stream.
///
/// Returns how many items are not done or -1, when the oldest of them was added in milliseconds since 1970 or
/// -1, and how many dead letters there are or -1. Payloads stay where they are.
pub(super) const BACKLOG: &str = "
local stream, group = KEYS[1], ARGV[1]
local dead = redis.pcall('XLEN', KEYS[2])
if type(dead) ~= 'number' then dead = -1 end
if redis.call('EXISTS', stream) == 0 then return {0, -1, dead} end
local first = redis.call('XRANGE', stream, '-', '+', 'COUNT', 1)[1]
local items = redis.call('XLEN', stream)
if ARGV[2] == '1' then
    items, first = -1, nil
    for _, flat in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
        local it = {}
        for i = 1, #flat, 2 do it[flat[i]] = flat[i + 1] end
        if it['name'] == group then
            -- Servers before version 7 do not say how many are new.
            if it['lag'] then items = it['lag'] + it['pending'] end
            -- The first one that is in work, or that is new.
            if it['pending'] > 0 then
                local id = redis.call('XPENDING', stream, group)[2]
                first = redis.call('XRANGE', stream, id, '+', 'COUNT', 1)[1]
            else
                local after = '(' .. it['last-delivered-id']
                first = redis.call('XRANGE', stream, after, '+', 'COUNT', 1)[1]
            end
        end
    end
end
local oldest = -1
if first then
    oldest = string.match(first[1], '[0-9]+')
    for i = 1, #first[2], 2 do
        if first[2][i] == 'enqueued_at' then oldest = first[2][i + 1] end
    end
end
return {items, tonumber(oldest) or -1, dead}
";
