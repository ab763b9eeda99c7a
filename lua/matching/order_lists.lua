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
-- that is being traded through. Who is to be armed stands on the agenda (triggers.lua) behind the
-- prices of the trades before; who is armed already grows before they are shown, for his order
-- protects all of what is filled.

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
local function stored_list(b, id)
  b.order_lists = b.order_lists or { known = {}, changed = {} }
  local text = b.order_lists.known[id]
  if text == nil then
    text = redis.call("HGET", keys.order_lists(b.key), id)
    b.order_lists.known[id] = text
  end
  return text
end

-- Keeps an order list, or with false drops it.
local function keep_text(b, id, text)
  local extended, known = instrument_record.extend(b.instrument), stored_list(b, id)
  extended.order_lists = extended.order_lists + (text and 1 or 0) - (known and 1 or 0)
  b.order_lists.known[id], b.order_lists.changed[id] = text, text
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
function order_lists.keep(b, list)
  local ids, armed = table.concat(list.ids, ","), numbers.integer_text(list.armed)
  keep_text(b, list.id, list.kind .. " " .. ids .. " " .. armed)
end

local function is_entry(list, o)
  return list.kind ~= "oco" and o.order_id == list.ids[1]
end

-- Whether an order's quantity was what the entry of its list had filled: it is armed, or was while
-- its list was kept.
function order_lists.is_armed_by_entry(b, o)
  local id = o.extras and o.extras.order_list_id
  id = id and numbers.integer_text(id)
  if not id or id == o.order_id then
    return false
  end
  local text = stored_list(b, id)
  return not text or parse(id, text).kind ~= "oco"
end

-- The list that an order is a leg of, as long as something can follow from it, or nil.
local function list_of_leg(b, o)
  local id = o.extras and o.extras.order_list_id
  id = id and numbers.integer_text(id)
  local text = id and stored_list(b, id)
  local list = text and parse(id, text)
  return list and not is_entry(list, o) and list or nil
end

local function cancel(b, o)
  book.remove(b, o)
  order_reports.canceled(b, o, "order_list")
end

