-- Order lists: orders that hang together, so that what becomes of one decides about the others.
--
--   oco      two orders; when one trades, be it in part, triggers or ends, the other is canceled
--   oto      an order, the entry, and one that is armed when it has ended, with what it filled
--   bracket  an entry and two that are armed when it first fills and grow as it fills more; they
--            are an oco, and whatever ends one of them ends what is left of the entry, too
--
-- The two of an oco have one quantity: what changes that of one changes the other's. Those of a
-- bracket have what the entry has filled, which nobody can amend.
--
-- All are orders from the beginning, with ids and names of their own. What is not armed yet waits
-- in the queue `dormant`, where no trade reaches it.
--
-- A list is named by its first order, and kept as one line of text: type, order_ids, and how many
-- lots its orders were armed with. It ends when nothing can follow from it any more. What happens
-- to its orders is noted while a command runs, and settled after it: so a list never changes a book
-- that is being traded through. Who is to be armed stands on the trigger queue (triggers.lua)
-- behind the prices of the trades before; who is armed already grows before they are shown, for his
-- order protects all of what is filled.

local book = require("book/book")
local levels = require("book/levels")
local orders = require("book/orders")
local order_reports = require("market_data/order_reports")
local fill_plan = require("matching/fill_plan")
local order_entry = require("matching/order_entry")
local stop_orders = require("matching/stop_orders")
local instrument_record = require("records/instrument_record")
local keys = require("values/keys")
local numbers = require("values/numbers")
local reject = require("values/reject")

local order_lists = {}

-- The order list of this id, or false.
local function stored_list(tx, id)
  tx.order_lists = tx.order_lists or { known = {}, changed = {} }
  local text = tx.order_lists.known[id]
  if text == nil then
    text = redis.call("HGET", keys.order_lists(tx.key), id)
    tx.order_lists.known[id] = text
  end
  return text
end

-- Keeps an order list, or with false drops it.
local function keep_text(tx, id, text)
  local features, known = instrument_record.extend(tx.instrument), stored_list(tx, id)
  features.order_lists = features.order_lists + (text and 1 or 0) - (known and 1 or 0)
  tx.order_lists.known[id], tx.order_lists.changed[id] = text, text
end

