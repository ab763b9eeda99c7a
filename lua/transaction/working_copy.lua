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
  local instrument = instrument_record.load(book_key)
  if not instrument then
    return nil
  end
  return working_copy.from(instrument)
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
  budget_exhausted = false,
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
function working_copy.from(instrument)
  local names, features = keys.names(instrument.key), instrument.features
  local tx = setmetatable({
    instrument = instrument,
    key = instrument.key,
    names = names,
    sequence = instrument.sequence,
    call_sequence = instrument.sequence + 1,
    records = {},
    orders = {},
    touched_orders = {},
    client_orders = {},
    checked_keys = {},
    last_order_id_before = instrument.last_order_id,
    lots_safe = math.floor(
      instrument.lots_max / (instrument.open_orders + limits.orders_per_call_max)
    ),
    buy = queue.new(names.bids, names.bid_levels, -1),
    sell = queue.new(names.asks, names.ask_levels, 1),
    events = event_stream.new(),
    trigger_queue = false,
    list_events = false,
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
  if features then
    tx.has_icebergs = features.iceberg_orders > 0
    tx.trigger_queue = trigger_queue.read(features)
  end
  return tx
end

-- An error reply where the keys of the orders do not hold as many as the counters say, else nil: a
-- key is missing (evicted, deleted), or the book is half written. For the beginning of a call that
-- may change the book; what is read here also shows that these keys have their types.
function working_copy.missing_key_error(tx)
  local instrument, bids_key, asks_key = tx.instrument, tx.buy.key, tx.sell.key
  local orders_key, features = tx.names.orders, instrument.features
  local waiting = features and features.waiting_orders + features.dormant_orders or 0
  local bids, asks = redis.call("ZCARD", bids_key), redis.call("ZCARD", asks_key)
  local orders, open = redis.call("HLEN", orders_key), instrument.open_orders
  if orders ~= open or bids + asks ~= open - waiting then
    return redis.error_reply("DAMAGED orders of the book are missing: run verify_book")
  end
  tx.buy.exhausted, tx.sell.exhausted = bids == 0, asks == 0
  local checked = tx.checked_keys
  checked[tx.key], checked[bids_key], checked[asks_key], checked[orders_key] =
    true, true, true, true
  return nil
end

-- Returns an error reply if the stream of events is missing, else nil. Every tick asks, so that
-- damage shows although nothing is traded.
function working_copy.missing_stream_error(tx)
  if redis.call("EXISTS", tx.names.events) == 1 then
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
function working_copy.share_limits(from, tx)
  tx.fills_left, tx.cancels_left = from.fills_left, from.cancels_left
  tx.triggers_left, tx.trails_left = from.triggers_left, from.trails_left
  tx.expiries_left, tx.timer_cancels_left = from.expiries_left, from.timer_cancels_left
end

-- Redis' clock in milliseconds.
function working_copy.clock_ms()
  local time = redis.call("TIME")
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- Sets the time of the call, the clock's where none is given: everything a call does happens at one
-- time. `tx.timestamp_ms` and `tx.sequence_text` are text, `tx.stamp` the end of every reply,
-- `tx.report_end` that of every report but the last of a message.
function working_copy.set_time(tx, now_ms)
  tx.now_ms = now_ms or working_copy.clock_ms()
  tx.timestamp_ms = numbers.integer_text(tx.now_ms)
  tx.sequence_text = numbers.integer_text(tx.call_sequence)
  local time = ',"timestamp_ms":' .. tx.timestamp_ms .. "}"
  tx.stamp = ',"sequence":' .. tx.sequence_text .. time
  tx.report_end, tx.last_report_end = time .. ",", time .. "]}"
end

-- The sequence of the book as the command just run leaves it.
function working_copy.current_sequence(tx)
  return tx.changed and tx.call_sequence or tx.sequence
end

return working_copy
