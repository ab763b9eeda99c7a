-- One account's orders canceled in several books of a segment at once.
--
-- Every book has a working copy, sequence and stream entry of its own. That all or none are written
-- needs more care than with one book: Redis refuses only the first entry in time. So whatever can
-- fail is looked at for every book before the first is written, the streams' ids too. All books
-- together do no more than a call of one book may.

local book = require("book")
local call = require("call")
local changing = require("changing")
local events = require("events")
local fields = require("fields")
local keys = require("keys")
local reject = require("reject")
local writing = require("writing")

local canceling = {}

local books_max = 100

-- A refusal where the keys are not the names of different books of one segment, else nil.
local function keys_refusal(call_keys)
  local is_known, common_segment = {}, nil
  local is_valid = #call_keys <= books_max
  for _, key in ipairs(call_keys) do
    local segment = keys.parse(key)
    common_segment = common_segment or segment
    is_valid = is_valid and segment and segment == common_segment and not is_known[key]
    is_known[key] = true
  end
  if not is_valid then
    return reject.new("INVALID_BOOK_KEY", "give at most 100 different books of one segment")
  end
  return nil
end

-- The working copies of all books, with what is due done; or nil and why not.
local function open_all(call_keys)
  local refusal = keys_refusal(call_keys)
  if refusal then
    return nil, refusal
  end
  local books = {}
  for i, key in ipairs(call_keys) do
    books[i] = book.open(key)
    if not books[i] then
      return reject.with("UNKNOWN_SYMBOL", "there is no such instrument")
    end
  end
  local now_ms = book.clock_ms()
  for i, b in ipairs(books) do
    if i > 1 then
      book.share_limits(books[i - 1], b)
    end
    call.begin(b, now_ms)
  end
  return books
end

-- Writes all books, then replies; or gives the error that kept all of them from being written.
local function finish_all(books, reply)
  local plans = {}
  for i, b in ipairs(books) do
    call.conclude(b)
    local plan, refused = writing.plan(b)
    refused = refused or (plan and events.events_refusal(b))
    if refused then
      return refused
    end
    plans[i] = plan or false
  end
  for i, b in ipairs(books) do
    local refused = plans[i] and writing.carry_out(b, plans[i])
    if refused then
      return refused
    end
  end
  return reply
end

-- Cancels in one book after the other, up to the limit of a call over all. Returns the reply, or
-- nil and why not.
local function cancel_in(books, values)
  local rows, canceled_count, remaining_count = {}, 0, 0
  local before = books[#books]
  for i, b in ipairs(books) do
    book.share_limits(before, b)
    before = b
    local reply, refusal, counts = changing.cancel_all_orders(b, values)
    if not reply then
      return nil, refusal
    end
    call.follow_up(b)
    canceled_count = canceled_count + counts.canceled
    remaining_count = remaining_count + counts.remaining
    rows[i] = '{"symbol":"' .. b.instrument.symbol .. '",' .. reply:sub(2)
  end
  return string.format(
    '{"account":"%s","books":[%s],"canceled_count":%.0f,"remaining_count":%.0f,"timestamp_ms":%s}',
    values.account,
    table.concat(rows, ","),
    canceled_count,
    remaining_count,
    books[1].timestamp_ms
  )
end

-- cancel_all_orders with 2 to 100 keys: cancels an account's open orders in several books of one
-- segment, as one change of all.
-- Fields: account; session side valid_until_ms. Reply: account books (each symbol and as with one
-- key) canceled_count remaining_count timestamp_ms.
-- Rejects: INVALID_BOOK_KEY, UNKNOWN_SYMBOL, TOO_LATE, and those of the fields' forms.
function canceling.cancel_in_books(call_keys, arguments)
  local books, refusal = open_all(call_keys)
  if not books then
    return reject.json(refusal)
  end
  local values, malformed = fields.from_arguments(arguments, changing.cancel_all_schema)
  if not values then
    return finish_all(books, reject.json(malformed))
  end
  local reply, refused = cancel_in(books, values)
  return finish_all(books, reply or reject.json(refused))
end

return canceling