local function parse(id, text)
  local kind, ids, armed = text:match("^(%w+) (%S+) (%d+)$")
  local list = { id = id, kind = kind, ids = {}, armed = armed + 0 }
  for order_id in ids:gmatch("%d+") do
    list.ids[#list.ids + 1] = order_id
  end
  return list
end

-- Keeps a list { id, kind, ids, armed }.
function order_lists.keep(tx, list)
  local ids, armed = table.concat(list.ids, ","), numbers.integer_text(list.armed)
  keep_text(tx, list.id, list.kind .. " " .. ids .. " " .. armed)
end

local function is_entry(list, order)
  return list.kind ~= "oco" and order.order_id == list.ids[1]
end

-- Whether an order's quantity was what the entry of its list had filled: it is armed, or was while
-- its list was kept.
function order_lists.is_armed_by_entry(tx, order)
  local id = order.attributes and order.attributes.order_list_id
  id = id and numbers.integer_text(id)
  if not id or id == order.order_id then
    return false
  end
  local text = stored_list(tx, id)
  return not text or parse(id, text).kind ~= "oco"
end

-- The list that an order is a leg of, as long as something can follow from it, or nil.
local function list_of_leg(tx, order)
  local id = order.attributes and order.attributes.order_list_id
  id = id and numbers.integer_text(id)
  local text = id and stored_list(tx, id)
  local list = text and parse(id, text)
  return list and not is_entry(list, order) and list or nil
end

local function cancel(tx, order)
  book.remove(tx, order)
  order_reports.canceled(tx, order, "order_list")
end

-- The open orders of a list but for its entry.
local function open_legs(tx, list)
  local legs = {}
  for i = list.kind == "oco" and 1 or 2, #list.ids do
    legs[#legs + 1] = orders.find(tx, list.ids[i])
  end
  return legs
end

-- ---- what follows

-- Adds quantity to an armed order. An order in the book goes to the end of its level.
local function grow(tx, order, lots)
  local waits = order.attributes.waits
  if waits then
    book.change_waiting(tx, order)
  else
    book.remove_from_queue(tx, order)
    book.assign_priority(tx, order)
  end
  order.quantity, order.remaining, order.terms =
    order.quantity + lots, order.remaining + lots, false
  order_reports.amended(tx, order)
  if waits then
    return
  end
  if levels.overflows(tx, order.side, order.price, order.remaining) then
    book.end_order(tx, order)
    return order_reports.canceled(tx, order, "too_large")
  end
  book.rest(tx, order)
end

-- Makes a leg smaller where it stands.
local function shrink(tx, order, lots)
  book.shrink(tx, order, lots)
  order.quantity, order.terms = order.quantity - lots, false
end

-- The other leg of an oco, whose quantity is always the same as this one's; or nil, and a refusal
-- where an entry decides about both.
function order_lists.other_leg(tx, order)
  local list = list_of_leg(tx, order)
  if not list then
    return nil
  end
  if list.kind ~= "oco" then
    local message = "the quantity is what the entry of the list has filled: amend prices, or cancel"
    return reject.with("ORDER_LIST_QUANTITY", message)
  end
  local legs = open_legs(tx, list)
  return legs[1] == order and legs[2] or legs[1]
end

-- Gives a leg the quantity to which the other one was amended.
function order_lists.resize(tx, leg, total)
  local lots = total - leg.quantity
  if lots > 0 then
    return grow(tx, leg, lots)
  end
  if lots < 0 then
    shrink(tx, leg, -lots)
    order_reports.amended(tx, leg)
  end
end

-- Self-trade prevention has made one leg smaller: the other has no more to end than that one.
local function decrement_others(tx, list, list_event)
  for _, leg in ipairs(open_legs(tx, list)) do
    if leg ~= list_event.order and list_event.lots < leg.remaining then
      shrink(tx, leg, list_event.lots)
      order_reports.decremented(tx, leg)
    elseif leg ~= list_event.order then
      cancel(tx, leg)
    end
  end
end

-- Lets the armed legs of a bracket grow to all that its entry has filled.
local function grow_legs(tx, list, filled)
  local lots = filled - list.armed
  if lots == 0 then
    return
  end
  list.armed = filled
  order_lists.keep(tx, list)
  for _, leg in ipairs(open_legs(tx, list)) do
    grow(tx, leg, lots)
  end
end

-- Puts a list on the trigger queue to be armed with so much. Where it stands there already, its
-- entry has filled more meanwhile.
local function ask_to_arm(tx, list, filled)
  local items = tx.trigger_queue
  for i = items.first, #items do
    if type(items[i]) == "table" and items[i].list_id == list.id then
      items[i].filled = filled
      return
    end
  end
  items[#items + 1] = { list_id = list.id, filled = filled }
end

-- The entry has traded, or ended. What it has filled arms a bracket at its first fill, an oto when
-- it has ended; where it has ended without a fill there is nothing to arm. Legs that are armed grow
-- before anybody is shown the prices of the trades.
local function follow_entry(tx, list, entry)
  local filled = entry.quantity - entry.remaining
  local has_ended = not orders.find(tx, entry.order_id)
  if has_ended and filled == 0 then
    keep_text(tx, list.id, false)
    for _, leg in ipairs(open_legs(tx, list)) do
      cancel(tx, leg)
    end
  elseif list.armed > 0 then
    grow_legs(tx, list, filled)
  elseif filled > 0 and (has_ended or list.kind == "bracket") then
    ask_to_arm(tx, list, filled)
  end
end

-- A leg could not enter the market: the list goes on without it, and the other leg as its own.
local function go_on_without(tx, list, order)
  local others = {}
  for _, order_id in ipairs(list.ids) do
    if order_id ~= order.order_id then
      others[#others + 1] = order_id
    end
  end
  local is_over = list.kind == "oco" or #others == 1
  if is_over then
    return keep_text(tx, list.id, false)
  end
  list.ids = others
  order_lists.keep(tx, list)
end

local function has_leg(list, order)
  for _, order_id in ipairs(list.ids) do
    if order_id == order.order_id then
      return true
    end
  end
  return false
end

-- The open orders of a list but for one.
local function others_of(tx, list, order)
  local others = {}
  for _, order_id in ipairs(list.ids) do
    local other = orders.find(tx, order_id)
    if other and other ~= order then
      others[#others + 1] = other
    end
  end
  return others
end

-- A leg that trades, triggers or ends ends all others of its list: one that could not come in ends
-- nobody.
local function follow_leg(tx, list, list_event)
  if list_event.event == "decremented" then
    return decrement_others(tx, list, list_event)
  end
  if list_event.event == "failed" then
    return go_on_without(tx, list, list_event.order)
  end
  if not has_leg(list, list_event.order) then
    return
  end
  keep_text(tx, list.id, false)
  for _, other in ipairs(others_of(tx, list, list_event.order)) do
    cancel(tx, other)
  end
end

-- Lifts out the orders that end with a leg, so that what it trades next meets none of them. Returns
-- the ways back, for put_back or end_lifted.
function order_lists.remove_others_tentatively(tx, order)
  local list, removed_orders = list_of_leg(tx, order), {}
  for i, other in ipairs(list and others_of(tx, list, order) or {}) do
    removed_orders[i] = book.remove_tentatively(tx, other)
  end
  return removed_orders
end

function order_lists.put_back(tx, removed_orders)
  for i = #removed_orders, 1, -1 do
    book.put_back(tx, removed_orders[i])
  end
end

-- Ends the lifted orders, and their list with them.
function order_lists.end_removed(tx, removed_orders)
  for _, removed in ipairs(removed_orders) do
    local order = removed.order
    keep_text(tx, numbers.integer_text(order.attributes.order_list_id), false)
    order_reports.canceled(tx, order, "order_list")
  end
end

local function follow(tx, list_event)
  local order = list_event.order
  local id = numbers.integer_text(order.attributes.order_list_id)
  local text = stored_list(tx, id)
  if not text then
    return
  end
  local list = parse(id, text)
  if not is_entry(list, order) then
    return follow_leg(tx, list, list_event)
  end
  return follow_entry(tx, list, order)
end

-- Settles what has become of the orders of order lists.
function order_lists.process_events(tx)
  local list_events = tx.list_events
  while list_events and list_events[list_events.first] do
    local list_event = list_events[list_events.first]
    list_events.first = list_events.first + 1
    follow(tx, list_event)
  end
end

-- An order is triggered, or about to trade: all others of its list end now, so that it meets none
-- of them.
function order_lists.end_others(tx, order)
  book.add_list_event(tx, order, "triggered")
  order_lists.process_events(tx)
end

-- ---- arming

-- Whether an order enters the market as soon as it is armed: a limit order, and a stop order whose
-- price has come already. A trailing stop begins at the last price, which is never its own.
local function enters_at_once(tx, order)
  local attributes = order.attributes
  if not attributes.order_type then
    return true
  end
  local waits = stop_orders.direction(order.side, order.order_type)
  return attributes.stop_price
    and stop_orders.is_triggered_now(tx.instrument, waits, attributes.stop_price)
end

-- The entry of an order's list where the order could meet it, else nil.
local function entry_in_book(tx, order)
  local id = order.attributes and order.attributes.order_list_id
  local text = id and stored_list(tx, numbers.integer_text(id))
  local list = text and parse(numbers.integer_text(id), text)
  if not list or list.kind == "oco" or list.ids[1] == order.order_id then
    return nil
  end
  local entry = orders.find(tx, list.ids[1])
  local is_in_book = entry and not (entry.attributes and entry.attributes.waits)
  return is_in_book and entry or nil
end

-- The fills of an order that waited, as if the others of its list were gone; nil and why not. Only
-- who enters the market ends the others. Changes nothing.
function order_lists.plan(tx, order)
  local entry = entry_in_book(tx, order)
  local removed = entry and book.remove_tentatively(tx, entry)
  local fills, refusal = order_entry.plan(tx, order)
  if removed then
    book.put_back(tx, removed)
  end
  return fills, refusal
end

-- Plans the fills of a leg armed with so many lots. Changes nothing.
local function plan_arming(tx, order, lots)
  local remaining = order.remaining
  order.remaining = lots
  local fills, refusal = order_entry.plan(tx, order)
  order.remaining = remaining
  return fills, refusal
end

-- Whether a leg that has to be decided whole would make more trades than what is left to this call.
local function are_for_next_call(tx, legs, lots)
  for _, leg in ipairs(legs) do
    if enters_at_once(tx, leg) then
      local fills, refusal = plan_arming(tx, leg, lots)
      if not fills and order_entry.is_for_next_call(tx, refusal) then
        return true
      end
    end
  end
  return false
end

-- An order of a list that waited for its entry becomes active with so many lots.
local function arm(tx, order, lots)
  local attributes, is_due = order.attributes, enters_at_once(tx, order)
  book.remove_from_queue(tx, order)
  attributes.waits = attributes.order_type and stop_orders.direction(order.side, order.order_type)
  order.quantity, order.remaining, order.terms = lots, lots, false
  book.assign_priority(tx, order)
  if attributes.trailing_offset then
    stop_orders.refer_to_last(tx.instrument, order)
  end
  order_reports.armed(tx, order)
  if not is_due then
    return book.wait(tx, order)
  end
  local is_stop = attributes.waits
  attributes.waits = nil
  local fills = order_lists.plan(tx, order)
  if is_stop then
    order_reports.triggered(tx, order)
  end
  if fills and (is_stop or fill_plan.would_trade(tx, order)) then
    order_lists.end_others(tx, order)
  end
  return order_entry.execute_triggered(tx, order, fills)
end

-- Arms the legs of a list { list_id, filled } that stood on the trigger queue. A leg that trades at
-- once ends the other. Returns whether it could be done in this call: else nothing has changed.
function order_lists.arm(tx, item)
  local text = stored_list(tx, item.list_id)
  local list = text and parse(item.list_id, text)
  if not list or list.armed > 0 then
    return true
  end
  local legs = open_legs(tx, list)
  if are_for_next_call(tx, legs, item.filled) then
    return false
  end
  list.armed = item.filled
  if list.kind == "oto" then
    keep_text(tx, list.id, false)
  else
    order_lists.keep(tx, list)
  end
  for _, leg in ipairs(legs) do
    if leg.queued then
      arm(tx, leg, item.filled)
      order_lists.process_events(tx)
    end
  end
  return true
end

return order_lists
