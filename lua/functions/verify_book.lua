-- Proof that a stored book is whole: every invariant that the engine keeps, checked from the keys
-- alone.
--
-- Each violation has a name that says which promise is broken. The walk over the orders also
-- folds them, in queue order, into state_hash: equal books have equal hashes, whatever history
-- made them.

local candles = require("market_data/candles")
local instrument_json = require("market_data/instrument_json")
local order_record = require("records/order_record")
local keys = require("values/keys")
local numbers = require("values/numbers")

local verify_book = {}

local chunk_length = 500
local violations_max = 20

local function violate(walk, name, detail)
  if #walk.violations < violations_max then
    walk.violations[#walk.violations + 1] = { name = name, detail = detail }
  end
end

local function add_to(totals, name, amount)
  totals[name] = (totals[name] or 0) + amount
end

-- One queue member against its order record.
local function check_order(walk, side, member, score, text)
  local order_id = order_record.id_of_member(member)
  local order = text and order_record.parse(order_id, text)
  if not order then
    return violate(walk, "ORPHAN_QUEUE_MEMBER", "order " .. order_id .. " has no record")
  end
  if
    order_record.member(order.priority, order_id) ~= member
    or order_record.queue_name(order) ~= side.name
    or (order_record.queue_price(order) or 0) * side.sign ~= tonumber(score)
  then
    violate(walk, "QUEUE_MISMATCH", "order " .. order_id .. " does not queue as its record says")
  end
  if order.remaining < 1 or order.remaining > order.quantity then
    violate(walk, "INVALID_REMAINING", "order " .. order_id .. " has no valid remaining_quantity")
  end
  local instrument = walk.instrument
  local is_late = tonumber(order_id) > instrument.last_order_id
    or order.priority > instrument.last_priority
  if is_late or (side.levels and order_record.shown(order) > instrument.largest_order_lots) then
    violate(walk, "COUNTER_BEHIND", "order " .. order_id .. " is beyond the book's counters")
  end
  if order_record.shown(order) < 1 or order_record.shown(order) > order.remaining then
    violate(walk, "INVALID_SLICE", "order " .. order_id .. " shows what it has not")
  end
  if side.levels then
    add_to(side.levels, numbers.integer_text(order.price or 0), order_record.shown(order))
  end
  add_to(walk.orders_by_account, order.account, 1)
  walk.orders = walk.orders + 1
  return order
end

-- Whether a key is there with this type, or not there. Everything else here relies on it.
local function check_type(walk, key, wanted)
  local found = redis.call("TYPE", key).ok
  if found ~= wanted and found ~= "none" then
    violate(walk, "WRONG_KEY_TYPE", "the key " .. key .. " is a " .. found)
    return false
  end
  return true
end

-- Each order must be found through its account and through its client_order_id.
local function check_indexes(walk, open)
  for _, order in ipairs(open) do
    local account_key = keys.account_orders(walk.instrument.key, order.account)
    if walk.account_keys[account_key] == nil then
      walk.account_keys[account_key] = check_type(walk, account_key, "set")
    end
    if not walk.account_keys[account_key] then
      return
    end
    if redis.call("SISMEMBER", account_key, order.order_id) == 0 then
      violate(walk, "ACCOUNT_INDEX_MISMATCH", "order " .. order.order_id .. " is not its account's")
    end
    if order.client_order_id then
      walk.client_orders = walk.client_orders + 1
      local name = order.account .. " " .. order.client_order_id
      local order_id = redis.call("HGET", keys.client_orders(walk.instrument.key), name)
      if order_id ~= order.order_id then
        local detail = "order " .. order.order_id .. " is not found by its client_order_id"
        violate(walk, "CLIENT_INDEX_MISMATCH", detail)
      end
    end
  end
end

-- An order placed with a session must be found through it.
local function check_session(walk, order)
  local session_key =
    keys.session_orders(walk.instrument.key, order.account, order.attributes.session)
  local found = walk.sessions[session_key]
  if not found then
    found = { count = 0, is_set = check_type(walk, session_key, "set") }
    walk.sessions[session_key] = found
  end
  found.count = found.count + 1
  if found.is_set and redis.call("SISMEMBER", session_key, order.order_id) == 0 then
    violate(walk, "SESSION_INDEX_MISMATCH", "order " .. order.order_id .. " is not its session's")
  end
end

local function find_word(text, word)
  return string.find(" " .. text .. " ", " " .. word .. " ", 1, true)
end

-- A trailing stop must be found by its reference.
local function check_trailing(walk, order)
  if not order.attributes.trailing_offset then
    return
  end
  walk.trailing = walk.trailing + 1
  local score =
    redis.call("ZSCORE", keys.trailing_stops(walk.instrument.key, order.side), order.order_id)
  if not score or tonumber(score) ~= order.attributes.reference_price then
    violate(walk, "STOPS_MISMATCH", "order " .. order.order_id .. " is not found by its reference")
  end
end

-- A quote must be found through its account.
local function check_quote(walk, order)
  local quotes_key = keys.account_quotes(walk.instrument.key, order.account)
  if walk.quotes_by_key[quotes_key] == nil then
    walk.quotes_by_key[quotes_key] = check_type(walk, quotes_key, "set") and 0
  end
  if not walk.quotes_by_key[quotes_key] then
    return
  end
  add_to(walk.quotes_by_key, quotes_key, 1)
  if redis.call("SISMEMBER", quotes_key, order.order_id) == 0 then
    violate(
      walk,
      "QUOTE_INDEX_MISMATCH",
      "order " .. order.order_id .. " is not its account's quote"
    )
  end
end

-- An order that waits is counted, and found by what it waits for. One that is paused stands on the
-- trigger queue: else nothing would ever go on with it.
local function check_waiting(walk, order)
  local waits = order.attributes.waits
  if waits == "dormant" then
    walk.dormant = walk.dormant + 1
  elseif waits then
    walk.waiting = walk.waiting + 1
  end
  if order_record.is_triggerable(waits) then
    check_trailing(walk, order)
  end
  local items = walk.instrument.features and walk.instrument.features.agenda or ""
  if waits == "paused" and not find_word(items, "@" .. order.order_id) then
    violate(
      walk,
      "STOPS_MISMATCH",
      "order " .. order.order_id .. " is paused, and nothing resumes it"
    )
  end
end

-- An order that expires must be found by when, and rare orders must be counted.
local function check_rare(walk, order)
  local attributes = order.attributes
  if attributes.quote then
    check_quote(walk, order)
  end
  if attributes.display_quantity then
    walk.icebergs = walk.icebergs + 1
  end
  if attributes.session then
    check_session(walk, order)
  end
  check_waiting(walk, order)
  if attributes.order_list_id then
    local id = numbers.integer_text(attributes.order_list_id)
    add_to(walk.listed, id, 1)
  end
  if not attributes.expire_time_ms then
    return
  end
  walk.expiring = walk.expiring + 1
  local member = order_record.padded(order.order_id)
  local score = redis.call("ZSCORE", keys.expiries(walk.instrument.key), member)
  if not score or tonumber(score) ~= attributes.expire_time_ms then
    violate(walk, "EXPIRY_MISMATCH", "order " .. order.order_id .. " does not expire when it says")
  end
end

local function hash_line(order)
  return table.concat({
    order.order_id,
    order.side,
    order.price and numbers.integer_text(order.price) or "-",
    numbers.integer_text(order.quantity),
    numbers.integer_text(order.remaining),
    order.account,
    order_record.client_order_id_text(order),
    order_record.flags(order),
  }, " ")
end

local function walk_chunk(walk, side, rows)
  local ids = {}
  for i = 1, #rows, 2 do
    ids[#ids + 1] = order_record.id_of_member(rows[i])
  end
  local texts = redis.call("HMGET", keys.orders(walk.instrument.key), unpack(ids))
  local open, lines = {}, { walk.hash }
  for i = 1, #ids do
    local order = check_order(walk, side, rows[i * 2 - 1], rows[i * 2], texts[i])
    if order then
      open[#open + 1] = order
      if order.attributes then
        check_rare(walk, order)
      end
      lines[#lines + 1] = hash_line(order)
    end
  end
  check_indexes(walk, open)
  walk.hash = redis.sha1hex(table.concat(lines, "\n"))
end

local function walk_side(walk, side)
  local from = 0
  repeat
    local rows = redis.call("ZRANGE", side.key, from, from + chunk_length - 1, "WITHSCORES")
    if from == 0 and rows[2] then
      side.best = tonumber(rows[2]) * side.sign
    end
    if #rows > 0 then
      walk_chunk(walk, side, rows)
    end
    from = from + chunk_length
  until #rows < chunk_length * 2
end

local function check_levels(walk, side)
  local stored = redis.call("HGETALL", keys.levels(side.key))
  for i = 1, #stored, 2 do
    local price, total = stored[i], tonumber(stored[i + 1])
    walk.levels = walk.levels + 1
    if not side.levels[price] then
      violate(walk, "ORPHAN_LEVEL", side.name .. " level " .. price .. " has no orders")
    elseif side.levels[price] ~= total then
      local detail = side.name .. " level " .. price .. " is not the sum of its orders"
      violate(walk, "LEVEL_QUANTITY_MISMATCH", detail)
    end
    side.levels[price] = nil
  end
  for price in pairs(side.levels) do
    violate(walk, "MISSING_LEVEL", side.name .. " level " .. price .. " has no total")
  end
end

local function check_counts(walk)
  local instrument = walk.instrument
  if redis.call("HLEN", keys.orders(instrument.key)) ~= walk.orders then
    violate(walk, "ORPHAN_ORDER", "there are order records that queue nowhere")
  end
  if instrument.open_orders ~= walk.orders then
    violate(walk, "OPEN_ORDERS_MISMATCH", "open_orders is not the number of open orders")
  end
  if redis.call("HLEN", keys.client_orders(instrument.key)) ~= walk.client_orders then
    violate(walk, "CLIENT_INDEX_MISMATCH", "there are client_order_ids of orders not open")
  end
  for account, count in pairs(walk.orders_by_account) do
    local account_key = keys.account_orders(instrument.key, account)
    if walk.account_keys[account_key] and redis.call("SCARD", account_key) ~= count then
      local detail = "account " .. account .. " lists orders that are not open"
      violate(walk, "ACCOUNT_INDEX_MISMATCH", detail)
    end
  end
end

local no_features = {
  gtd_orders = 0,
  iceberg_orders = 0,
  waiting_orders = 0,
  trailing_orders = 0,
  dormant_orders = 0,
  order_lists = 0,
  timers = 0,
}

local function check_timers(walk)
  local instrument = walk.instrument
  local features = instrument.features or no_features
  if redis.call("ZCARD", keys.timers(instrument.key)) ~= features.timers then
    violate(walk, "TIMERS_MISMATCH", "timers is not the number of timers")
  end
  for session_key, found in pairs(walk.sessions) do
    if found.is_set and redis.call("SCARD", session_key) ~= found.count then
      violate(walk, "SESSION_INDEX_MISMATCH", "a session lists orders that are not open")
    end
  end
end

local function check_rare_counts(walk)
  for quotes_key, count in pairs(walk.quotes_by_key) do
    if count and redis.call("SCARD", quotes_key) ~= count then
      violate(walk, "QUOTE_INDEX_MISMATCH", "the key " .. quotes_key .. " has quotes not open")
    end
  end
  local instrument = walk.instrument
  local features = instrument.features or no_features
  if redis.call("ZCARD", keys.expiries(instrument.key)) ~= walk.expiring then
    violate(walk, "EXPIRY_MISMATCH", "there are expiries of orders not open")
  end
  if features.gtd_orders ~= walk.expiring or features.iceberg_orders ~= walk.icebergs then
    violate(walk, "RARE_ORDERS_MISMATCH", "gtd_orders or iceberg_orders is not their number")
  end
  local trailing = 0
  for _, side in ipairs({ "buy", "sell" }) do
    trailing = trailing + redis.call("ZCARD", keys.trailing_stops(instrument.key, side))
  end
  if trailing ~= walk.trailing or features.trailing_orders ~= walk.trailing then
    violate(walk, "STOPS_MISMATCH", "there are references of orders that do not trail")
  end
  if features.waiting_orders ~= walk.waiting or features.dormant_orders ~= walk.dormant then
    violate(walk, "STOPS_MISMATCH", "waiting_orders or dormant_orders is not their number")
  end
end

-- An order list has open orders, and no order waits to be armed without one.
local function check_lists(walk)
  local instrument = walk.instrument
  local stored = redis.call("HGETALL", keys.order_lists(instrument.key))
  for i = 1, #stored, 2 do
    if not walk.listed[stored[i]] then
      violate(walk, "LISTS_MISMATCH", "order list " .. stored[i] .. " has lost its orders")
    end
  end
  local features = instrument.features or no_features
  if #stored / 2 ~= features.order_lists then
    violate(walk, "LISTS_MISMATCH", "order_lists is not the number of order lists")
  end
  if #stored == 0 and walk.dormant > 0 then
    violate(walk, "LISTS_MISMATCH", "orders wait to be armed by no list")
  end
end

-- A stream ahead of the book is a command broken off between its first write and its last.
local function check_streams(walk)
  local instrument = walk.instrument
  for _, stream in ipairs({ "events", "trades" }) do
    local rows = redis.call("XREVRANGE", keys[stream](instrument.key), "+", "-", "COUNT", 1)
    local last = rows[1] and tonumber(string.match(rows[1][1], "^%d+"))
    if last and last > instrument.sequence then
      violate(walk, "HALF_WRITTEN_COMMAND", "the stream " .. stream .. " is ahead of the book")
    end
    if last and last < instrument.sequence and stream == "events" then
      violate(walk, "LOST_EVENTS", "the stream events is behind the book")
    end
  end
end

local function result_json(walk)
  if #walk.violations == 0 then
    return string.format(
      '{"verified":true,"orders":%.0f,"levels":%.0f,"sequence":%.0f,"state_hash":"%s"}',
      walk.orders,
      walk.levels,
      walk.instrument.sequence,
      walk.hash
    )
  end
  local rows = {}
  for i, violation in ipairs(walk.violations) do
    rows[i] = cjson.encode(violation)
  end
  return string.format(
    '{"verified":false,"sequence":%.0f,"violations":[%s]}',
    walk.instrument.sequence,
    table.concat(rows, ",")
  )
end

local function check_types(walk)
  local wanted = keys.of_book(walk.instrument.key)
  for _, interval in ipairs(candles.intervals) do
    wanted.zset[#wanted.zset + 1] = keys.interval_candles(walk.instrument.key, interval)
  end
  for kind, names in pairs(wanted) do
    for _, name in ipairs(names) do
      check_type(walk, name, kind)
    end
  end
end

-- Keys that must be there, as the counters and the other keys say. An order queue and its levels
-- stand or fall together; a book has told its own definition, and its trades twice.
local function check_presence(walk, sides)
  local instrument = walk.instrument
  local needed = {
    [keys.events(instrument.key)] = instrument.sequence > 0,
    [keys.trades(instrument.key)] = instrument.last_price ~= nil,
    [keys.orders(instrument.key)] = instrument.open_orders > 0,
  }
  for _, side in ipairs(sides) do
    local levels_key = keys.levels(side.key)
    needed[side.key] = redis.call("HLEN", levels_key) > 0
    needed[levels_key] = redis.call("ZCARD", side.key) > 0
  end
  for key, is_needed in pairs(needed) do
    if is_needed and redis.call("EXISTS", key) == 0 then
      violate(walk, "MISSING_KEY", "the key " .. key .. " is missing")
    end
  end
end

local function header(instrument)
  return table.concat({
    instrument_json.text(instrument, instrument.sequence),
    numbers.integer_text(instrument.last_order_id),
    numbers.integer_text(instrument.last_trade_id),
  }, "\n")
end

-- The verdict on a book as JSON.
function verify_book.json(instrument)
  local walk = {
    instrument = instrument,
    violations = {},
    orders = 0,
    levels = 0,
    client_orders = 0,
    expiring = 0,
    icebergs = 0,
    waiting = 0,
    trailing = 0,
    dormant = 0,
    listed = {},
    orders_by_account = {},
    account_keys = {},
    quotes_by_key = {},
    sessions = {},
    hash = redis.sha1hex(header(instrument)),
  }
  local bids = { name = "buy", key = keys.bids(instrument.key), sign = -1, levels = {} }
  local asks = { name = "sell", key = keys.asks(instrument.key), sign = 1, levels = {} }
  check_types(walk)
  if #walk.violations > 0 then
    return result_json(walk)
  end
  check_presence(walk, { bids, asks })
  for _, side in ipairs({ bids, asks }) do
    walk_side(walk, side)
    check_levels(walk, side)
  end
  walk_side(walk, { name = "rising", key = keys.stops_rising(instrument.key), sign = 1 })
  walk_side(walk, { name = "falling", key = keys.stops_falling(instrument.key), sign = -1 })
  walk_side(walk, { name = "dormant", key = keys.dormant_orders(instrument.key), sign = 1 })
  walk_side(walk, { name = "paused", key = keys.paused_orders(instrument.key), sign = 1 })
  local may_cross = instrument.status == "auction"
  if bids.best and asks.best and bids.best >= asks.best and not may_cross then
    violate(walk, "CROSSED_BOOK", "the best bid is not below the best ask")
  end
  check_counts(walk)
  check_rare_counts(walk)
  check_lists(walk)
  check_timers(walk)
  check_streams(walk)
  return result_json(walk)
end

return verify_book
