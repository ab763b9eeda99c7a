-- The list of registered functions, and those of them that have no file of their own. Each opens
-- with its contract; what they share is the way of a command:
--
--   fields -> remembered? -> checks against instrument and book -> plan -> working copy -> reply
--
-- A command runs against a working copy (book.lua) and returns its reply as JSON text. Nothing is
-- written before all commands of the call have run; `transaction.transact` writes, once. `execute`
-- is therefore the same as single calls, only that they share one sequence.

local book = require("book/book")
local stp_groups = require("book/stp_groups")
local amend_order = require("functions/amend_order")
local cancel_all_after = require("functions/cancel_all_after")
local cancel_all_orders = require("functions/cancel_all_orders")
local cancel_order = require("functions/cancel_order")
local mass_quote = require("functions/mass_quote")
local order_history = require("functions/order_history")
local place_order = require("functions/place_order")
local place_order_list = require("functions/place_order_list")
local queries = require("functions/queries")
local replace_order = require("functions/replace_order")
local several_books = require("functions/several_books")
local library = require("library")
local candles = require("market_data/candles")
local depth = require("market_data/depth")
local events = require("market_data/events")
local auction = require("matching/auction")
local trading_status = require("matching/trading_status")
local trigger_queue = require("matching/trigger_queue")
local instrument_record = require("records/instrument_record")
local acceptance = require("server/acceptance")
local access = require("server/access")
local server = require("server/server")
local batch = require("transaction/batch")
local epoch = require("transaction/epoch")
local transaction = require("transaction/transaction")
local working_copy = require("transaction/working_copy")
local fields = require("values/fields")
local keys = require("values/keys")
local limits = require("values/limits")
local numbers = require("values/numbers")
local reject = require("values/reject")

local batch_length_max = 256
local publish_interval_ms = 500

-- The commands that `execute` takes, too.
local methods = {
  place_order = place_order,
  place_order_list = place_order_list,
  cancel_order = cancel_order,
  amend_order = amend_order,
  cancel_all_orders = cancel_all_orders,
  replace_order = replace_order,
  mass_quote = mass_quote,
  cancel_all_after = cancel_all_after,
}

local function single(method)
  return function(call_keys, arguments)
    local b, refusal = transaction.open_with(working_copy.open, call_keys)
    if not b then
      return reject.json(refusal)
    end
    local values, malformed = fields.from_arguments(arguments, method.schema)
    local one = { list = { values or false }, replies = {} }
    if values then
      values.method = method
    else
      one.replies[1] = reject.json(malformed, fields.echo_argument(arguments))
    end
    local written, refused = transaction.transact(b, one)
    return written and one.replies[1] or refused
  end
end

local cancel_all_of_one = single(methods.cancel_all_orders)

-- cancel_all_orders: of one book or, with several keys, of all of them.
local function cancel_all_orders_in_books(call_keys, arguments)
  if #call_keys > 1 then
    return several_books.cancel_in_books(call_keys, arguments)
  end
  return cancel_all_of_one(call_keys, arguments)
end

-- execute: runs 1 to 256 commands, given as JSON objects with a method, in order, as one atomic
-- change.
-- Reply: an array with each command's JSON reply. A rejected command does not stop the others.
-- Rejects (as one reply): BATCH_TOO_LARGE, MALFORMED_COMMAND (no command), UNKNOWN_SYMBOL,
-- INVALID_BOOK_KEY.
local function execute(call_keys, arguments)
  local b, refusal = transaction.open_with(working_copy.open, call_keys)
  if b and #arguments > batch_length_max then
    refusal = reject.new("BATCH_TOO_LARGE", "one execute takes at most 256 commands")
  elseif b and #arguments == 0 then
    refusal = reject.new("MALFORMED_COMMAND", "execute needs at least one command")
  end
  if refusal then
    return reject.json(refusal)
  end
  local list, replies = batch.decode(arguments, methods)
  local many = { list = list, replies = replies, prefetch = batch.prefetch }
  local written, refused = transaction.transact(b, many)
  return written and replies or refused
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
  return instrument_record.json(left, 0) == instrument_record.json(right, 0)
end

