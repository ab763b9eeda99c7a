-- Quotes: the orders of a market maker, replaced all at once.
--
-- A quote is a limit order like any other, marked as one. Which an account has stands in a set of
-- its own, so that finding them costs nothing to an account with many other orders.

local book = require("book/book")
local orders = require("book/orders")
local order_reports = require("market_data/order_reports")
local circuit_breaker = require("matching/circuit_breaker")
local order_entry = require("matching/order_entry")
local trading_status = require("matching/trading_status")
local validity = require("matching/validity")
local idempotency = require("transaction/idempotency")
local working_copy = require("transaction/working_copy")
local fields = require("values/fields")
local reject = require("values/reject")

local mass_quote = { name = "mass_quote" }

local quotes_max = 100
local text_length_max = 65536

mass_quote.schema = fields.schema({
  "account",
  "quotes",
  "post_only",
  "self_trade_prevention",
  "stp_group",
  "session",
  "valid_until_ms",
}, { "account", "quotes" }, 3)

local quote_fields = { side = true, price = true, quantity = true, client_order_id = true }

local function malformed()
  local message = "quotes must be a list of at most 100 objects with side, price, quantity"
  return nil, reject.new("INVALID_VALUE", message)
end

-- How many fields a quote has, or nil where it is none.
local function quote_length(quote)
  if type(quote) ~= "table" or not quote.side or not quote.price or not quote.quantity then
    return nil
  end
  local count = 0
  for name, value in pairs(quote) do
    if not quote_fields[name] or not fields.fits(name, value) then
      return nil
    end
    count = count + 1
  end
  return count
end

-- The quotes of a text, or nil and why not. A decoder takes a zero byte for the text's end, an
-- object for an empty list, and of equal names the last.
local function decoded(text)
  if #text > text_length_max or text:find("\0", 1, true) or not text:find("^%s*%[") then
    return malformed()
  end
  local is_json, quotes = pcall(cjson.decode, text)
  if not is_json or type(quotes) ~= "table" or #quotes > quotes_max then
    return malformed()
  end
  local count = 0
  for i = 1, #quotes do
    local length = quote_length(quotes[i])
    if not length then
      return malformed()
    end
    count = count + length
  end
  if count < fields.names_count(text) then
    return malformed()
  end
  return quotes
end

-- Cancels the account's quotes. Returns their ids.
local function withdraw(tx, account)
  local order_ids = orders.quote_ids(tx, account)
  for _, order_id in ipairs(order_ids) do
    local order = orders.find(tx, order_id)
    book.remove(tx, order)
    order_reports.canceled(tx, order, "replaced")
  end
  return order_ids
end

-- Places one quote as the command's other fields say. Returns the reply, or nil and why not.
local function place(tx, values, quote)
  local name = quote.client_order_id
  if name and orders.find_client_order(tx, values.account, name) then
    local message = "an open order has this client_order_id"
    return reject.with("DUPLICATE_CLIENT_ORDER_ID", message)
  end
  quote.account, quote.order_type, quote.rare = values.account, "limit", values.rare
  quote.post_only = values.post_only
  quote.self_trade_prevention, quote.stp_group = values.self_trade_prevention, values.stp_group
  quote.session = values.session
  local order, fills = order_entry.check_terms(tx, quote)
  if not order then
    return nil, fills
  end
  order.attributes = order.attributes or {}
  order.attributes.quote = true
  if name then
    idempotency.discard_stored_reply(tx, values.account, name)
  end
  return order_entry.accept(tx, order, fills)
end

-- Places the quotes one after the other; their replies. Whether orders are taken now is asked
-- before the first: what the trades of one trigger comes after all of them. But where one trips the
-- breaker the next finds the new status, and where one is paused the next must wait for it.
local function place_all(tx, values, quotes)
  local closed, placed = order_entry.closed_refusal(tx), {}
  for i = 1, #quotes do
    local quote = quotes[i]
    local reply, refusal
    if not closed then
      reply, refusal = place(tx, values, quote)
    end
    if reply and tx.breaker then
      circuit_breaker.apply(tx)
      closed = trading_status.closed_refusal(tx.instrument)
    end
    closed = closed or order_entry.paused_refusal(tx)
    placed[i] = reply or reject.json(closed or refusal, quote.client_order_id)
  end
  return placed
end

-- mass_quote: replaces all quotes of an account by new ones, in every status of the instrument as
-- far as the old ones go. A quote that is refused does not stop the others. What is sent again is
-- done again, which leaves the same quotes: no reply is remembered.
-- Fields: account quotes (JSON: a list of 0 to 100 objects of side price quantity client_order_id);
-- post_only self_trade_prevention stp_group session valid_until_ms.
-- Reply: account canceled_order_ids placed (each as place_order, or its refusal) sequence
-- timestamp_ms.
-- Rejects: INVALID_VALUE, TOO_LATE, BATCH_TOO_LARGE, OUT_OF_MEMORY, and those of the fields' forms.
function mass_quote.run(tx, values)
  local quotes, refusal = decoded(values.quotes)
  refusal = refusal or (values.rare and validity.lateness_refusal(tx, values))
  refusal = refusal or (quotes[1] and validity.memory_refusal(tx))
  if refusal then
    return nil, refusal
  end
  if #quotes > tx.quotes_left then
    return reject.with("BATCH_TOO_LARGE", "one execute places at most 2000 quotes")
  end
  tx.quotes_left = tx.quotes_left - #quotes
  local order_ids = withdraw(tx, values.account)
  local placed = place_all(tx, values, quotes)
  return string.format(
    '{"account":"%s","canceled_order_ids":[%s],"placed":[%s],"sequence":%.0f,"timestamp_ms":%s}',
    values.account,
    #order_ids > 0 and '"' .. table.concat(order_ids, '","') .. '"' or "",
    table.concat(placed, ","),
    working_copy.current_sequence(tx),
    tx.timestamp_ms
  )
end

return mass_quote
