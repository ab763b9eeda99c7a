-- The entry points. Each opens with its contract; what they share is the way of a command:
--
--   fields -> remembered? -> checks against instrument and book -> plan -> working copy -> reply
--
-- A command runs against a working copy (book.lua) and returns its reply as JSON text. Nothing is
-- written before all commands of the call have run; `finish` writes, once. `execute` is therefore
-- the same as single calls, only that they share one sequence.

local book = require("book")
local depth = require("depth")
local events = require("events")
local fields = require("fields")
local instrument = require("instrument")
local keys = require("keys")
local library = require("library")
local matching = require("matching")
local memory = require("memory")
local numbers = require("numbers")
local order = require("order")
local reject = require("reject")
local terms = require("terms")
local verify = require("verify")

local commands = {}

local batch_length_max = 256
local publish_interval_ms = 500
local trades_limit_max = 1000
local orders_limit_max = 1000

local function unknown_order()
  return reject.new("UNKNOWN_ORDER", "there is no such open order")
end

-- ---- replies

-- The reply to place_order and amend_order.
local function order_reply(b, o, status, fills_json)
  local standing, remaining = events.standing(b, o)
  return "{"
    .. standing
    .. ',"remaining_quantity":"'
    .. remaining
    .. '","status":"'
    .. status
    .. '","fills":'
    .. fills_json
    .. b.stamp
end

local function canceled_reply(b, o)
  local standing, remaining = events.standing(b, o)
  return "{"
    .. standing
    .. ',"remaining_quantity":"'
    .. remaining
    .. '","status":"canceled"'
    .. b.stamp
end

-- An open order as get_order and get_open_orders show it, without the closing brace.
local function order_json(b, o)
  local standing, remaining = events.standing(b, o)
  return "{"
    .. standing
    .. ',"remaining_quantity":"'
    .. remaining
    .. '","status":"'
    .. order.status(o)
    .. '","timestamp_ms":'
    .. o.timestamp_ms
end

-- ---- retries

-- Whether a command's client_order_id is its own: other content is then refused. Otherwise it
-- names the order that the command is about.
local function owns_id(method_name, values)
  return method_name == "place_order" or values.order_id ~= nil
end

local function memo_name(method_name, values)
  local name = owns_id(method_name, values) and memory.own_name or memory.target_name
  return name(values.account, values.client_order_id)
end

-- Where the reply to a command with a client_order_id is remembered: { name, content, owned }.
local function memo(method_name, values, schema)
  return {
    name = memo_name(method_name, values),
    content = fields.content(method_name, values, schema),
    owned = owns_id(method_name, values),
  }
end

-- The first reply to a command that was sent before, or a refusal where its id has another meaning.
-- nil for a command that is to be carried out.
local function answer_again(b, memo_record)
  local reply, same = memory.recall(b, memo_record.name, memo_record.content)
  if reply and same then
    return reply
  end
  if reply and memo_record.owned then
    return nil, reject.new("DUPLICATE_CLIENT_ORDER_ID", "client_order_id was used before")
  end
  return nil
end

local function remember(b, memo_record, reply)
  if memo_record then
    memory.remember(b, memo_record.name, memo_record.content, reply)
  end
  return reply
end

-- Remembers the reply to an amend or cancel. One that was sent by order_id ends what is
-- remembered of the order's last amend by name: repeating that one now asks for something new.
local function remember_change(b, o, values, memo_record, reply)
  if not memo_record and not o.client_order_id then
    return reply
  end
  if values.order_id and o.client_order_id then
    memory.forget(b, memory.target_name(o.account, o.client_order_id))
  end
  return remember(b, memo_record, reply)
end

-- ---- place_order

local place_schema = fields.schema({
  "account",
  "client_order_id",
  "side",
  "order_type",
  "time_in_force",
  "price",
  "quantity",
  "post_only",
  "expire_time_ms",
  "display_quantity",
  "quote_quantity",
  "protection",
  "self_trade_prevention",
  "stp_group",
  "validate_only",
  "valid_until_ms",
}, { "account", "side", "order_type" }, 8)

-- The price and quantity asked for, in ticks and lots; nil and why not. A market order has no price
-- and one by quote_quantity no quantity yet.
local function measured(record, values)
  local text = values.price
  local lots, price, refusal = 0
  if text then
    price, refusal = instrument.price(record, text)
    if refusal then
      return nil, refusal
    end
  end
  if values.quantity then
    lots, refusal = instrument.lots(record, values.quantity, "quantity")
    if not lots then
      return nil, refusal
    end
    if lots < record.quantity_min or lots > record.quantity_max then
      return nil, instrument.quantity_refusal(record, lots)
    end
  end
  return lots, price
end