local function define(key, values)
  local known = instrument_record.load(key)
  local record, refusal = instrument_record.defined(key, values)
  if not record then
    return reject.json(refusal)
  end
  if known and same_rules(known, record) then
    return instrument_record.json(record, record.sequence)
  end
  local b = working_copy.from(record)
  local refused = working_copy.missing_key_error(b)
  if refused then
    return refused
  end
  refusal = known and trading_status.set(b, known)
  if refusal then
    return reject.json(refusal)
  end
  working_copy.stamp(b)
  if known then
    epoch.follow_server(b)
  else
    epoch.start(b)
  end
  book.change_rules(b)
  if trading_status.is_uncrossing(b) then
    transaction.begin(b, b.now_ms)
  end
  record.sequence = b.call_sequence
  refused = transaction.commit(b)
  if refused then
    return refused
  end
  redis.pcall("HSET", keys.instruments, record.symbol, record.segment)
  return instrument_record.json(record, record.sequence)
end

-- define_instrument: creates a book or changes its rules; fields not given keep their value.
-- Fields: tick_size lot_size min_quantity max_quantity status self_trade_prevention protection
-- price_band min_notional open_orders_max iceberg_parts_max limit_percent window_ms breaker_status
-- breaker_duration_ms events_length_max trades_length_max book_length_max.
-- Reply: as get_instrument.
-- Rejects: MISSING_FIELD, INVALID_NUMBER, INVALID_VALUE, QUANTITY_OFF_LOT, QUANTITY_TOO_SMALL,
-- INSTRUMENT_IN_USE, SYMBOL_IN_OTHER_SEGMENT, AUCTION_CROSSED, UNCROSSING.
local function define_instrument(call_keys, arguments)
  local key, refusal = transaction.book_key(call_keys)
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
  local b, refusal = transaction.open_with(working_copy.open, call_keys)
  local values
  if b then
    values, refusal = fields.from_arguments(arguments, epoch_schema)
  end
  if refusal then
    return reject.json(refusal)
  end
  local record = b.instrument
  if record.run_id ~= values.run_id then
    working_copy.stamp(b)
    epoch.begin(b, values.run_id)
    record.sequence = b.call_sequence
    local refused = working_copy.missing_key_error(b) or transaction.commit(b)
    if refused then
      return refused
    end
  end
  return string.format('{"epoch":%s,"sequence":%.0f}', record.epoch, record.sequence)
end

local account_schema = fields.schema({ "account" }, { "account" })
local group_schema = fields.schema({ "account", "stp_group" }, { "account" })

local function group_json(record, account, group)
  local group_member = group and ',"stp_group":"' .. group .. '"' or ""
  return string.format('{"account":"%s","segment":"%s"%s}', account, record.segment, group_member)
end

-- set_stp_group: puts an account into a group, in place of the one it was in, or into none.
-- Fields: account stp_group (none: the account leaves its group). Reply: account segment stp_group.
-- Rejects: TOO_MANY_STP_GROUP_ACCOUNTS, UNKNOWN_SYMBOL, and those of the fields' forms.
local function set_stp_group(call_keys, arguments)
  local record, values = transaction.open_query(call_keys, arguments, group_schema)
  if not record then
    return reject.json(values)
  end
  local key, account, group = keys.stp_groups(record.segment), values.account, values.stp_group
  local refused = acceptance.error(group and "HSET" or "HDEL", key, {})
  if refused then
    return refused
  end
  if not group then
    redis.call("HDEL", key, account)
    return group_json(record, account, false)
  end
  local is_new = redis.call("HEXISTS", key, account) == 0
  if is_new and redis.call("HLEN", key) >= stp_groups.accounts_max then
    local message = ("%d accounts of the segment belong to groups"):format(stp_groups.accounts_max)
    return reject.json(reject.new("TOO_MANY_STP_GROUP_ACCOUNTS", message))
  end
  redis.call("HSET", key, account, group)
  return group_json(record, account, group)
end

