-- The working copy of one book: what a call reads, changes and at its end writes.
--
-- A call never writes while it thinks. It opens a working copy, which reads what it needs and no
-- more, runs its commands (one, or a whole batch) against that copy, and at the end commit.lua
-- puts the difference into Redis in a few calls with many arguments each. This gives three things
-- at once:
--
--   * all or nothing: whatever can fail has failed before the first write;
--   * a batch costs little more calls than a single command;
--   * the stream entry comes first and the sequence last, so a write that was broken off (which
--     Redis does not do by itself) leaves the stream ahead of the book: the next command's entry is
--     then refused by the stream, and the book stands still until repaired.

local queue = require("book/queue")
local event_stream = require("market_data/event_stream")
local trigger_queue = require("matching/trigger_queue")
local instrument_record = require("records/instrument_record")
local keys = require("values/keys")
local limits = require("values/limits")
local numbers = require("values/numbers")

local working_copy = {}

-- The working copy, or nil where the instrument is not defined.
function working_copy.open(book_key)
  local record = instrument_record.load(book_key)
  if not record then
    return nil
  end
  return working_copy.from(record)
end

-- What every working copy begins with, and few calls change.
local beginning = {
  trailing_touched = false,
  trailing_counts = false,
  rules_changed = false,
  order_lists = false,
  expiring = false,
  canceling = false,
  timers = false,
  stp_groups = false,
  is_spent = false,
  has_icebergs = false,
  rising = false,
  falling = false,
  dormant = false,
  paused = false,
  memory = false,
  stored_counts = false,
  epoch_changed = false,
  expired_count = 0,
  timer_cancel_count = 0,
}
local beginning_of_all = { __index = beginning }

-- The working copy around an instrument record (a new instrument is not in Redis yet).
function working_copy.from(record)
  local names, extended = keys.names(record.key), record.extended
  local b = setmetatable({
    instrument = record,
    key = record.key,
    names = names,
    sequence = record.sequence,
    call_sequence = record.sequence + 1,
    records = {},
    orders = {},
    touched_orders = {},
    client_orders = {},
    checked_keys = {},
    last_order_id_before = record.last_order_id,
    lots_safe = math.floor(record.lots_max / (record.open_orders + limits.orders_per_call_max)),
    buy = queue.new(names.bids, names.bid_levels, -1),
    sell = queue.new(names.asks, names.ask_levels, 1),
    events = event_stream.new(),
    agenda = false,
    notes = false,
    breaker = false,
    candle = false,
    changed = false,
    fills_left = limits.fills_per_call_max,
    command_index = false,
    now_ms = false,
    timestamp_ms = false,
    sequence_text = false,
    stamp = false,
    report_end = false,
    last_report_end = false,
  }, beginning_of_all)
  if extended then
    b.has_icebergs = extended.iceberg_orders > 0
    b.agenda = trigger_queue.read(extended)
  end
  return b
end

-- An error reply where the keys of the orders do not hold as many as the counters say, else nil: a
-- key is missing (evicted, deleted), or the book is half written. For the beginning of a call that
-- may change the book; what is read here also shows that these keys have their types.
function working_copy.missing_key_error(b)
  local record, bids_key, asks_key = b.instrument, b.buy.key, b.sell.key
  local orders_key, extended = b.names.orders, record.extended
  local waiting = extended and extended.waiting_orders + extended.dormant_orders or 0
  local bids, asks = redis.call("ZCARD", bids_key), redis.call("ZCARD", asks_key)
  local orders, open = redis.call("HLEN", orders_key), record.open_orders
  if orders ~= open or bids + asks ~= open - waiting then
    return redis.error_reply("DAMAGED orders of the book are missing: run verify_book")
  end
  b.buy.exhausted, b.sell.exhausted = bids == 0, asks == 0
  local checked = b.checked_keys
  checked[b.key], checked[bids_key], checked[asks_key], checked[orders_key] = true, true, true, true
  return nil
end

-- An error reply where the stream of events is missing, else nil: for every tick, so that damage is
-- told though nobody trades.
function working_copy.missing_stream_error(b)
  if redis.call("EXISTS", b.names.events) == 1 then
    return nil
  end
  return redis.error_reply("DAMAGED the stream events is missing: run verify_book")
end

beginning.cancels_left = limits.cancels_per_call_max
beginning.triggers_left = limits.triggers_per_call_max
beginning.quotes_left = limits.quotes_per_call_max
beginning.trails_left = limits.trails_per_call_max
beginning.expiries_left = limits.expiries_per_call_max
beginning.timer_cancels_left = limits.timer_cancels_per_call_max

-- One book of a call goes on with what another has left of what the call may do.
function working_copy.share_limits(from, b)
  b.fills_left, b.cancels_left = from.fills_left, from.cancels_left
  b.triggers_left, b.trails_left = from.triggers_left, from.trails_left
  b.expiries_left, b.timer_cancels_left = from.expiries_left, from.timer_cancels_left
end

-- Redis' clock in milliseconds.
function working_copy.clock_ms()
  local time = redis.call("TIME")
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- Sets the time of the call, the clock's where none is given: everything a call does happens at one
-- time. `b.timestamp_ms` and `b.sequence_text` are text, `b.stamp` the end of every reply,
-- `b.report_end` that of every report but the last of a message.
function working_copy.stamp(b, now_ms)
  b.now_ms = now_ms or working_copy.clock_ms()
  b.timestamp_ms = numbers.integer_text(b.now_ms)
  b.sequence_text = numbers.integer_text(b.call_sequence)
  local time = ',"timestamp_ms":' .. b.timestamp_ms .. "}"
  b.stamp = ',"sequence":' .. b.sequence_text .. time
  b.report_end, b.last_report_end = time .. ",", time .. "]}"
end

-- The sequence of the book as the command just run leaves it.
function working_copy.current_sequence(b)
  return b.changed and b.call_sequence or b.sequence
end

return working_copy