-- The order as its fields ask for it, not yet taken on; or nil and why not.
local function drafted(b, values)
  local lots, price = measured(b.instrument, values)
  if not lots then
    return nil, price
  end
  local o = {
    order_id = false,
    side = values.side,
    order_type = values.order_type,
    time_in_force = values.time_in_force or terms.time_in_force(values),
    price = price,
    quantity = lots,
    remaining = lots,
    timestamp_ms = false,
    account = values.account,
    client_order_id = values.client_order_id,
    extras = values.post_only == "true" and { post_only = true } or false,
    priority = false,
    queued = false,
    stored_priority = false,
    touched = false,
    terms = false,
  }
  if values.rare then
    return terms.read(b, o, values)
  end
  return o
end

local function level_refusal()
  return reject.new("LEVEL_QUANTITY_TOO_LARGE", "the level's total would be beyond exactness")
end

local function post_only_refusal(b, taker)
  if matching.would_trade(b, taker) then
    return reject.new("POST_ONLY_WOULD_CROSS", "the post_only order would trade at once")
  end
  return nil
end

-- What becomes of the order after its trades: filled, resting, or canceled. Returns its status.
local function settle_order(b, o, fills)
  local by_quote = o.extras and o.extras.quote_units
  if o.remaining == 0 and (not by_quote or fills.is_spent) then
    book.close(b, o)
    return "filled"
  end
  local force, ended = o.time_in_force, fills.ended
  if not ended and (force == "gtc" or force == "gtd") then
    book.enqueue(b, o)
    return order.status(o)
  end
  book.close(b, o)
  events.canceled(b, o, ended or force)
  return "canceled"
end

-- A refusal where what is left of an order cannot queue, else nil.
local function rest_refusal(b, o, left)
  local force = o.time_in_force
  if force ~= "gtc" and force ~= "gtd" then
    return nil
  end
  local slice = o.extras and o.extras.display_quantity
  local is_giant = slice and math.max(slice, b.instrument.largest_order_lots) > b.lots_safe
  if is_giant or book.level_overflows(b, o.side, o.price, left) then
    return level_refusal()
  end
  return nil
end

-- The fills of a new order, after the last rules that can refuse it: post_only, and the exactness
-- of the level it would join. nil and why not.
local function plan_new_order(b, o)
  local refusal = o.extras and o.extras.post_only and post_only_refusal(b, o)
  if refusal then
    return nil, refusal
  end
  if not o.price then
    terms.protect(b, o)
  end
  local fills, left = matching.plan(b, o)
  if not fills then
    return nil, left
  end
  if o.extras and o.extras.quote_units then
    o.quantity = fills.bought or 0
    return fills
  end
  if left == 0 then
    return fills
  end
  if o.time_in_force == "fok" then
    return matching.no_fills
  end
  refusal = not fills.ended and rest_refusal(b, o, left)
  if refusal then
    return nil, refusal
  end
  return fills
end

-- The answer to an order that is only to be checked.
local function valid_reply(b, fills)
  local lots = 0
  for i = 1, #fills do
    lots = lots + (fills[i].prevented and 0 or fills[i].lots)
  end
  return string.format(
    '{"status":"valid","fill_quantity":"%s","sequence":%.0f,"timestamp_ms":%s}',
    instrument.quantity_text(b.instrument, lots),
    book.current_sequence(b),
    b.timestamp_ms
  )
end

-- A refusal of every new order and amend now, else nil.
local function closed_refusal(b)
  if b.instrument.status ~= "trading" then
    return instrument.status_refusal(b.instrument)
  end
  if b.expiring then
    return reject.new("EXPIRING", "many orders are expiring: try again")
  end
  return nil
end

-- The memo of a new order with an id of its own, and the first reply where it was sent before; or
-- why the id cannot be taken.
local function recall_placed(b, values)
  local memo_record = memo("place_order", values, place_schema)
  local again, refusal = answer_again(b, memo_record)
  if not again and not refusal and book.client_order(b, values.account, values.client_order_id) then
    refusal = reject.new("DUPLICATE_CLIENT_ORDER_ID", "an open order has this client_order_id")
  end
  return memo_record, again, refusal
end

-- The order that is asked for and its fills, after every check; nil and why not.
local function checked_order(b, values)
  local refusal = values.rare and terms.lateness_refusal(b, values)
  if not refusal and (b.instrument.status ~= "trading" or b.expiring) then
    refusal = closed_refusal(b)
  end
  if refusal then
    return nil, refusal
  end
  local o, invalid = drafted(b, values)
  if not o then
    return nil, invalid
  end
  refusal = b.instrument.extended and terms.rule_refusal(b, o)
  if refusal then
    return nil, refusal
  end
  local fills, refused = plan_new_order(b, o)
  if not fills then
    return nil, refused
  end
  return o, fills
end