-- get_stp_group: the group that an account belongs to.
-- Fields: account. Reply: as set_stp_group. Rejects: UNKNOWN_SYMBOL.
local function get_stp_group(call_keys, arguments)
  local record, values = transaction.open_query(call_keys, arguments, account_schema)
  if not record then
    return reject.json(values)
  end
  local group = redis.call("HGET", keys.stp_groups(record.segment), values.account)
  return group_json(record, values.account, group)
end

-- Whether more is due than one call may do.
local function is_behind(b)
  local is_trading = b.instrument.status == "trading"
  local is_limited = b.expiring or b.canceling or trading_status.is_uncrossing(b)
  return is_limited or (is_trading and trigger_queue.has_items(b))
end

-- tick: does what is due and nothing else. Hosts call it at each publish interval.
-- Fields: none. Reply: expired_count canceled_count triggered_count pending sequence. Rejects:
-- UNKNOWN_SYMBOL, INVALID_BOOK_KEY.
local function tick(call_keys, arguments)
  local record, refusal = transaction.open_query(call_keys, arguments, queries.no_fields)
  if not record then
    return reject.json(refusal)
  end
  local done = '{"expired_count":%.0f,"canceled_count":%.0f,"triggered_count":%.0f,"pending":%s,'
    .. '"sequence":%.0f}'
  local b = working_copy.from(record)
  -- An instrument without features never has anything due, and many hosts ask twice a second.
  local is_idle = not record.extended and not epoch.is_due(record)
  local damaged = (is_idle and working_copy.missing_key_error(b))
    or working_copy.missing_stream_error(b)
  if damaged then
    return damaged
  end
  if is_idle then
    return done:format(0, 0, 0, "false", record.sequence)
  end
  local written, refused = transaction.transact(b, { list = {}, replies = {} })
  if not written then
    return refused
  end
  b = written
  local triggered_count = limits.triggers_per_call_max - b.triggers_left
  local pending, sequence = tostring(is_behind(b)), working_copy.current_sequence(b)
  return done:format(b.expired_count, b.timer_cancel_count, triggered_count, pending, sequence)
end

-- What an auction would come to now, for the half-second book; empty where there is none.
local function auction_member(record)
  if record.status ~= "auction" then
    return ""
  end
  return ',"auction":{' .. auction.outcome_json(working_copy.from(record)):sub(2) .. "}"
end

