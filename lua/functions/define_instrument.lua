-- The definition of an instrument: its rules as they would be with new fields, and the writing of
-- them.

local book = require("book/book")
local instrument_json = require("market_data/instrument_json")
local trading_status = require("matching/trading_status")
local instrument_record = require("records/instrument_record")
local epoch = require("transaction/epoch")
local transaction = require("transaction/transaction")
local working_copy = require("transaction/working_copy")
local fields = require("values/fields")
local hints = require("values/hints")
local keys = require("values/keys")
local numbers = require("values/numbers")
local reject = require("values/reject")

local define_instrument = {}

local stream_length_max = 10000000
local iceberg_parts_most = 10000

-- What a book starts with when define_instrument names nothing else.
local function fresh(book_key)
  local segment, symbol = keys.parse(book_key)
  return {
    key = book_key,
    segment = segment,
    symbol = symbol,
    status = "trading",
    sequence = 0,
    epoch = "0",
    last_order_id = 0,
    last_trade_id = 0,
    last_priority = 0,
    open_orders = 0,
    largest_order_lots = 0,
    events_length_max = "100000",
    trades_length_max = "100000",
    book_length_max = "1000",
    features = false,
  }
end

local function apply_step(instrument, values, name)
  if values[name] == nil then
    return true
  end
  local step = numbers.step(values[name])
  if not step then
    local rule = name .. " must be decimal text above zero, with at most 15 decimals"
    return reject.with(
      "INVALID_NUMBER",
      hints.with_nearest(rule, hints.nearest_number(values[name]))
    )
  end
  if instrument[name] ~= nil and instrument[name] ~= step.text and instrument.open_orders > 0 then
    return reject.with("INSTRUMENT_IN_USE", name .. " cannot change while orders are open")
  end
  instrument[name] = step.text
  return true
end

local function apply_quantity_limit(instrument, values, name)
  local text = values[name] or instrument[name]
  if not text then
    return true
  end
  local lots, refusal = instrument_record.lots(instrument, text, name)
  if not lots then
    return nil, refusal
  end
  if lots == 0 then
    return reject.with("QUANTITY_TOO_SMALL", name .. " must be above zero")
  end
  instrument[name] = numbers.text(lots, instrument.quantity_step)
  return true
end

local feature_rules = {
  "self_trade_prevention",
  "protection",
  "price_band",
  "min_notional",
  "open_orders_max",
  "iceberg_parts_max",
  "limit_percent",
  "window_ms",
  "breaker_status",
  "breaker_duration_ms",
}

-- Applies the rules of features. min_notional must be exact in the instrument's steps,
-- also in new ones.
local function apply_features(instrument, values)
  for _, name in ipairs(feature_rules) do
    if values[name] then
      instrument_record.extend(instrument)[name] = values[name]
    end
  end
  local features = instrument.features
  if not features then
    return true
  end
  if tonumber(features.open_orders_max) > stream_length_max then
    return reject.with("INVALID_VALUE", "open_orders_max must be at most 10000000")
  end
  if tonumber(features.iceberg_parts_max) > iceberg_parts_most then
    return reject.with("INVALID_VALUE", "iceberg_parts_max must be from 1 to 10000")
  end
  local least = instrument_record.notional(instrument, features.min_notional)
  if not least then
    return nil,
      instrument_record.notional_refusal(instrument, "min_notional", features.min_notional)
  end
  features.min_notional = instrument_record.notional_text(instrument, least)
  features.protection = numbers.percent_text(features.protection)
  features.price_band = numbers.percent_text(features.price_band)
  features.limit_percent = numbers.percent_text(features.limit_percent)
  return true
end