-- The open orders of a list but for its entry.
local function open_legs(b, list)
  local legs = {}
  for i = list.kind == "oco" and 1 or 2, #list.ids do
    legs[#legs + 1] = orders.find(b, list.ids[i])
  end
  return legs
end

-- ---- what follows

-- Adds to an order that is armed. In the book it queues anew.
local function grow(b, o, lots)
  local waits = o.extras.waits
  if waits then
    book.change_waiting(b, o)
  else
    book.dequeue(b, o)
    book.prioritize(b, o)
  end
  o.quantity, o.remaining, o.terms = o.quantity + lots, o.remaining + lots, false
  order_reports.amended(b, o)
  if waits then
    return
  end
  if levels.overflows(b, o.side, o.price, o.remaining) then
    book.close(b, o)
    return order_reports.canceled(b, o, "too_large")
  end
  book.enqueue(b, o)
end

-- Makes a leg smaller where it stands.
local function shrink(b, o, lots)
  book.shrink(b, o, lots)
  o.quantity, o.terms = o.quantity - lots, false
end

-- The other leg of an oco, whose quantity is always the same as this one's; or nil, and a refusal
-- where an entry decides about both.
function order_lists.other_leg(b, o)
  local list = list_of_leg(b, o)
  if not list then
    return nil
  end
  if list.kind ~= "oco" then
    local message = "the quantity is what the entry of the list has filled: amend prices, or cancel"
    return reject.with("ORDER_LIST_QUANTITY", message)
  end
  local legs = open_legs(b, list)
  return legs[1] == o and legs[2] or legs[1]
end

-- Gives a leg the quantity to which the other one was amended.
function order_lists.resize(b, leg, total)
  local lots = total - leg.quantity
  if lots > 0 then
    return grow(b, leg, lots)
  end
  if lots < 0 then
    shrink(b, leg, -lots)
    order_reports.amended(b, leg)
  end
end

-- Self-trade prevention has made one leg smaller: the other has no more to end than that one.
local function decrement_others(b, list, note)
  for _, leg in ipairs(open_legs(b, list)) do
    if leg ~= note.order and note.lots < leg.remaining then
      shrink(b, leg, note.lots)
      order_reports.decremented(b, leg)
    elseif leg ~= note.order then
      cancel(b, leg)
    end
  end
end

-- Lets the armed legs of a bracket grow to all that its entry has filled.
local function grow_legs(b, list, filled)
  local lots = filled - list.armed
  if lots == 0 then
    return
  end
  list.armed = filled
  order_lists.keep(b, list)
  for _, leg in ipairs(open_legs(b, list)) do
    grow(b, leg, lots)
  end
end

-- Puts a list on the agenda to be armed with so much. Where it stands there already, its entry has
-- filled more meanwhile.
local function ask_to_arm(b, list, filled)
  local agenda = b.agenda
  for i = agenda.first, #agenda do
    if type(agenda[i]) == "table" and agenda[i].list_id == list.id then
      agenda[i].filled = filled
      return
    end
  end
  agenda[#agenda + 1] = { list_id = list.id, filled = filled }
end

-- The entry has traded, or ended. What it has filled arms a bracket at its first fill, an oto when
-- it has ended; where it has ended without a fill there is nothing to arm. Legs that are armed grow
-- before anybody is shown the prices of the trades.
local function follow_entry(b, list, entry)
  local filled = entry.quantity - entry.remaining
  local has_ended = not orders.find(b, entry.order_id)
  if has_ended and filled == 0 then
    keep_text(b, list.id, false)
    for _, leg in ipairs(open_legs(b, list)) do
      cancel(b, leg)
    end
  elseif list.armed > 0 then
    grow_legs(b, list, filled)
  elseif filled > 0 and (has_ended or list.kind == "bracket") then
    ask_to_arm(b, list, filled)
  end
end

-- A leg could not enter the market: the list goes on without it, and the other leg as its own.
local function go_on_without(b, list, o)
  local others = {}
  for _, order_id in ipairs(list.ids) do
    if order_id ~= o.order_id then
      others[#others + 1] = order_id
    end
  end
  local is_over = list.kind == "oco" or #others == 1
  if is_over then
    return keep_text(b, list.id, false)
  end
  list.ids = others
  order_lists.keep(b, list)
end

local function has_leg(list, o)
  for _, order_id in ipairs(list.ids) do
    if order_id == o.order_id then
      return true
    end
  end
  return false
end

-- The open orders of a list but for one.
local function others_of(b, list, o)
  local others = {}
  for _, order_id in ipairs(list.ids) do
    local other = orders.find(b, order_id)
    if other and other ~= o then
      others[#others + 1] = other
    end
  end
  return others
end

-- A leg that trades, triggers or ends ends all others of its list: one that could not come in ends
-- nobody.
local function follow_leg(b, list, note)
  if note.event == "decremented" then
    return decrement_others(b, list, note)
  end
  if note.event == "failed" then
    return go_on_without(b, list, note.order)
  end
  if not has_leg(list, note.order) then
    return
  end
  keep_text(b, list.id, false)
  for _, other in ipairs(others_of(b, list, note.order)) do
    cancel(b, other)
  end
end

-- Lifts out the orders that end with a leg, so that what it trades next meets none of them. Returns
-- the ways back, for put_back or end_lifted.
function order_lists.lift_others(b, o)
  local list, ways_back = list_of_leg(b, o), {}
  for i, other in ipairs(list and others_of(b, list, o) or {}) do
    ways_back[i] = book.lift(b, other)
  end
  return ways_back
end

function order_lists.put_back(b, ways_back)
  for i = #ways_back, 1, -1 do
    book.restore(b, ways_back[i])
  end
end

-- Ends the lifted orders, and their list with them.
function order_lists.end_lifted(b, ways_back)
  for _, way_back in ipairs(ways_back) do
    local o = way_back.order
    keep_text(b, numbers.integer_text(o.extras.order_list_id), false)
    order_reports.canceled(b, o, "order_list")
  end
end

local function follow(b, note)
  local o = note.order
  local id = numbers.integer_text(o.extras.order_list_id)
  local text = stored_list(b, id)
  if not text then
    return
  end
  local list = parse(id, text)
  if not is_entry(list, o) then
    return follow_leg(b, list, note)
  end
  return follow_entry(b, list, o)
end

-- Settles what has become of the orders of order lists.
function order_lists.settle(b)
  local notes = b.notes
  while notes and notes[notes.first] do
    local note = notes[notes.first]
    notes.first = notes.first + 1
    follow(b, note)
  end
end

-- An order is triggered, or about to trade: all others of its list end now, so that it meets none
-- of them.
function order_lists.end_others(b, o)
  book.note(b, o, "triggered")
  order_lists.settle(b)
end

-- ---- arming

-- Whether an order enters the market as soon as it is armed: a limit order, and a stop order whose
-- price has come already. A trailing stop begins at the last price, which is never its own.
local function enters_at_once(b, o)
  local extras = o.extras
  if not extras.order_type then
    return true
  end
  local waits = stop_orders.direction(o.side, o.order_type)
  return extras.stop_price and stop_orders.is_due_now(b.instrument, waits, extras.stop_price)
end

-- The entry of an order's list where the order could meet it, else nil.
local function entry_in_book(b, o)
  local id = o.extras and o.extras.order_list_id
  local text = id and stored_list(b, numbers.integer_text(id))
  local list = text and parse(numbers.integer_text(id), text)
  if not list or list.kind == "oco" or list.ids[1] == o.order_id then
    return nil
  end
  local entry = orders.find(b, list.ids[1])
  local is_in_book = entry and not (entry.extras and entry.extras.waits)
  return is_in_book and entry or nil
end

-- The fills of an order that waited, as if the others of its list were gone; nil and why not. Only
-- who enters the market ends the others. Changes nothing.
function order_lists.plan(b, o)
  local entry = entry_in_book(b, o)
  local way_back = entry and book.lift(b, entry)
  local fills, refusal = order_entry.plan(b, o)
  if way_back then
    book.restore(b, way_back)
  end
  return fills, refusal
end

-- Plans the fills of a leg armed with so many lots. Changes nothing.
local function plan_arming(b, o, lots)
  local remaining = o.remaining
  o.remaining = lots
  local fills, refusal = order_entry.plan(b, o)
  o.remaining = remaining
  return fills, refusal
end

-- Whether a leg that has to be decided whole would make more trades than what is left to this call.
local function are_for_next_call(b, legs, lots)
  for _, leg in ipairs(legs) do
    if enters_at_once(b, leg) then
      local fills, refusal = plan_arming(b, leg, lots)
      if not fills and order_entry.is_for_next_call(b, refusal) then
        return true
      end
    end
  end
  return false
end

-- An order of a list that waited for its entry becomes active with so many lots.
local function arm(b, o, lots)
  local extras, is_due = o.extras, enters_at_once(b, o)
  book.dequeue(b, o)
  extras.waits = extras.order_type and stop_orders.direction(o.side, o.order_type)
  o.quantity, o.remaining, o.terms = lots, lots, false
  book.prioritize(b, o)
  if extras.trailing_offset then
    stop_orders.refer_to_last(b.instrument, o)
  end
  order_reports.armed(b, o)
  if not is_due then
    return book.wait(b, o)
  end
  local is_stop = extras.waits
  extras.waits = nil
  local fills = order_lists.plan(b, o)
  if is_stop then
    order_reports.triggered(b, o)
  end
  if fills and (is_stop or fill_plan.would_trade(b, o)) then
    order_lists.end_others(b, o)
  end
  return order_entry.enter(b, o, fills)
end

-- Arms the legs of a list { list_id, filled } that stood on the agenda. A leg that trades at once
-- ends the other. Returns whether it could be done in this call: else nothing has changed.
function order_lists.arm(b, item)
  local text = stored_list(b, item.list_id)
  local list = text and parse(item.list_id, text)
  if not list or list.armed > 0 then
    return true
  end
  local legs = open_legs(b, list)
  if are_for_next_call(b, legs, item.filled) then
    return false
  end
  list.armed = item.filled
  if list.kind == "oto" then
    keep_text(b, list.id, false)
  else
    order_lists.keep(b, list)
  end
  for _, leg in ipairs(legs) do
    if leg.queued then
      arm(b, leg, item.filled)
      order_lists.settle(b)
    end
  end
  return true
end

return order_lists
