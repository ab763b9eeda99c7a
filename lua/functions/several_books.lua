-- One account's orders canceled in several books of a segment at once.
--
-- Every book has a working copy, sequence and stream entry of its own. That all or none are written
-- needs more care than with one book: Redis refuses only the first entry in time. So whatever can
-- fail is looked at for every book before the first is written, the streams' ids too. All books
-- together do no more than a call of one book may.

local cancel_all_orders = require("functions/cancel_all_orders")
local event_stream = require("market_data/event_stream")
local commit = require("transaction/commit")
local isolation = require("transaction/isolation")
local transaction = require("transaction/transaction")
local working_copy = require("transaction/working_copy")
local fields = require("values/fields")
local keys = require("values/keys")
local reject = require("values/reject")

local several_books = {}

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

-- Opens all books and does what is due. Returns a refusal, or nil.
local function open_all(change, call_keys)
  local refusal = keys_refusal(call_keys)
  if refusal then
    return refusal
  end
  local books = change.books
  for i, key in ipairs(call_keys) do
    books[i] = working_copy.open(key)
    if not books[i] then
      return reject.new("UNKNOWN_SYMBOL", "there is no such instrument")
    end
  end
  local now_ms = working_copy.clock_ms()
  for i, tx in ipairs(books) do
    change.current, change.refused = tx, change.refused or working_copy.missing_key_error(tx)
    if i > 1 then
      working_copy.share_limits(books[i - 1], tx)
    end
    transaction.begin(tx, now_ms)
  end
  return nil
end

-- Cancels in one book after the other, up to the limit of a call over all. Returns the reply, or
-- nil and why not.
local function cancel_in(change, values)
  local rows, canceled_count, remaining_count = {}, 0, 0
  local books = change.books
  local before = books[#books]
  for i, tx in ipairs(books) do
    change.current = tx
    working_copy.share_limits(before, tx)
    before = tx
    local reply, refusal, counts = cancel_all_orders.run(tx, values)
    if not reply then
      return nil, refusal
    end
    transaction.process_consequences(tx)
    canceled_count = canceled_count + counts.canceled
    remaining_count = remaining_count + counts.remaining
    rows[i] = '{"symbol":"' .. tx.instrument.symbol .. '",' .. reply:sub(2)
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

-- Plans the writes of all books, and looks at everything that could refuse one of them.
local function plan_all(change)
  for i, tx in ipairs(change.books) do
    change.current = tx
    local plan, refused = transaction.plan(tx)
    refused = refused or (plan and event_stream.events_refusal(tx))
    change.plans[i], change.refused = plan or false, change.refused or refused
  end
end

-- Runs the whole call up to its writes. Returns the reply.
local function prepare(change, call_keys, arguments)
  local refusal = open_all(change, call_keys)
  if refusal then
    change.books = {}
    return reject.json(refusal)
  end
  local values, malformed = fields.from_arguments(arguments, cancel_all_orders.schema)
  local reply, refused
  if values then
    reply, refused = cancel_in(change, values)
  end
  plan_all(change)
  return reply or reject.json(malformed or refused)
end

-- An error was raised while the call worked on one of its books: that book is halted, and nothing
-- is done in the others.
local function halt_current(change, problem)
  local batch = { list = {}, replies = {} }
  local refused = isolation.note(batch, change.current, problem)
  local halted
  if not refused then
    halted, refused = transaction.transact(working_copy.open(change.current.key), batch)
  end
  return halted and reject.json(isolation.refusal()) or refused
end

-- cancel_all_orders with 2 to 100 keys: cancels an account's open orders in several books of one
-- segment, as one change of all.
-- Fields: account; session side valid_until_ms. Reply: account books (each symbol and as with one
-- key) canceled_count remaining_count timestamp_ms.
-- Rejects: INVALID_BOOK_KEY, UNKNOWN_SYMBOL, TOO_LATE, INTERNAL_ERROR, and those of the fields'
-- forms.
function several_books.cancel_in_books(call_keys, arguments)
  local change = { books = {}, plans = {}, current = false, refused = nil }
  local reply
  local is_prepared, problem, redis_error = isolation.attempt(function()
    reply = prepare(change, call_keys, arguments)
  end)
  if not is_prepared then
    return redis_error or halt_current(change, problem)
  end
  if change.refused then
    return change.refused
  end
  for i, tx in ipairs(change.books) do
    local refused = change.plans[i] and commit.write(tx, change.plans[i])
    if refused then
      return refused
    end
  end
  return reply
end

return several_books