-- place_order: takes an order on, trades it, queues the rest.
-- Fields: account side order_type; quantity or quote_quantity; price time_in_force post_only
-- client_order_id expire_time_ms display_quantity protection self_trade_prevention stp_group
-- validate_only valid_until_ms.
-- Reply: the order's terms, remaining_quantity status fills sequence timestamp_ms; with
-- validate_only status fill_quantity sequence timestamp_ms.
-- Rejects: FIELD_NOT_ALLOWED, DUPLICATE_CLIENT_ORDER_ID, TOO_LATE, INSTRUMENT_HALTED,
-- INSTRUMENT_CANCEL_ONLY, EXPIRING, INVALID_NUMBER, PRICE_OFF_TICK, PRICE_NOT_POSITIVE,
-- QUANTITY_OFF_LOT, QUANTITY_TOO_SMALL, QUANTITY_TOO_LARGE, INVALID_DISPLAY_QUANTITY,
-- EXPIRE_TIME_PASSED, PRICE_OUT_OF_BAND, NOTIONAL_TOO_SMALL, TOO_MANY_OPEN_ORDERS,
-- POST_ONLY_WOULD_CROSS, LEVEL_QUANTITY_TOO_LARGE, TOO_MANY_FILLS, and those of the fields' forms.
local function place_order(b, values)
  local refusal = terms.combination_refusal(values)
  if refusal then
    return nil, refusal
  end
  local memo_record, again
  if values.client_order_id then
    memo_record, again, refusal = recall_placed(b, values)
    if again or refusal then
      return again, refusal
    end
  end
  local o, fills = checked_order(b, values)
  if not o then
    return nil, fills
  end
  if values.validate_only == "true" then
    return valid_reply(b, fills)
  end
  book.admit(b, o)
  events.accepted(b, o)
  local fills_json = fills[1] and matching.trade(b, o, fills) or "[]"
  local reply = order_reply(b, o, settle_order(b, o, fills), fills_json)
  return memo_record and remember(b, memo_record, reply) or reply
end

-- ---- cancel_order, amend_order

-- The order a command is about, or nil and why not.
local function find_order(b, values)
  local order_id = values.order_id
  if not order_id then
    if not values.account or not values.client_order_id then
      return reject.with("MISSING_FIELD", "missing field order_id, or account and client_order_id")
    end
    order_id = book.client_order(b, values.account, values.client_order_id)
  end
  local o = order_id and book.order(b, order_id)
  if not o then
    return nil, unknown_order()
  end
  if values.account and values.account ~= o.account then
    return reject.with("NOT_ORDER_OWNER", "the order belongs to another account")
  end
  return o
end

-- The order a command with a client_order_id is about, or nil and why not; then its memo, and the
-- first reply where the command was sent before. A name can pass from an order that is gone to a
-- new one: what is remembered of the old order is no answer about the new.
local function recall_change(b, method_name, values, schema)
  if not values.account then
    return reject.with("MISSING_FIELD", "missing field account")
  end
  local memo_record = memo(method_name, values, schema)
  local again, duplicate = answer_again(b, memo_record)
  if duplicate then
    return nil, duplicate
  end
  local named = again and not memo_record.owned
  local order_id = named and book.client_order(b, values.account, values.client_order_id)
  if again and (not order_id or string.find(again, '"order_id":"' .. order_id .. '"', 1, true)) then
    return nil, nil, nil, again
  end
  local o, refusal = find_order(b, values)
  return o, refusal, memo_record
end

-- The order a command is about and its memo, or nil and why not, and the first reply.
local function order_to_change(b, method_name, values, schema)
  if values.client_order_id then
    return recall_change(b, method_name, values, schema)
  end
  return find_order(b, values)
end

local cancel_schema = fields.schema(
  { "account", "client_order_id", "order_id", "valid_until_ms" },
  {},
  3
)

-- cancel_order: takes an open order out of the book, in every status of the instrument.
-- Fields: order_id, or account and client_order_id. Reply: the order and its remaining_quantity.
-- Rejects: UNKNOWN_ORDER, NOT_ORDER_OWNER, DUPLICATE_CLIENT_ORDER_ID, and those of the fields'
-- forms.
local function cancel_order(b, values)
  local o, refusal, memo_record, again = order_to_change(b, "cancel_order", values, cancel_schema)
  if not o then
    return again, refusal
  end
  refusal = values.rare and terms.lateness_refusal(b, values)
  if refusal then
    return nil, refusal
  end
  book.remove(b, o)
  events.canceled(b, o, "requested")
  return remember_change(b, o, values, memo_record, canceled_reply(b, o))
end

local amend_schema = fields.schema({
  "account",
  "client_order_id",
  "order_id",
  "price",
  "quantity",
  "remaining_quantity",
  "valid_until_ms",
}, {}, 6)

-- The order's new { ticks, total, remaining }, or nil and why not.
local function amended(b, o, values)
  local record = b.instrument
  local filled = o.quantity - o.remaining
  local new = { ticks = o.price, total = o.quantity, remaining = o.remaining }
  local refusal
  if values.price then
    new.ticks, refusal = instrument.price(record, values.price)
  end
  if values.quantity and not refusal then
    new.total, refusal = instrument.lots(record, values.quantity, "quantity")
  end
  if values.remaining_quantity and not refusal then
    local lots
    lots, refusal = instrument.lots(record, values.remaining_quantity, "remaining_quantity")
    if lots == 0 then
      return reject.with("QUANTITY_TOO_SMALL", "remaining_quantity must be above zero")
    end
    new.total = lots and lots + filled
  end
  if values.quantity or values.remaining_quantity then
    refusal = refusal or instrument.quantity_refusal(record, new.total)
  end
  if refusal then
    return nil, refusal
  end
  new.remaining = new.total - filled
  if new.remaining <= 0 then
    return reject.with("QUANTITY_BELOW_FILLED", "quantity is not above what is filled already")
  end
  return new
