-- The list of registered functions, and those of them that have no file of their own. Each opens
-- with its contract; what they share is the way of a command:
--
--   fields -> remembered? -> checks against instrument and book -> plan -> working copy -> reply
--
-- A command runs against a working copy (working_copy.lua) and returns its reply as JSON text.
-- Nothing is written before all commands of the call have run; `transaction.transact` writes, once.
-- `execute` is therefore the same as single calls, only that they share one sequence.

local amend_order = require("functions/amend_order")
local begin_epoch = require("functions/begin_epoch")
local cancel_all_after = require("functions/cancel_all_after")
local cancel_all_orders = require("functions/cancel_all_orders")
local cancel_order = require("functions/cancel_order")
local define_instrument = require("functions/define_instrument")
local mass_quote = require("functions/mass_quote")
local order_history = require("functions/order_history")
local place_order = require("functions/place_order")
local place_order_list = require("functions/place_order_list")
local publish_book = require("functions/publish_book")
local queries = require("functions/queries")
local replace_order = require("functions/replace_order")
local set_stp_group = require("functions/set_stp_group")
local several_books = require("functions/several_books")
local tick = require("functions/tick")
local library = require("library")
local access = require("server/access")
local server = require("server/server")
local batch = require("transaction/batch")
local transaction = require("transaction/transaction")
local working_copy = require("transaction/working_copy")
local fields = require("values/fields")
local reject = require("values/reject")

local batch_length_max = 256

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
    local tx, refusal = transaction.open_with(working_copy.open, call_keys)
    if not tx then
      return reject.json(refusal)
    end
    local values, malformed = fields.from_arguments(arguments, method.schema)
    local one = { list = { values or false }, replies = {} }
    if values then
      values.method = method
    else
      one.replies[1] = reject.json(malformed, fields.echo_argument(arguments))
    end
    local written, refused = transaction.transact(tx, one)
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
  local tx, refusal = transaction.open_with(working_copy.open, call_keys)
  if tx and #arguments > batch_length_max then
    refusal = reject.new("BATCH_TOO_LARGE", "one execute takes at most 256 commands")
  elseif tx and #arguments == 0 then
    refusal = reject.new("MALFORMED_COMMAND", "execute needs at least one command")
  end
  if refusal then
    return reject.json(refusal)
  end
  local list, replies = batch.decode(arguments, methods)
  local many = { list = list, replies = replies, prefetch = batch.prefetch }
  local written, refused = transaction.transact(tx, many)
  return written and replies or refused
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
  local instrument, refusal = transaction.open_query(call_keys, arguments, queries.no_fields)
  if not instrument then
    return reject.json(refusal)
  end
  return string.format('{"symbol":"%s","sequence":%.0f}', instrument.symbol, instrument.sequence)
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
-- validity.memory_refusal.
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

register("define_instrument", define_instrument.call, {})
register("place_order", single(methods.place_order), {})
register("place_order_list", single(methods.place_order_list), {})
register("amend_order", single(methods.amend_order), when_memory_is_full)
register("cancel_order", single(methods.cancel_order), when_memory_is_full)
register("replace_order", single(methods.replace_order), {})
register("mass_quote", single(methods.mass_quote), when_memory_is_full)
register("cancel_all_orders", cancel_all_orders_in_books, when_memory_is_full)
register("cancel_all_after", single(methods.cancel_all_after), when_memory_is_full)
register("execute", execute, {})
register("publish_book", publish_book.call, when_memory_is_full)
register("tick", tick.call, when_memory_is_full)
register("probe_book", probe_book, {})
register("begin_epoch", begin_epoch.call, when_memory_is_full)
register("set_stp_group", set_stp_group.call, {})
register("get_stp_group", set_stp_group.get, read_only)
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
