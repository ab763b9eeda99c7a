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
local function changed_levels(b, side)
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
  levels.read_totals(b, side, changed)
  b.checked_keys[side.levels_key] = true
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

local function new_plan(b)
  return {
    b = b,
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
  plan.refused = plan.refused or acceptance.error(command, key, plan.b.checked_keys)
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

local function plan_queue_write(b, plan, o)
  local side = b[o.side]
  if o.stored_priority then
    local removed = arguments_for(plan, "ZREM", side.key)
    removed[#removed + 1] = order_record.member(o.stored_priority, o.order_id)
  end
  if o.queued then
    local added = arguments_for(plan, "ZADD", side.key)
    added[#added + 1] = side.score_prefix .. instrument_record.ticks_text(b.instrument, o.price)
    added[#added + 1] = order_record.member(o.priority, o.order_id)
  end
end

-- The same of an order that waits or did, for it may change queues.
local function plan_stop_write(b, plan, o)
  local extras = o.extras
  local trailing_key = extras.trailing_offset and keys.trailing_stops(b.key, o.side)
  if o.stored_priority then
    local left = queue.of(b, extras.stored_waits or o.side)
    local removed = arguments_for(plan, "ZREM", left.key)
    removed[#removed + 1] = order_record.member(o.stored_priority, o.order_id)
  end
  if o.queued then
    local joined = queue.of(b, order_record.queue_name(o))
    local added = arguments_for(plan, "ZADD", joined.key)
    added[#added + 1] = numbers.integer_text(order_record.queue_price(o) * joined.sign)
    added[#added + 1] = order_record.member(o.priority, o.order_id)
  end
  if trailing_key and o.queued and order_record.is_triggerable(extras.waits) then
    local added = arguments_for(plan, "ZADD", trailing_key)
    added[#added + 1] = numbers.integer_text(extras.reference_price)
    added[#added + 1] = o.order_id
  elseif trailing_key and order_record.is_triggerable(extras.stored_waits) then
    local removed = arguments_for(plan, "ZREM", trailing_key)
    removed[#removed + 1] = o.order_id
  end
end

-- An order with rare terms that became open, or ceased to be, by this call.
local function plan_extras_write(b, plan, o)
  local extras, change = o.extras, o.queued and 1 or -1
  if extras.session then
    local session_key = keys.session_orders(b.key, o.account, extras.session)
    local ids = arguments_for(plan, o.queued and "SADD" or "SREM", session_key)
    ids[#ids + 1] = o.order_id
  end
  if extras.quote then
    local quotes_key = keys.account_quotes(b.key, o.account)
    local ids = arguments_for(plan, o.queued and "SADD" or "SREM", quotes_key)
    ids[#ids + 1] = o.order_id
  end
  if extras.display_quantity then
    local extended = instrument_record.extend(b.instrument)
    extended.iceberg_orders = extended.iceberg_orders + change
  end
  if not extras.expire_time_ms then
    return
  end
  local extended = instrument_record.extend(b.instrument)
  extended.gtd_orders = extended.gtd_orders + change
  local expiries = arguments_for(plan, o.queued and "ZADD" or "ZREM", keys.expiries(b.key))
  if o.queued then
    expiries[#expiries + 1] = numbers.integer_text(extras.expire_time_ms)
  end
  expiries[#expiries + 1] = order_record.padded(o.order_id)
end

-- An order that became open, or ceased to be, by this call.
local function plan_index_write(b, plan, o)
  local account_key = keys.account_orders(b.key, o.account)
  local ids = arguments_for(plan, o.queued and "SADD" or "SREM", account_key)
  ids[#ids + 1] = o.order_id
  if o.extras then
    plan_extras_write(b, plan, o)
  end
  if not o.client_order_id then
    return
  end
  local clients_key = b.names.client_orders
  local names = arguments_for(plan, o.queued and "HSET" or "HDEL", clients_key)
  names[#names + 1] = orders.client_name(o.account, o.client_order_id)
  if o.queued then
    names[#names + 1] = o.order_id
  end
end

-- Where an order stands, and where it stood.
local function plan_place_write(b, plan, o)
  if o.extras and (o.extras.waits or o.extras.stored_waits) then
    return plan_stop_write(b, plan, o)
  end
  return plan_queue_write(b, plan, o)
end

-- One pass over the touched orders sorts what is to be written by command and key.
local function plan_order_writes(b, plan)
  local touched, records, gone = b.touched_orders, nil, nil
  for i = 1, #touched do
    local o = touched[i]
    local queued, stored = o.queued, o.stored_priority
    if queued then
      records = records or arguments_for(plan, "HSET", b.names.orders)
      records[#records + 1] = o.order_id
      records[#records + 1] = order_record.record(o, b.instrument)
      if stored ~= o.priority then
        plan_place_write(b, plan, o)
      end
      if not stored then
        plan_index_write(b, plan, o)
      end
    elseif stored then
      gone = gone or arguments_for(plan, "HDEL", b.names.orders)
      gone[#gone + 1] = o.order_id
      plan_place_write(b, plan, o)
      plan_index_write(b, plan, o)
    end
  end
end

local function plan_list_writes(b, plan)
  local lists_key = keys.order_lists(b.key)
  for id, text in pairs(b.order_lists.changed) do
    local arguments = arguments_for(plan, text and "HSET" or "HDEL", lists_key)
    arguments[#arguments + 1] = id
    if text then
      arguments[#arguments + 1] = text
    end
  end
end

local function plan_level_writes(b, side, prices, plan)
  for _, price in ipairs(prices) do
    local total = side.totals[price]
    local name = instrument_record.ticks_text(b.instrument, price)
    if total == 0 then
      local gone = arguments_for(plan, "HDEL", side.levels_key)
      gone[#gone + 1] = name
    else
      local totals = arguments_for(plan, "HSET", side.levels_key)
      totals[#totals + 1] = name
      totals[#totals + 1] = instrument_record.lots_text(b.instrument, total)
    end
  end
end

local function plan_candle_writes(b, plan)
  candles.plan(b, function(command, key, name, value)
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
local function state_pairs(b)
  local record, texts = b.instrument, {}
  if b.rules_changed then
    texts = instrument_record.rule_pairs(record)
  elseif b.epoch_changed or record.has_old_layout then
    texts = { "rules", instrument_record.rules_text(record) }
  end
  if record.open_orders == 0 then
    record.largest_order_lots = 0
  end
  local extended = record.extended
  if extended then
    texts[#texts + 1] = "extended"
    texts[#texts + 1] = "1"
    for i = 1, #order_counters do
      local name = order_counters[i]
      texts[#texts + 1] = name
      texts[#texts + 1] = numbers.integer_text(extended[name])
    end
    if b.breaker then
      texts[#texts + 1] = "breaker_reference"
      texts[#texts + 1] = extended.breaker_reference
      texts[#texts + 1] = "window_start_ms"
      texts[#texts + 1] = extended.window_start_ms
    end
    if extended.uncrossing ~= "" then
      texts[#texts + 1] = "uncrossing"
      texts[#texts + 1] = extended.uncrossing
    end
    texts[#texts + 1] = "agenda"
    texts[#texts + 1] = trigger_queue.text(b)
  end
  texts[#texts + 1] = "state"
  texts[#texts + 1] = instrument_record.state_text(record, b.sequence_text)
  return texts
end

-- Plans what the call's parts write besides orders and levels.
local function plan_later(b, plan)
  local later = planner_of_later(plan)
  if plan.entry then
    event_stream.plan_trades(b, plan.entry, later)
  end
  idempotency.plan_writes(b, later)
  if b.candle then
    candles.plan_trims(b, later)
  end
  if b.timers then
    timers.plan_writes(b, later)
  end
end

-- The plan of a call that has set timers and changed nothing else. That has no entry in the stream,
-- so whether the book is damaged is asked here. Returns as commit.plan.
local function plan_timers_alone(b)
  if not b.timers or not timers.are_changed(b) then
    return nil
  end
  local refused, plan = event_stream.events_refusal(b), new_plan(b)
  plan_later(b, plan)
  refused = refused or plan.refused
  return not refused and plan or nil, refused
end

-- Everything that is read before the working copy is written: the plan of its writes; or nil, and
-- an error reply where Redis would refuse one of them. nil alone where nothing has changed.
function commit.plan(b)
  if not b.changed then
    return plan_timers_alone(b)
  end
  local plan = new_plan(b)
  local bid_prices, ask_prices = changed_levels(b, b.buy), changed_levels(b, b.sell)
  plan_order_writes(b, plan)
  if b.order_lists then
    plan_list_writes(b, plan)
  end
  plan_level_writes(b, b.buy, bid_prices, plan)
  plan_level_writes(b, b.sell, ask_prices, plan)
  if b.candle then
    plan_candle_writes(b, plan)
  end
  plan.entry = event_stream.entry(b, bid_prices, ask_prices)
  if b.memory or b.candle or b.timers then
    plan_later(b, plan)
  end
  plan.state = state_pairs(b)
  ask(plan, "HSET", b.key)
  if b.instrument.has_old_layout then
    ask(plan, "HDEL", b.key)
  end
  local refused = plan.refused or event_stream.right_error(b) or event_stream.trades_refusal(b)
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
function commit.carry_out(b, plan)
  local refused = plan.entry and event_stream.append(b, plan.entry)
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
    call_in_chunks("HSET", b.key, plan.state)
  end
  if plan.state and b.instrument.has_old_layout then
    call_in_chunks("HDEL", b.key, instrument_record.old_fields())
  end
  return nil
end

return commit
