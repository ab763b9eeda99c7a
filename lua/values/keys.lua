-- Every key name, and nothing else.
--
-- A book is named by its own key, orderbook:{SEGMENT}:SYMBOL, a hash with the instrument and its
-- state. All its other keys begin with that name; the braces keep a segment's books in one hash
-- slot.

local keys = {}

-- Hash symbol -> segment: where the books are, for discovery. The one key outside a segment.
keys.instruments = "orderbook:instruments"

-- Hash account -> stp_group of a segment. Lower case, so that no symbol can take the name.
function keys.stp_groups(segment)
  return "orderbook:{" .. segment .. "}:stp_groups"
end

local book_pattern = "^orderbook:{([%w_%-]+)}:([%u%d%._%-]+)$"
local name_length_max = 32

-- What a book's key says, and the keys that nearly every call uses, by the book's key. They follow
-- from it alone, so they are no state; they are forgotten before they are many.
local names_max = 1000
local names_of, names_count = {}, 0

local function read_names(book)
  local segment, symbol = book:match(book_pattern)
  if not segment or #segment > name_length_max or #symbol > name_length_max then
    return nil
  end
  return {
    segment = segment,
    symbol = symbol,
    bids = keys.bids(book),
    asks = keys.asks(book),
    bid_levels = keys.levels(keys.bids(book)),
    ask_levels = keys.levels(keys.asks(book)),
    orders = keys.orders(book),
    client_orders = keys.client_orders(book),
    events = keys.events(book),
  }
end

-- The names { segment, symbol, bids, … } of a book by its key; nil where that is none.
function keys.names(book)
  local names = names_of[book]
  if names then
    return names
  end
  if names_count == names_max then
    names_of, names_count = {}, 0
  end
  names = read_names(book)
  if names then
    names_of[book], names_count = names, names_count + 1
  end
  return names
end

-- The segment and symbol a book's key names, or nil.
function keys.parse(book)
  local names = keys.names(book)
  if not names then
    return nil
  end
  return names.segment, names.symbol
end

-- Sorted sets: every resting order, best first. See book.lua.
function keys.bids(book)
  return book .. ":bids"
end

function keys.asks(book)
  return book .. ":asks"
end

-- Hashes price in ticks -> open quantity in lots: the levels of one side.
function keys.levels(side_key)
  return side_key .. ":levels"
end

-- Hash order_id -> order record.
function keys.orders(book)
  return book .. ":orders"
end

-- Set of the order_ids an account has open in this book.
function keys.account_orders(book, account)
  return book .. ":orders:" .. account
end

-- Set of the order_ids of an account's quotes in this book: those of its last mass_quote.
function keys.account_quotes(book, account)
  return book .. ":quotes:" .. account
end

-- Set of the order_ids that an account has open of those it placed with a session.
function keys.session_orders(book, account, session)
  return book .. ":sessions:" .. account .. ":" .. session
end

-- Sorted set: when open orders are to be canceled, and whose. See timers.lua.
function keys.timers(book)
  return book .. ":timers"
end

-- Sorted set of the open orders that expire, by when; a member is the order_id padded to 16 digits.
function keys.expiries(book)
  return book .. ":expiries"
end

-- Sorted sets: the orders that wait for a trade at or above a price, and at or below; the next to
-- trigger first. See stop_orders.lua.
function keys.stops_rising(book)
  return book .. ":stops:rising"
end

function keys.stops_falling(book)
  return book .. ":stops:falling"
end

-- Sorted set: the waiting trailing stops of a side by reference price in ticks; a member is the
-- order_id.
function keys.trailing_stops(book, side)
  return book .. ":stops:trailing:" .. side
end

-- Sorted set: the orders of order lists that are not armed yet, by list. See order_lists.lua.
function keys.dormant_orders(book)
  return book .. ":order_lists:dormant"
end

-- Sorted set: the orders that are paused, by order_id. See order_entry.lua.
function keys.paused_orders(book)
  return book .. ":paused"
end

-- Hash: the order lists, by the order_id of their first order.
function keys.order_lists(book)
  return book .. ":order_lists"
end

-- Hash "account client_order_id" -> order_id of open orders.
function keys.client_orders(book)
  return book .. ":client_orders"
end

-- Hashes of an account's stored replies: the generation being filled and the one before it. An
-- account has no colon in its name.
function keys.stored_replies(book, account)
  return book .. ":stored_replies:" .. account
end

function keys.stored_replies_previous(book, account)
  return book .. ":stored_replies:" .. account .. ":previous"
end

-- Hash interval -> the candle that is not finished; sorted sets of the finished ones.
function keys.candles(book)
  return book .. ":candles"
end

function keys.interval_candles(book, interval)
  return book .. ":candles:" .. interval
end

-- Streams: what happened, the trades alone, the half-second book.
function keys.events(book)
  return book .. ":events"
end

function keys.trades(book)
  return book .. ":trades"
end

function keys.published_book(book)
  return book .. ":book"
end

-- The keys that a book may have, in lists by their type; of those of single accounts one of each
-- kind, of an account that may not exist.
function keys.of_book(book)
  local bids, asks, account = keys.bids(book), keys.asks(book), "-"
  return {
    zset = {
      bids,
      asks,
      keys.expiries(book),
      keys.timers(book),
      keys.stops_rising(book),
      keys.stops_falling(book),
      keys.dormant_orders(book),
      keys.paused_orders(book),
      keys.trailing_stops(book, "buy"),
      keys.trailing_stops(book, "sell"),
    },
    stream = { keys.events(book), keys.trades(book), keys.published_book(book) },
    hash = {
      keys.candles(book),
      keys.levels(bids),
      keys.levels(asks),
      keys.orders(book),
      keys.client_orders(book),
      keys.order_lists(book),
      keys.stored_replies(book, account),
      keys.stored_replies_previous(book, account),
    },
    set = {
      keys.account_orders(book, account),
      keys.account_quotes(book, account),
      keys.session_orders(book, account, account),
    },
  }
end

return keys
