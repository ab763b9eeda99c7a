-- The one writing of a call: the difference between the working copy and Redis, in a few calls with
-- many arguments each.
--
-- Everything is read and planned before the first write, and nothing can fail after it. Each write
-- that is planned is asked for first, whether Redis would accept it (acceptance.lua). The stream
-- entry is the first write and `state`, with the sequence, the last, so a write that was broken off
-- leaves the stream ahead of the book, and the book stands still until it is repaired. Only the
-- fields of the old layout are removed after it.

local levels = require("book/levels")
local orders = require("book/orders")
local queue = require("book/queue")
local timers = require("book/timers")
local candles = require("market_data/candles")
local event_stream = require("market_data/event_stream")
local trigger_queue = require("matching/trigger_queue")
local instrument_record = require("records/instrument_record")
local order_record = require("records/order_record")
local acceptance = require("server/acceptance")
local damage = require("server/damage")
local idempotency = require("transaction/idempotency")
local keys = require("values/keys")
local numbers = require("values/numbers")

local commit = {}

local arguments_max = 4000

local no_prices = {}

-- The prices of the levels a call changed, best first, for one side, whose totals are then what
-- they will be.
local function changed_levels(tx, side)
  local differences = rawget(side, "differences")
  if not differences then
    return no_prices
  end
  local changed, sign, totals = {}, side.sign, side.totals
  for price, difference in pairs(differences) do
    if difference ~= 0 then
      changed[#changed + 1] = price * sign
    end
  end
  if #changed > 1 then
    table.sort(changed)
  end
  for i = 1, #changed do
    changed[i] = changed[i] * sign
  end
  levels.read_totals(tx, side, changed)
  tx.checked_keys[side.levels_key] = true
  for i = 1, #changed do
    local price = changed[i]
    totals[price] = totals[price] + differences[price]
    if totals[price] < 0 then
      return damage.raise("a level has less than its orders")
    end
  end
  return changed
end

-- The plan of a call's writes: for each of these commands the arguments by key, then what comes
-- `later` in its order ({ command, key, arguments }). What takes away goes before what adds: a name
-- that one order gives up another may take. `refused` is an error reply where Redis would refuse
-- one of them. `entry` is what event_stream.entry gives, `state` the pairs of the book's own hash.
local write_commands = { "ZREM", "HDEL", "SREM", "ZADD", "HSET", "SADD" }

local function new_plan(tx)
  return {
    tx = tx,
    refused = nil,
    later = {},
    entry = false,
    state = false,
    ZREM = {},
    HDEL = {},
    SREM = {},
    ZADD = {},
    HSET = {},
    SADD = {},
  }
end

-- Asks whether Redis would accept a write. Nothing is planned without.
local function ask(plan, command, key)
  plan.refused = plan.refused or acceptance.error(command, key, plan.tx.checked_keys)
end

-- The arguments still to be written by one command to one key, as a list to be added to.
local function arguments_for(plan, command, key)
  local by_key = plan[command]
  local arguments = by_key[key]
  if not arguments then
    arguments = {}
    by_key[key] = arguments
    ask(plan, command, key)
  end
  return arguments
end

-- Gives what plans a write that comes after those: a function of command, key and arguments.
local function planner_of_later(plan)
  return function(command, key, arguments)
    plan.later[#plan.later + 1] = { command, key, arguments }
    ask(plan, command, key)
  end
end

local function plan_queue_write(tx, plan, order)
  local side = tx[order.side]
  if order.stored_priority then
    local removed = arguments_for(plan, "ZREM", side.key)
    removed[#removed + 1] = order_record.member(order.stored_priority, order.order_id)
  end
  if order.queued then
    local added = arguments_for(plan, "ZADD", side.key)
    added[#added + 1] = side.score_prefix
      .. instrument_record.ticks_text(tx.instrument, order.price)
    added[#added + 1] = order_record.member(order.priority, order.order_id)
  end
end

-- The same of an order that waits or did, for it may change queues.
local function plan_stop_write(tx, plan, order)
  local attributes = order.attributes
  local trailing_key = attributes.trailing_offset and keys.trailing_stops(tx.key, order.side)
  if order.stored_priority then
    local left = queue.of(tx, attributes.stored_waits or order.side)
    local removed = arguments_for(plan, "ZREM", left.key)
    removed[#removed + 1] = order_record.member(order.stored_priority, order.order_id)
  end
  if order.queued then
    local joined = queue.of(tx, order_record.queue_name(order))
    local added = arguments_for(plan, "ZADD", joined.key)
    added[#added + 1] = numbers.integer_text(order_record.queue_price(order) * joined.sign)
    added[#added + 1] = order_record.member(order.priority, order.order_id)
  end
  if trailing_key and order.queued and order_record.is_triggerable(attributes.waits) then
    local added = arguments_for(plan, "ZADD", trailing_key)
    added[#added + 1] = numbers.integer_text(attributes.reference_price)
    added[#added + 1] = order.order_id
  elseif trailing_key and order_record.is_triggerable(attributes.stored_waits) then
    local removed = arguments_for(plan, "ZREM", trailing_key)
    removed[#removed + 1] = order.order_id
  end
end

-- An order with optional attributes that became open, or ceased to be, by this call.
local function plan_attribute_writes(tx, plan, order)
  local attributes, change = order.attributes, order.queued and 1 or -1
  if attributes.session then
    local session_key = keys.session_orders(tx.key, order.account, attributes.session)
    local ids = arguments_for(plan, order.queued and "SADD" or "SREM", session_key)
    ids[#ids + 1] = order.order_id
  end
  if attributes.quote then
    local quotes_key = keys.account_quotes(tx.key, order.account)
    local ids = arguments_for(plan, order.queued and "SADD" or "SREM", quotes_key)
    ids[#ids + 1] = order.order_id
  end
  if attributes.display_quantity then
    local features = instrument_record.extend(tx.instrument)
    features.iceberg_orders = features.iceberg_orders + change
  end
  if not attributes.expire_time_ms then
    return
  end
  local features = instrument_record.extend(tx.instrument)
  features.gtd_orders = features.gtd_orders + change
  local expiries = arguments_for(plan, order.queued and "ZADD" or "ZREM", keys.expiries(tx.key))
  if order.queued then
    expiries[#expiries + 1] = numbers.integer_text(attributes.expire_time_ms)
  end
  expiries[#expiries + 1] = order_record.padded(order.order_id)
end

-- An order that became open, or ceased to be, by this call.
local function plan_index_write(tx, plan, order)
  local account_key = keys.account_orders(tx.key, order.account)
  local ids = arguments_for(plan, order.queued and "SADD" or "SREM", account_key)
  ids[#ids + 1] = order.order_id
  if order.attributes then
    plan_attribute_writes(tx, plan, order)
  end
  if not order.client_order_id then
    return
  end
  local clients_key = tx.names.client_orders
  local names = arguments_for(plan, order.queued and "HSET" or "HDEL", clients_key)
  names[#names + 1] = orders.client_name(order.account, order.client_order_id)
  if order.queued then
    names[#names + 1] = order.order_id
  end
end

-- Where an order stands, and where it stood.
local function plan_place_write(tx, plan, order)
  if order.attributes and (order.attributes.waits or order.attributes.stored_waits) then
    return plan_stop_write(tx, plan, order)
  end
  return plan_queue_write(tx, plan, order)
end

-- One pass over the touched orders sorts what is to be written by command and key.
local function plan_order_writes(tx, plan)
  local touched, records, gone = tx.touched_orders, nil, nil
  for i = 1, #touched do
    local order = touched[i]
    local queued, stored = order.queued, order.stored_priority
    if queued then
      records = records or arguments_for(plan, "HSET", tx.names.orders)
      records[#records + 1] = order.order_id
      records[#records + 1] = order_record.record(order, tx.instrument)
      if stored ~= order.priority then
        plan_place_write(tx, plan, order)
      end
      if not stored then
        plan_index_write(tx, plan, order)
      end
    elseif stored then
      gone = gone or arguments_for(plan, "HDEL", tx.names.orders)
      gone[#gone + 1] = order.order_id
      plan_place_write(tx, plan, order)
      plan_index_write(tx, plan, order)
    end
  end
end

local function plan_list_writes(tx, plan)
  local lists_key = keys.order_lists(tx.key)
  for id, text in pairs(tx.order_lists.changed) do
    local arguments = arguments_for(plan, text and "HSET" or "HDEL", lists_key)
    arguments[#arguments + 1] = id
    if text then
      arguments[#arguments + 1] = text
    end
  end
end

local function plan_level_writes(tx, side, prices, plan)
  for _, price in ipairs(prices) do
    local total = side.totals[price]
    local name = instrument_record.ticks_text(tx.instrument, price)
    if total == 0 then
      local gone = arguments_for(plan, "HDEL", side.levels_key)
      gone[#gone + 1] = name
    else
      local totals = arguments_for(plan, "HSET", side.levels_key)
      totals[#totals + 1] = name
      totals[#totals + 1] = instrument_record.lots_text(tx.instrument, total)
    end
  end
end

local function plan_candle_writes(tx, plan)
  candles.plan(tx, function(command, key, name, value)
    local arguments = arguments_for(plan, command, key)
    arguments[#arguments + 1] = name
    arguments[#arguments + 1] = value
  end)
end

-- The counters of orders that few books have.
local order_counters = {
  "gtd_orders",
  "iceberg_orders",
  "waiting_orders",
  "trailing_orders",
  "dormant_orders",
  "order_lists",
}

-- What changed in the book's own hash, as field, value, …; the counters last.
local function state_pairs(tx)
  local instrument, texts = tx.instrument, {}
  if tx.rules_changed then
    texts = instrument_record.rule_pairs(instrument)
  elseif tx.epoch_changed or instrument.has_old_layout then
    texts = { "rules", instrument_record.rules_text(instrument) }
  end
  if instrument.open_orders == 0 then
    instrument.largest_order_lots = 0
  end
  local features = instrument.features
  if features then
    texts[#texts + 1] = "extended"
    texts[#texts + 1] = "1"
    for i = 1, #order_counters do
      local name = order_counters[i]
      texts[#texts + 1] = name
      texts[#texts + 1] = numbers.integer_text(features[name])
    end
    if tx.breaker then
      texts[#texts + 1] = "breaker_reference"
      texts[#texts + 1] = features.breaker_reference
      texts[#texts + 1] = "window_start_ms"
      texts[#texts + 1] = features.window_start_ms
    end
    if features.uncrossing ~= "" then
      texts[#texts + 1] = "uncrossing"
      texts[#texts + 1] = features.uncrossing
    end
    texts[#texts + 1] = "agenda"
    texts[#texts + 1] = trigger_queue.text(tx)
  end
  texts[#texts + 1] = "state"
  texts[#texts + 1] = instrument_record.state_text(instrument, tx.sequence_text)
  return texts
end

-- Plans what the call's parts write besides orders and levels.
local function plan_later(tx, plan)
  local later = planner_of_later(plan)
  if plan.entry then
    event_stream.plan_trades(tx, plan.entry, later)
  end
  idempotency.plan_writes(tx, later)
  if tx.candle then
    candles.plan_trims(tx, later)
  end
  if tx.timers then
    timers.plan_writes(tx, later)
  end
end

-- The plan of a call that has set timers and changed nothing else. That has no entry in the stream,
-- so whether the book is damaged is asked here. Returns as commit.plan.
local function plan_timers_alone(tx)
  if not tx.timers or not timers.are_changed(tx) then
    return nil
  end
  local refused, plan = event_stream.events_refusal(tx), new_plan(tx)
  plan_later(tx, plan)
  refused = refused or plan.refused
  return not refused and plan or nil, refused
end

-- Everything that is read before the working copy is written: the plan of its writes; or nil, and
-- an error reply where Redis would refuse one of them. nil alone where nothing has changed.
function commit.plan(tx)
  if not tx.changed then
    return plan_timers_alone(tx)
  end
  local plan = new_plan(tx)
  local bid_prices, ask_prices = changed_levels(tx, tx.buy), changed_levels(tx, tx.sell)
  plan_order_writes(tx, plan)
  if tx.order_lists then
    plan_list_writes(tx, plan)
  end
  plan_level_writes(tx, tx.buy, bid_prices, plan)
  plan_level_writes(tx, tx.sell, ask_prices, plan)
  if tx.candle then
    plan_candle_writes(tx, plan)
  end
  plan.entry = event_stream.entry(tx, bid_prices, ask_prices)
  if tx.memory or tx.candle or tx.timers then
    plan_later(tx, plan)
  end
  plan.state = state_pairs(tx)
  ask(plan, "HSET", tx.key)
  if tx.instrument.has_old_layout then
    ask(plan, "HDEL", tx.key)
  end
  local refused = plan.refused or event_stream.right_error(tx) or event_stream.trades_refusal(tx)
  if refused then
    return nil, refused
  end
  return plan
end

local function call_in_chunks(command, key, arguments)
  local count = #arguments
  if count <= arguments_max then
    return redis.call(command, key, unpack(arguments))
  end
  for from = 1, count, arguments_max do
    redis.call(command, key, unpack(arguments, from, math.min(from + arguments_max - 1, count)))
  end
end

-- Writes as planned. Returns nil, or an error reply where the event stream refuses the entry: then
-- nothing was written.
function commit.write(tx, plan)
  local refused = plan.entry and event_stream.append(tx, plan.entry)
  if refused then
    return refused
  end
  for i = 1, #write_commands do
    local command = write_commands[i]
    for key, arguments in pairs(plan[command]) do
      call_in_chunks(command, key, arguments)
    end
  end
  for _, write in ipairs(plan.later) do
    call_in_chunks(write[1], write[2], write[3])
  end
  if plan.state then
    call_in_chunks("HSET", tx.key, plan.state)
  end
  if plan.state and tx.instrument.has_old_layout then
    call_in_chunks("HDEL", tx.key, instrument_record.old_fields())
  end
  return nil
end

return commit