end

-- A refusal where an amend names no change or two quantities, else nil.
local function amend_refusal(values)
  if values.quantity and values.remaining_quantity then
    return reject.new("FIELD_NOT_ALLOWED", "give quantity or remaining_quantity, not both")
  end
  if not values.price and not values.quantity and not values.remaining_quantity then
    return reject.new("MISSING_FIELD", "missing field price, quantity or remaining_quantity")
  end
  return nil
end

-- Shrinks an order where it stands.
local function shrink(b, o, new)
  book.shrink(b, o, o.remaining - new.remaining)
  o.quantity, o.terms = new.total, false
  events.amended(b, o)
  return order_reply(b, o, order.status(o), "[]")
end

-- The fills of an order that is to queue anew, after the last rules that can refuse it; nil and why
-- not.
local function plan_requeue(b, o, new)
  local taker = {
    side = o.side,
    price = new.ticks,
    remaining = new.remaining,
    account = o.account,
    extras = o.extras,
  }
  local refusal = o.extras and o.extras.post_only and post_only_refusal(b, taker)
  if refusal then
    return nil, refusal
  end
  local fills, left = matching.plan(b, taker)
  if not fills then
    return nil, left
  end
  local stays_in_level = new.ticks == o.price and order.shown(o) or 0
  local rests = left > 0 and not fills.ended
  if rests and book.level_overflows(b, o.side, new.ticks, left - stays_in_level) then
    return nil, level_refusal()
  end
  return fills
end

-- Gives an order a new price or a larger quantity: it leaves the queue, trades where it now
-- crosses, and queues anew with what is left.
local function requeue(b, o, new)
  local fills, refused = plan_requeue(b, o, new)
  if not fills then
    return nil, refused
  end
  book.dequeue(b, o)
  o.price, o.quantity, o.remaining, o.terms = new.ticks, new.total, new.remaining, false
  book.prioritize(b, o)
  events.amended(b, o)
  local fills_json = fills[1] and matching.trade(b, o, fills) or "[]"
  local status = settle_order(b, o, fills)
  return order_reply(b, o, status, fills_json)
end

-- amend_order: changes price or quantity of an open order, which keeps its id.
-- Fields: order_id, or account and client_order_id; price; quantity or remaining_quantity. Reply
-- as place_order.
-- Rejects: as place_order, and UNKNOWN_ORDER, NOT_ORDER_OWNER, QUANTITY_BELOW_FILLED.
local function amend_order(b, values)
  local refusal = amend_refusal(values)
  if refusal then
    return nil, refusal
  end
  local o, missing, memo_record, again = order_to_change(b, "amend_order", values, amend_schema)
  if not o then
    return again, missing
  end
  refusal = (values.rare and terms.lateness_refusal(b, values)) or closed_refusal(b)
  if refusal then
    return nil, refusal
  end
  local new, invalid = amended(b, o, values)
  if not new then
    return nil, invalid
  end
  refusal = values.price and terms.band_refusal(b, new.ticks)
  if refusal then
    return nil, refusal
  end
  local change = requeue
  if new.ticks == o.price and new.remaining < o.remaining then
    change = shrink
  end
  local reply, refused = change(b, o, new)
  if not reply then
    return nil, refused
  end
  return remember_change(b, o, values, memo_record, reply)
end

-- ---- cancel_all_orders

local cancel_all_schema = fields.schema({ "account", "valid_until_ms" }, { "account" }, 1)

