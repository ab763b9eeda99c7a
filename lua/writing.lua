-- The one writing of a call: the difference between the working copy and Redis, in a few calls with
-- many arguments each.
--
-- Everything is read and planned before the first write, and nothing can fail after it. The stream
-- entry is the first write and the counters with `sequence` are the last, so a write that was
-- broken off leaves the stream ahead of the book, and the book stands still until it is repaired.

local acceptance = require("acceptance")
local book = require("book")
local damage = require("damage")
local events = require("events")
local instrument = require("instrument")
local keys = require("keys")
local memory = require("memory")
local numbers = require("numbers")
local order = require("order")
local statistics = require("statistics")
local timers = require("timers")

local writing = {}

local arguments_max = 4000

-- The prices of the levels a call changed, best first, for one side, whose totals are then what
-- they will be.
local function changed_levels(b, side)
  local changed, sign, differences, totals = {}, side.sign, side.differences, side.totals
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
  book.read_totals(b, side, changed)
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

-- The arguments still to be written by one command to one key, as a list to be added to.
local function arguments_for(plan, command, key)
  local by_key = plan[command]
  local arguments = by_key[key]
  if not arguments then
    arguments = {}
    by_key[key] = arguments
  end
  return arguments
end

local function plan_queue_write(b, plan, o)
  local side = b[o.side]
  if o.stored_priority then
    local removed = arguments_for(plan, "ZREM", side.key)
    removed[#removed + 1] = order.member(o.stored_priority, o.order_id)
  end
  if o.queued then
    local added = arguments_for(plan, "ZADD", side.key)
    added[#added + 1] = side.score_prefix .. instrument.ticks_text(b.instrument, o.price)
    added[#added + 1] = order.member(o.priority, o.order_id)
  end
end

-- The same of an order that waits or did, for it may change queues.
local function plan_stop_write(b, plan, o)
  local extras = o.extras
  local trailing_key = extras.trailing_offset and keys.trailing_stops(b.key, o.side)
  if o.stored_priority then
    local left = book.queue_side(b, extras.stored_waits or o.side)
    local removed = arguments_for(plan, "ZREM", left.key)
    removed[#removed + 1] = order.member(o.stored_priority, o.order_id)
  end
  if o.queued then
    local joined = book.queue_side(b, order.queue_name(o))
    local added = arguments_for(plan, "ZADD", joined.key)
    added[#added + 1] = numbers.integer_text(order.queue_price(o) * joined.sign)
    added[#added + 1] = order.member(o.priority, o.order_id)
  end
  if trailing_key and o.queued and order.is_triggerable(extras.waits) then
    local added = arguments_for(plan, "ZADD", trailing_key)
    added[#added + 1] = numbers.integer_text(extras.reference_price)
    added[#added + 1] = o.order_id
  elseif trailing_key and order.is_triggerable(extras.stored_waits) then
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
    local extended = instrument.extend(b.instrument)
    extended.iceberg_orders = extended.iceberg_orders + change
  end
  if not extras.expire_time_ms then
    return
  end
  local extended = instrument.extend(b.instrument)
  extended.gtd_orders = extended.gtd_orders + change
  local expiries = arguments_for(plan, o.queued and "ZADD" or "ZREM", keys.expiries(b.key))
  if o.queued then
    expiries[#expiries + 1] = numbers.integer_text(extras.expire_time_ms)
  end
  expiries[#expiries + 1] = order.padded(o.order_id)
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
  local clients_key = keys.client_orders(b.key)
  local names = arguments_for(plan, o.queued and "HSET" or "HDEL", clients_key)
  names[#names + 1] = book.client_name(o.account, o.client_order_id)
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
  local orders_key = keys.orders(b.key)
  local records = arguments_for(plan, "HSET", orders_key)
  local gone = arguments_for(plan, "HDEL", orders_key)
  local touched = b.touched_orders
  for i = 1, #touched do
    local o = touched[i]
    local queued, stored = o.queued, o.stored_priority
    if queued then
      records[#records + 1] = o.order_id
      records[#records + 1] = order.record(o, b.instrument)
      if stored ~= o.priority then
        plan_place_write(b, plan, o)
      end
      if not stored then
        plan_index_write(b, plan, o)
      end
    elseif stored then
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
    local name = instrument.ticks_text(b.instrument, price)
    if total == 0 then
      local gone = arguments_for(plan, "HDEL", side.levels_key)
      gone[#gone + 1] = name
    else
      local totals = arguments_for(plan, "HSET", side.levels_key)
      totals[#totals + 1] = name
      totals[#totals + 1] = instrument.lots_text(b.instrument, total)
    end
  end
end

local function plan_candle_writes(b, plan)
  statistics.plan(b, function(command, key, name, value)
    local arguments = arguments_for(plan, command, key)
    arguments[#arguments + 1] = name
    arguments[#arguments + 1] = value
  end)
end

local function call_in_chunks(command, key, arguments)
  for from = 1, #arguments, arguments_max do
    local to = math.min(from + arguments_max - 1, #arguments)
    redis.call(command, key, unpack(arguments, from, to))
  end
end

local function add_counter(texts, name, number, before)
  if number ~= before then
    texts[#texts + 1] = name
    texts[#texts + 1] = numbers.integer_text(number)
  end
end

-- The agenda as it is stored.
local function agenda_text(b)
  local agenda, texts = b.agenda, {}
  for i = agenda and agenda.first or 1, agenda and #agenda or 0 do
    local item = agenda[i]
    if type(item) == "table" and item.paused_id then
      texts[#texts + 1] = "@" .. item.paused_id
    elseif type(item) == "table" then
      texts[#texts + 1] = item.list_id .. ":" .. numbers.integer_text(item.filled)
    else
      texts[#texts + 1] = numbers.integer_text(item)
    end
  end
  return table.concat(texts, " ")
end

-- The counters that changed, as field, value, …; sequence last.
local function state_pairs(b)
  local record, texts = b.instrument, {}
  if b.rules_changed then
    texts = { "symbol", record.symbol, unpack(instrument.rule_pairs(record)) }
  end
  if record.open_orders == 0 then
    record.largest_order_lots = 0
  end
  add_counter(texts, "last_order_id", record.last_order_id, b.last_order_id_before)
  add_counter(texts, "last_priority", record.last_priority, b.last_priority_before)
  add_counter(texts, "open_orders", record.open_orders, b.open_orders_before)
  add_counter(texts, "largest_order_lots", record.largest_order_lots, b.largest_order_lots_before)
  local extended = record.extended
  if extended then
    texts[#texts + 1] = "extended"
    texts[#texts + 1] = "1"
    add_counter(texts, "gtd_orders", extended.gtd_orders, nil)
    add_counter(texts, "iceberg_orders", extended.iceberg_orders, nil)
    add_counter(texts, "waiting_orders", extended.waiting_orders, nil)
    add_counter(texts, "trailing_orders", extended.trailing_orders, nil)
    add_counter(texts, "dormant_orders", extended.dormant_orders, nil)
    add_counter(texts, "order_lists", extended.order_lists, nil)
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
    texts[#texts + 1] = agenda_text(b)
  end
  add_counter(texts, "last_trade_id", record.last_trade_id, b.last_trade_id_before)
  if b.candle then
    texts[#texts + 1] = "last_price"
    texts[#texts + 1] = record.last_price
  end
  if b.epoch_changed then
    local run_id, server_run_id = record.run_id, record.server_run_id
    texts =
      { "epoch", record.epoch, "run_id", run_id, "server_run_id", server_run_id, unpack(texts) }
  end
  texts[#texts + 1] = "sequence"
  texts[#texts + 1] = b.sequence_text
  return texts
end

-- The plan of a call that has set timers and changed nothing else. That has no entry in the stream,
-- so whether the book is damaged is asked here. Returns as writing.plan.
local function plan_timers_alone(b)
  if not b.timers or not timers.are_changed(b) then
    return nil
  end
  local refused = events.events_refusal(b)
  if refused then
    return nil, refused
  end
  return { is_timers_alone = true }
end

local write_commands = { "ZREM", "HDEL", "SREM", "ZADD", "HSET", "SADD" }

-- Every write of a plan after the entry in the stream of events, in order: `run` gets the command,
-- the key and the list of the other arguments.
local function each_write(b, plan, run)
  if plan.is_timers_alone then
    return timers.each_write(b, run)
  end
  events.each_write(b, plan.entry, run)
  for i = 1, #write_commands do
    local command = write_commands[i]
    for key, arguments in pairs(plan[command]) do
      if arguments[1] then
        run(command, key, arguments)
      end
    end
  end
  memory.each_write(b, run)
  if b.candle then
    statistics.each_trim(b, run)
  end
  if b.timers then
    timers.each_write(b, run)
  end
  run("HSET", b.key, plan.state)
end

-- An error reply where Redis would refuse one of the planned writes, else nil. The same pass that
-- writes asks for each of its writes first, so none can be forgotten.
local function write_error(b, plan)
  local found = plan.entry and events.right_error(b)
  each_write(b, plan, function(command, key)
    found = found or acceptance.error(command, key, b.checked_keys)
  end)
  return found
end

-- Everything that is read before the working copy is written: the plan of its writes; or nil, and
-- an error reply where Redis would refuse one of them. nil alone where nothing has changed.
function writing.plan(b)
  if not b.changed then
    local plan, refused = plan_timers_alone(b)
    refused = refused or (plan and write_error(b, plan))
    return not refused and plan or nil, refused
  end
  local plan = { ZREM = {}, ZADD = {}, HSET = {}, HDEL = {}, SADD = {}, SREM = {} }
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
  memory.plan(b)
  plan.state = state_pairs(b)
  plan.entry = events.entry(b, bid_prices, ask_prices)
  local refused = events.trades_refusal(b) or write_error(b, plan)
  if refused then
    return nil, refused
  end
  return plan
end

-- Writes as planned. Returns nil, or an error reply where the event stream refuses the entry: then
-- nothing was written.
function writing.carry_out(b, plan)
  local refused = plan.entry and events.append(b, plan.entry)
  if not refused then
    each_write(b, plan, call_in_chunks)
  end
  return refused
end

return writing