local function apply_rest(instrument, values)
  for _, name in ipairs({ "events_length_max", "trades_length_max", "book_length_max" }) do
    local text = values[name]
    if text and tonumber(text) > stream_length_max then
      return reject.with("INVALID_VALUE", name .. " must be at most 10000000")
    end
    instrument[name] = text or instrument[name]
  end
  instrument.status = values.status or instrument.status
  if values.status and instrument.features then
    -- The status that an operator sets stays until the operator changes it.
    instrument.features.reopen_time_ms = "0"
    instrument.features.halt_reason = ""
  end
  return true
end

-- The instrument as it would be with these fields applied, or nil and why not. Writes nothing.
local function defined(book_key, values)
  local instrument = instrument_record.load(book_key) or fresh(book_key)
  for _, name in ipairs({ "tick_size", "lot_size" }) do
    if not instrument[name] and not values[name] then
      return reject.with("MISSING_FIELD", "missing field " .. name)
    end
    local applied, refusal = apply_step(instrument, values, name)
    if not applied then
      return nil, refusal
    end
  end
  instrument.quantity_step, instrument.quantity_texts = numbers.step(instrument.lot_size), {}
  for _, name in ipairs({ "min_quantity", "max_quantity" }) do
    local applied, refusal = apply_quantity_limit(instrument, values, name)
    if not applied then
      return nil, refusal
    end
  end
  local applied, refusal = apply_rest(instrument, values)
  if not applied then
    return nil, refusal
  end
  instrument_record.with_steps(instrument)
  applied, refusal = apply_features(instrument, values)
  if not applied then
    return nil, refusal
  end
  if instrument.quantity_min > instrument.quantity_max then
    return reject.with("INVALID_VALUE", "min_quantity is above max_quantity")
  end
  return instrument
end

local schema = fields.schema({
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
  "iceberg_parts_max",
  "limit_percent",
  "window_ms",
  "breaker_status",
  "breaker_duration_ms",
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
  return instrument_json.text(left, 0) == instrument_json.text(right, 0)
end

local function define(key, values)
  local known = instrument_record.load(key)
  local instrument, refusal = defined(key, values)
  if not instrument then
    return reject.json(refusal)
  end
  if known and same_rules(known, instrument) then
    return instrument_json.text(instrument, instrument.sequence)
  end
  local tx = working_copy.from(instrument)
  local refused = working_copy.missing_key_error(tx)
  if refused then
    return refused
  end
  refusal = known and trading_status.set(tx, known)
  if refusal then
    return reject.json(refusal)
  end
  working_copy.set_time(tx)
  if known then
    epoch.follow_server(tx)
  else
    epoch.start(tx)
  end
  book.change_rules(tx)
  if trading_status.is_uncrossing(tx) then
    transaction.begin(tx, tx.now_ms)
  end
  instrument.sequence = tx.call_sequence
  refused = transaction.commit(tx)
  if refused then
    return refused
  end
  redis.pcall("HSET", keys.instruments, instrument.symbol, instrument.segment)
  return instrument_json.text(instrument, instrument.sequence)
end

-- define_instrument: creates a book or changes its rules; fields not given keep their value.
-- Fields: tick_size lot_size min_quantity max_quantity status self_trade_prevention protection
-- price_band min_notional open_orders_max iceberg_parts_max limit_percent window_ms breaker_status
-- breaker_duration_ms events_length_max trades_length_max book_length_max.
-- Reply: as get_instrument.
-- Rejects: MISSING_FIELD, INVALID_NUMBER, INVALID_VALUE, QUANTITY_OFF_LOT, QUANTITY_TOO_SMALL,
-- INSTRUMENT_IN_USE, SYMBOL_IN_OTHER_SEGMENT, AUCTION_CROSSED, UNCROSSING.
function define_instrument.call(call_keys, arguments)
  local key, refusal = transaction.book_key(call_keys)
  local values
  if key then
    values, refusal = fields.from_arguments(arguments, schema)
  end
  refusal = refusal or other_segment_refusal(key)
  if refusal then
    return reject.json(refusal)
  end
  return define(key, values)
end

return define_instrument