-- cancel_all_orders: cancels an account's open orders of this book, oldest first, as many as one
-- call may.
-- Fields: account. Reply: account canceled_order_ids canceled_count remaining_count sequence.
-- Rejects: those of the fields' forms.
local function cancel_all_orders(b, values)
  local refusal = values.rare and terms.lateness_refusal(b, values)
  if refusal then
    return nil, refusal
  end
  local ids = book.account_order_ids(b, values.account)
  local wanted, canceled = {}, {}
  for i = 1, math.min(#ids, b.cancels_left) do
    wanted[i] = ids[i]
  end
  book.prefetch_orders(b, wanted)
  for _, order_id in ipairs(wanted) do
    local o = book.order(b, order_id)
    if o then
      book.remove(b, o)
      events.canceled(b, o, "cancel_all")
      canceled[#canceled + 1] = order_id
    end
  end
  local count = #canceled
  b.cancels_left = b.cancels_left - count
  local ids_json = count > 0 and '"' .. table.concat(canceled, '","') .. '"' or ""
  return string.format(
    '{"account":"%s","canceled_order_ids":[%s],"canceled_count":%.0f,"remaining_count":%.0f,'
      .. '"sequence":%.0f,"timestamp_ms":%s}',
    values.account,
    ids_json,
    count,
    #ids - count,
    book.current_sequence(b),
    b.timestamp_ms
  )
end

-- ---- running commands

local methods = {
  place_order = { name = "place_order", run = place_order, schema = place_schema },
  cancel_order = { name = "cancel_order", run = cancel_order, schema = cancel_schema },
  amend_order = { name = "amend_order", run = amend_order, schema = amend_schema },
  cancel_all_orders = {
    name = "cancel_all_orders",
    run = cancel_all_orders,
    schema = cancel_all_schema,
  },
}

local function invalid_key()
  return reject.new("INVALID_BOOK_KEY", "give one key: orderbook:{SEGMENT}:SYMBOL")
end

-- The book's key, or nil and why not.
local function book_key(call_keys)
  if #call_keys ~= 1 or not keys.parse(call_keys[1]) then
    return nil, invalid_key()
  end
  return call_keys[1]
end

-- What `open` (book.open or instrument.load) gives for the call's key, or nil and why not.
local function open_with(open, call_keys)
  local key, refusal = book_key(call_keys)
  if not key then
    return nil, refusal
  end
  local opened = open(key)
  if not opened then
    return reject.with("UNKNOWN_SYMBOL", "there is no such instrument")
  end
  return opened
end

-- Writes the working copy, then replies; or gives the error that kept it from being written.
local function finish(b, reply)
  local refused = book.write(b)
  if refused then
    return refused
  end
  return reply
end

-- What a call does before its commands: the time is read and what is due is done. Returns how many
-- orders expired.
local function begin(b)
  book.stamp(b)
  local expired = b.instrument.extended and book.expire(b) or {}
  for i = 1, #expired do
    events.expired(b, expired[i])
  end
  return #expired
end

local function single(method)
  return function(call_keys, arguments)
    local b, refusal = open_with(book.open, call_keys)
    if not b then
      return reject.json(refusal)
    end
    begin(b)
    local values, malformed = fields.from_arguments(arguments, method.schema)
    if not values then
      return finish(b, reject.json(malformed, fields.echo_argument(arguments)))
    end
    local reply, refused = method.run(b, values)
    return finish(b, reply or reject.json(refused, values.client_order_id))
  end
end

-- ---- execute

-- A command from its JSON: its fields, with the method itself as `method`; or nil, why not, and the
-- client_order_id to echo.
local function decode(text)
  local decoded, object = pcall(cjson.decode, text)
  -- The decoder takes a zero byte for the end of the text.
  local cut_short = text:find("\0", 1, true)
  if not decoded or cut_short or type(object) ~= "table" or type(object.method) ~= "string" then
    return nil, reject.new("MALFORMED_COMMAND", "a command is a JSON object with a method")
  end
  local method = methods[object.method]
  if not method then
    return nil, reject.new("UNKNOWN_METHOD", "there is no such method"), fields.echo(object)
  end
  local values, refusal = fields.from_object(object, method.schema, text)
  if not values then
    return nil, refusal, fields.echo(object)
  end
  values.method = method
  return values
end

-- The same for the commands of a batch which are all plain, decoded in one go; else nil. As each is
-- at least as long as its fields, and all together no longer, none can have taken from its
-- neighbour's text.
local function decode_plain(texts)
  local decoded, objects = pcall(cjson.decode, "[" .. table.concat(texts, ",") .. "]")
  if not decoded or #objects ~= #texts then
    return nil
  end
  for i = 1, #texts do
    local object = objects[i]
    local method = type(object) == "table" and methods[object.method]
    if not method then
      return nil
    end
    local schema, length = method.schema, #texts[i]
    if fields.plain_length(object, schema, schema.common_count) ~= length then
      if fields.plain_length(object, schema, #schema.names) ~= length then
        return nil
      end
      object.rare = true
    end
    object.method = method
  end
  return objects
end

-- The commands of a batch, false for those that were refused, and the refusals by their place.
local function decode_batch(texts)
  local batch, replies = decode_plain(texts), {}
  if batch then
    return batch, replies
  end
  batch = {}
  for i = 1, #texts do
    local values, refusal, client_order_id = decode(texts[i])
    batch[i] = values or false
    replies[i] = refusal and reject.json(refusal, client_order_id)
  end
  return batch, replies
end

-- Reads in a few calls what the commands of a batch would ask for one by one: the orders they name
-- and the replies to their ids.
local function prefetch(b, batch)
  local order_ids, names = {}, {}
  for i = 1, #batch do
    local values = batch[i]
    if values then
      order_ids[#order_ids + 1] = values.order_id
      if values.client_order_id and values.account then
        names[#names + 1] = memo_name(values.method.name, values)
      end
    end
  end
  book.prefetch_orders(b, order_ids)
  memory.prefetch(b, names)
end

-- execute: runs 1 to 256 commands, given as JSON objects with a method, in order, as one atomic
-- change.
-- Reply: an array with each command's JSON reply. A rejected command does not stop the others.
-- Rejects (as one reply): BATCH_TOO_LARGE, MALFORMED_COMMAND (no command), UNKNOWN_SYMBOL,
-- INVALID_BOOK_KEY.
local function execute(call_keys, arguments)
  local b, refusal = open_with(book.open, call_keys)
  if b and #arguments > batch_length_max then
    refusal = reject.new("BATCH_TOO_LARGE", "one execute takes at most 256 commands")
  elseif b and #arguments == 0 then
    refusal = reject.new("MALFORMED_COMMAND", "execute needs at least one command")
  end
  if refusal then
    return reject.json(refusal)
  end
  local batch, replies = decode_batch(arguments)
  begin(b)
  prefetch(b, batch)
  for i = 1, #batch do
    local values = batch[i]
    if values then
      local reply, refused = values.method.run(b, values)
      replies[i] = reply or reject.json(refused, values.client_order_id)
    end
  end
  return finish(b, replies)
end

-- ---- instruments and housekeeping

local define_schema = fields.schema({
  "tick_size",
  "lot_size",
  "min_quantity",
  "max_quantity",
  "status",
  "self_trade_prevention",
  "protection",
  "price_band",
  "min_notional",
  "open_orders_max",
  "events_length_max",
  "trades_length_max",
  "book_length_max",
}, {})

-- A refusal where the discovery hash has the symbol under another segment. On a cluster that key
-- is not this slot's: the read fails, and the caller of define_instrument keeps the hash instead.
local function other_segment_refusal(key)
  local segment, symbol = keys.parse(key)
  local known = redis.pcall("HGET", keys.instruments, symbol)
  if type(known) == "string" and known ~= segment then
    return reject.new("SYMBOL_IN_OTHER_SEGMENT", "the symbol is defined in another segment")
  end
  return nil
end

local function same_rules(left, right)
  return instrument.json(left, 0) == instrument.json(right, 0)
end

local function define(key, values)
  local known = instrument.load(key)
  local record, refusal = instrument.defined(key, values)
  if not record then
    return reject.json(refusal)
  end
  if known and same_rules(known, record) then
    return instrument.json(record, record.sequence)
  end
  local b = book.from(record)
  book.stamp(b)
  events.instrument_changed(b)
  record.sequence = b.call_sequence
  local rules = instrument.rule_pairs(record)
  local refused = events.append(b, {}, {})
  if refused then
    return refused
  end
  redis.call("HSET", key, "symbol", record.symbol, unpack(rules))
  redis.pcall("HSET", keys.instruments, record.symbol, record.segment)
  return instrument.json(record, record.sequence)
end

-- define_instrument: creates a book or changes its rules; fields not given keep their value.
-- Fields: tick_size lot_size min_quantity max_quantity status events_length_max trades_length_max
-- book_length_max.
-- Reply: as get_instrument.
-- Rejects: MISSING_FIELD, INVALID_NUMBER, INVALID_VALUE, QUANTITY_OFF_LOT, QUANTITY_TOO_SMALL,
-- INSTRUMENT_IN_USE, SYMBOL_IN_OTHER_SEGMENT.
local function define_instrument(call_keys, arguments)
  local key, refusal = book_key(call_keys)
  local values
  if key then
    values, refusal = fields.from_arguments(arguments, define_schema)
  end
  refusal = refusal or other_segment_refusal(key)
  if refusal then
    return reject.json(refusal)
  end
  return define(key, values)
end

local epoch_schema = fields.schema({ "run_id" }, { "run_id" })

-- begin_epoch: starts a new epoch when the server is not the one the book last saw.
-- Fields: run_id. Reply: epoch sequence. Rejects: those of the fields' forms.
local function begin_epoch(call_keys, arguments)
  local b, refusal = open_with(book.open, call_keys)
  local values
  if b then
    values, refusal = fields.from_arguments(arguments, epoch_schema)
  end
  if refusal then
    return reject.json(refusal)
  end
  local record = b.instrument
  if record.run_id ~= values.run_id then
    record.epoch = numbers.integer_text(tonumber(record.epoch) + 1)
    record.sequence = b.call_sequence
    book.stamp(b)
    events.epoch_begun(b)
    local refused = events.append(b, {}, {})
    if refused then
      return refused
    end
    local sequence = numbers.integer_text(b.call_sequence)
    local run_id, epoch = values.run_id, record.epoch
    redis.call("HSET", b.key, "run_id", run_id, "epoch", epoch, "sequence", sequence)
  end
  return string.format('{"epoch":%s,"sequence":%.0f}', record.epoch, record.sequence)
end

local empty_schema = fields.schema({}, {})

-- tick: does what is due and nothing else. Hosts call it at each publish interval.
-- Fields: none. Reply: expired_count triggered_count pending sequence. Rejects: UNKNOWN_SYMBOL,
-- INVALID_BOOK_KEY.
local function tick(call_keys, arguments)
  local b, refusal = open_with(book.open, call_keys)
  local values
  if b then
    values, refusal = fields.from_arguments(arguments, empty_schema)
  end
  if not values then
    return reject.json(refusal)
  end
  local expired_count = begin(b)
  local reply = string.format(
    '{"expired_count":%.0f,"triggered_count":0,"pending":%s,"sequence":%.0f}',
    expired_count,
    tostring(b.expiring),
    book.current_sequence(b)
  )
  return finish(b, reply)
end

-- The instrument and the fields of a call that only reads, or nil and why not.
local function open_query(call_keys, arguments, schema)
  local record, refusal = open_with(instrument.load, call_keys)
  if not record then
    return nil, refusal
  end
  local values, malformed = fields.from_arguments(arguments, schema)
  if not values then
    return nil, malformed
  end
  return record, values
end

local function published_message(record, now_ms)
  return string.format(
    '{"channel":"book","symbol":"%s","type":"snapshot","sequence":%.0f,"epoch":%s,'
      .. '"timestamp_ms":%.0f,%s}',
    record.symbol,
    record.sequence,
    record.epoch,
    now_ms,
    depth.json(record, depth.published_levels)
  )
end

-- publish_book: writes the top 10 to the stream `…:book` when the book changed since and 500 ms
-- have passed.
-- Fields: none. Reply: published sequence wait_ms. Rejects: UNKNOWN_SYMBOL, INVALID_BOOK_KEY.
local function publish_book(call_keys, arguments)
  local record, refusal = open_query(call_keys, arguments, empty_schema)
  if not record then
    return reject.json(refusal)
  end
  local now_ms = book.clock_ms()
  local last = redis.call("HMGET", record.key, "published_sequence", "published_timestamp_ms")
  local since_ms = now_ms - tonumber(last[2] or 0)
  local due = since_ms >= publish_interval_ms or since_ms < 0
  local published = due and record.sequence > tonumber(last[1] or 0)
  if published then
    local refused = events.publish_book(record, published_message(record, now_ms))
    if refused then
      return refused
    end
    local sequence, now = numbers.integer_text(record.sequence), numbers.integer_text(now_ms)
    local name = "published_sequence"
    redis.call("HSET", record.key, name, sequence, "published_timestamp_ms", now)
  end
  return string.format(
    '{"published":%s,"sequence":%.0f,"wait_ms":%.0f}',
    tostring(published),
    record.sequence,
    due and publish_interval_ms or publish_interval_ms - since_ms
  )
end

-- ---- queries

local book_schema = fields.schema({ "depth" }, {})

-- get_book: the best levels of both sides.
-- Fields: depth (1 to 10000 or full; 10). Reply: symbol sequence epoch bids asks checksum.
-- Rejects: INVALID_VALUE.
local function get_book(call_keys, arguments)
  local record, values = open_query(call_keys, arguments, book_schema)
  if not record then
    return reject.json(values)
  end
  local levels = values.depth or "10"
  levels = levels == "full" and depth.levels_max or tonumber(levels)
  if levels > depth.levels_max then
    return reject.json(reject.new("INVALID_VALUE", "depth must be at most 10000"))
  end
  return string.format(
    '{"symbol":"%s","sequence":%.0f,"epoch":%s,%s}',
    record.symbol,
    record.sequence,
    record.epoch,
    depth.json(record, levels)
  )
end

-- get_order: one open order.
-- Fields: order_id, or account and client_order_id. Reply: the order. Rejects: UNKNOWN_ORDER,
-- NOT_ORDER_OWNER.
local function get_order(call_keys, arguments)
  local b, refusal = open_with(book.open, call_keys)
  local values, o
  if b then
    values, refusal = fields.from_arguments(arguments, cancel_schema)
  end
  if values and values.client_order_id and not values.account then
    refusal = reject.new("MISSING_FIELD", "missing field account")
  elseif values then
    o, refusal = find_order(b, values)
  end
  if not o then
    return reject.json(refusal, fields.echo_argument(arguments))
  end
  return order_json(b, o)
    .. string.format(',"account":"%s","sequence":%.0f}', o.account, b.sequence)
end

local open_orders_schema = fields.schema({ "account", "after", "limit" }, { "account" })

-- The ids of an account's open orders after one of them, in order.
local function ids_after(record, account, after)
  local ids = {}
  for _, order_id in ipairs(redis.call("SMEMBERS", keys.account_orders(record.key, account))) do
    if tonumber(order_id) > after then
      ids[#ids + 1] = order_id
    end
  end
  table.sort(ids, function(left, right)
    return tonumber(left) < tonumber(right)
  end)
  return ids
end

-- get_open_orders: an account's open orders of this book by order_id, a page at a time.
-- Fields: account; after limit. Reply: account symbol sequence epoch orders more. Rejects:
-- INVALID_VALUE.
local function get_open_orders(call_keys, arguments)
  local b, refusal = open_with(book.open, call_keys)
  local values
  if b then
    values, refusal = fields.from_arguments(arguments, open_orders_schema)
  end
  local limit = tonumber((values or {}).limit or 500)
  if values and limit > orders_limit_max then
    refusal = reject.new("INVALID_VALUE", "limit must be at most 1000")
  end
  if refusal then
    return reject.json(refusal)
  end
  local ids = ids_after(b.instrument, values.account, tonumber(values.after or 0))
  local page, rows = {}, {}
  for i = 1, math.min(#ids, limit) do
    page[i] = ids[i]
  end
  book.prefetch_orders(b, page)
  for _, order_id in ipairs(page) do
    local o = book.order(b, order_id)
    rows[#rows + 1] = o and order_json(b, o) .. "}"
  end
  return string.format(
    '{"account":"%s","symbol":"%s","sequence":%.0f,"epoch":%s,"orders":[%s],"more":%s}',
    values.account,
    b.instrument.symbol,
    b.sequence,
    b.instrument.epoch,
    table.concat(rows, ","),
    tostring(#ids > limit)
  )
end

local trades_schema = fields.schema({ "limit" }, {})

-- The objects of a trades message, as they stand in its text.
local function trades_of(message)
  local list = string.match(message, '"trades":%[(.*)%]}$')
  local rows = {}
  for row in string.gmatch(list, "%b{}") do
    rows[#rows + 1] = row
  end
  return rows
end

-- The latest trades, newest first.
local function latest_trades(record, limit)
  local rows, to = {}, "+"
  while #rows < limit do
    local entries = redis.call("XREVRANGE", keys.trades(record.key), to, "-", "COUNT", 20)
    for _, entry in ipairs(entries) do
      local trades = trades_of(entry[2][2])
      for i = #trades, 1, -1 do
        rows[#rows + 1] = trades[i]
      end
      to = "(" .. entry[1]
    end
    if #entries < 20 then
      break
    end
  end
  return rows
end

-- get_trades: the most recent trades, oldest first.
-- Fields: limit (1 to 1000; 50). Reply: symbol sequence epoch trades. Rejects: INVALID_VALUE.
local function get_trades(call_keys, arguments)
  local record, values = open_query(call_keys, arguments, trades_schema)
  if not record then
    return reject.json(values)
  end
  local limit = tonumber(values.limit or 50)
  if limit > trades_limit_max then
    return reject.json(reject.new("INVALID_VALUE", "limit must be at most 1000"))
  end
  local latest = latest_trades(record, limit)
  local rows = {}
  for i = math.min(#latest, limit), 1, -1 do
    rows[#rows + 1] = latest[i]
  end
  return string.format(
    '{"symbol":"%s","sequence":%.0f,"epoch":%s,"trades":[%s]}',
    record.symbol,
    record.sequence,
    record.epoch,
    table.concat(rows, ",")
  )
end

-- get_instrument: the rules and state of an instrument.
-- Fields: none. Reply: the instrument. Rejects: UNKNOWN_SYMBOL, INVALID_BOOK_KEY.
local function get_instrument(call_keys, arguments)
  local record, refusal = open_query(call_keys, arguments, empty_schema)
  if not record then
    return reject.json(refusal)
  end
  return instrument.json(record, record.sequence)
end

-- verify_book: checks every invariant of the stored book.
-- Fields: none. Reply: verified, then orders levels sequence state_hash, or violations. Rejects:
-- UNKNOWN_SYMBOL.
local function verify_book(call_keys, arguments)
  local record, refusal = open_query(call_keys, arguments, empty_schema)
  if not record then
    return reject.json(refusal)
  end
  return verify.json(record)
end

-- library_version: which library this server runs.
-- Fields: none. Reply: library version digest.
local function library_version()
  return '{"library":"orderbook","version":"'
    .. library.version
    .. '","digest":"'
    .. library.digest
    .. '"}'
end

-- ---- registration

-- Cancels free memory, and the book must be seen to shrink: they run though memory is full.
local when_memory_is_full = { "allow-oom" }
local read_only = { "no-writes" }

local function register(name, callback, flags)
  redis.register_function({ function_name = name, callback = callback, flags = flags })
end

function commands.register()
  register("define_instrument", define_instrument, {})
  register("place_order", single(methods.place_order), {})
  register("amend_order", single(methods.amend_order), {})
  register("cancel_order", single(methods.cancel_order), when_memory_is_full)
  register("cancel_all_orders", single(methods.cancel_all_orders), when_memory_is_full)
  register("execute", execute, {})
  register("publish_book", publish_book, when_memory_is_full)
  register("tick", tick, when_memory_is_full)
  register("begin_epoch", begin_epoch, when_memory_is_full)
  register("get_book", get_book, read_only)
  register("get_order", get_order, read_only)
  register("get_open_orders", get_open_orders, read_only)
  register("get_trades", get_trades, read_only)
  register("get_instrument", get_instrument, read_only)
  register("verify_book", verify_book, read_only)
  register("library_version", library_version, read_only)
end

commands.register()

return commands