local function published_message(record, now_ms)
  local head = '{"channel":"book","symbol":"%s","type":"snapshot","sequence":%.0f,"epoch":%s,'
    .. '"timestamp_ms":%.0f,'
  local pieces = { head:format(record.symbol, record.sequence, record.epoch, now_ms) }
  depth.add_json(pieces, record, depth.published_levels)
  pieces[#pieces + 1] = auction_member(record) .. "}"
  return table.concat(pieces)
end

local function update_head(record, channel)
  return '{"channel":"' .. channel .. '","symbol":"' .. record.symbol .. '","type":"update"'
end

-- What the half-second stream gets, as topic, message, …: the book, the ticker, and where there was
-- a trade since the last time the two latest candles of each interval: the one before may have
-- ended in between.
local function published_messages(record, now_ms)
  local ticker = update_head(record, "ticker") .. queries.ticker_members(record) .. "}"
  local list = { "book", published_message(record, now_ms), "ticker", ticker }
  local last_trade_id = redis.call("HGET", record.key, "published_trade_id")
  if record.last_trade_id == tonumber(last_trade_id or 0) then
    return list
  end
  for _, interval in ipairs(candles.intervals) do
    local rows = candles.candles(record, interval, 2, numbers.exact_max)
    list[#list + 1] = "candles:" .. interval
    list[#list + 1] = string.format(
      '%s,"interval":"%s","sequence":%.0f,"epoch":%s,"candles":%s}',
      update_head(record, "candles"),
      interval,
      record.sequence,
      record.epoch,
      rows
    )
  end
  return list
end

-- publish_book: writes the top 10, the ticker and the candles that changed to the stream `…:book`
-- when the book changed since and 500 ms have passed.
-- Fields: none. Reply: published sequence wait_ms. Rejects: UNKNOWN_SYMBOL, INVALID_BOOK_KEY.
local function publish_book(call_keys, arguments)
  local record, refusal = transaction.open_query(call_keys, arguments, queries.no_fields)
  if not record then
    return reject.json(refusal)
  end
  local now_ms = working_copy.clock_ms()
  local last = redis.call("HMGET", record.key, "published_sequence", "published_timestamp_ms")
  local since_ms = now_ms - tonumber(last[2] or 0)
  local due = since_ms >= publish_interval_ms or since_ms < 0
  local published = due and record.sequence > tonumber(last[1] or 0)
  if published then
    local refused = events.publish_book(record, published_messages(record, now_ms))
    if refused then
      return refused
    end
    local sequence, now = numbers.integer_text(record.sequence), numbers.integer_text(now_ms)
    local trade_id = numbers.integer_text(record.last_trade_id)
    local state = { "published_sequence", sequence, "published_trade_id", trade_id }
    redis.call("HSET", record.key, "published_timestamp_ms", now, unpack(state))
  end
  return string.format(
    '{"published":%s,"sequence":%.0f,"wait_ms":%.0f}',
    tostring(published),
    record.sequence,
    due and publish_interval_ms or publish_interval_ms - since_ms
  )
end

-- probe_book: whether commands on this book would be carried out now; carries none out. For hosts
-- that ask whether they are ready: as a command it is refused where memory is full, on a replica,
-- where replicas are missing, and for a Redis user without the rights; also where there is no book.
-- Fields: none. Reply: symbol sequence. Rejects: UNKNOWN_SYMBOL, INVALID_BOOK_KEY.
local function probe_book(call_keys, arguments)
  local denied = call_keys[1] and access.error(call_keys[1])
  if denied then
    return denied
  end
  local record, refusal = transaction.open_query(call_keys, arguments, queries.no_fields)
  if not record then
    return reject.json(refusal)
  end
  return string.format('{"symbol":"%s","sequence":%.0f}', record.symbol, record.sequence)
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

-- What takes risk off, or only keeps it, runs though memory is full: cancels, smaller amends, no
-- quotes, timers. The book must be seen to shrink. What of these could add risk is refused by
-- terms.memory_refusal.
local when_memory_is_full = { "allow-oom" }
local read_only = { "no-writes" }

-- A book whose hash slot is being moved is no book that a function may look at: see server.lua.
local function where_slot_stays(callback)
  return function(call_keys, arguments)
    local refused = call_keys[1] and server.moving_error(call_keys[1])
    return refused or callback(call_keys, arguments)
  end
end

local function register(name, callback, flags)
  local guarded = where_slot_stays(callback)
  redis.register_function({ function_name = name, callback = guarded, flags = flags })
end

register("define_instrument", define_instrument, {})
register("place_order", single(methods.place_order), {})
register("place_order_list", single(methods.place_order_list), {})
register("amend_order", single(methods.amend_order), when_memory_is_full)
register("cancel_order", single(methods.cancel_order), when_memory_is_full)
register("replace_order", single(methods.replace_order), {})
register("mass_quote", single(methods.mass_quote), when_memory_is_full)
register("cancel_all_orders", cancel_all_orders_in_books, when_memory_is_full)
register("cancel_all_after", single(methods.cancel_all_after), when_memory_is_full)
register("execute", execute, {})
register("publish_book", publish_book, when_memory_is_full)
register("tick", tick, when_memory_is_full)
register("probe_book", probe_book, {})
register("begin_epoch", begin_epoch, when_memory_is_full)
register("set_stp_group", set_stp_group, {})
register("get_stp_group", get_stp_group, read_only)
register("get_book", queries.get_book, read_only)
register("get_level3", queries.get_level3, read_only)
register("get_order", queries.get_order, read_only)
register("get_open_orders", queries.get_open_orders, read_only)
register("get_trades", queries.get_trades, read_only)
register("get_candles", queries.get_candles, read_only)
register("get_ticker", queries.get_ticker, read_only)
register("get_auction", queries.get_auction, read_only)
register("get_closed_orders", order_history.get_closed_orders, read_only)
register("get_own_trades", order_history.get_own_trades, read_only)
register("get_instrument", queries.get_instrument, read_only)
register("verify_book", queries.verify_book, read_only)
register("library_version", library_version, read_only)
