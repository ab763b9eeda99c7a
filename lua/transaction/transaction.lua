-- The way of every call: which book it is about, what is due before its commands, and the one
-- writing at its end.

local circuit_breaker = require("matching/circuit_breaker")
local stop_orders = require("matching/stop_orders")
local triggers = require("matching/triggers")
local instrument_record = require("records/instrument_record")
local commit = require("transaction/commit")
local epoch = require("transaction/epoch")
local isolation = require("transaction/isolation")
local scheduled_work = require("transaction/scheduled_work")
local working_copy = require("transaction/working_copy")
local fields = require("values/fields")
local hints = require("values/hints")
local keys = require("values/keys")
local reject = require("values/reject")

local transaction = {}

local function invalid_key(call_keys)
  return reject.new("INVALID_BOOK_KEY", hints.book_key(#call_keys == 1 and call_keys[1]))
end

-- The book's key, or nil and why not.
function transaction.book_key(call_keys)
  if #call_keys ~= 1 or not keys.parse(call_keys[1]) then
    return nil, invalid_key(call_keys)
  end
  return call_keys[1]
end

-- What `open` (working_copy.open, instrument_record.load) gives for the call's key, or nil and why
-- not.
function transaction.open_with(open, call_keys)
  local key, refusal = transaction.book_key(call_keys)
  if not key then
    return nil, refusal
  end
  local opened = open(key)
  if not opened then
    return reject.with("UNKNOWN_SYMBOL", "there is no such instrument")
  end
  return opened
end

-- What a call does before its commands: the time is set, a new epoch begins where the server is
-- another one, and what is due is done. Of several books one clock reading is given.
function transaction.begin(tx, now_ms)
  working_copy.set_time(tx, now_ms)
  epoch.follow_server(tx)
  if not isolation.is_halted(tx) then
    scheduled_work.run(tx)
  end
end

-- Carries out what a command has led to. An error in it comes from what is stored.
function transaction.process_consequences(tx)
  tx.command_index = false
  if tx.breaker then
    circuit_breaker.apply(tx)
  end
  if tx.trigger_queue or tx.list_events then
    triggers.run(tx)
  end
end

-- Runs commands one after the other, and what the trades of each trigger; false in the list is one
-- that was refused before. Adds the replies by their places.
local function run(tx, list, replies)
  for i = 1, #list do
    local values = list[i]
    if values then
      tx.command_index = i
      local reply, refusal = values.method.run(tx, values)
      if tx.trigger_queue or tx.list_events or tx.breaker then
        transaction.process_consequences(tx)
      end
      replies[i] = reply or reject.json(refusal, values.client_order_id)
    end
  end
  tx.command_index = false
end

-- The plan of everything that a call has changed. Tells first what is told once a call, as it
-- stands at its end. Returns as commit.plan.
function transaction.plan(tx)
  if tx.trailing_touched then
    stop_orders.report_trailed(tx)
  end
  return commit.plan(tx)
end

-- Writes what a call has changed, after the time of the call was set. Returns nil, or an error
-- reply: nothing was written then.
function transaction.commit(tx)
  local plan, problem = transaction.plan(tx)
  return problem or (plan and commit.write(tx, plan)) or nil
end

-- Runs a batch on a working copy, up to the plan of its writes. Returns as commit.plan.
local function prepare(tx, batch, now_ms)
  isolation.apply(batch, tx)
  transaction.begin(tx, now_ms)
  if batch.prefetch then
    batch.prefetch(tx, batch.list)
  end
  run(tx, batch.list, batch.replies)
  return transaction.plan(tx)
end

-- Runs a batch { list, replies, prefetch } as one change of the book: does what is due, runs the
-- commands of the list, and writes. Returns the working copy as it was written, or nil and an error
-- reply. A command that raises an error is refused, and the others run: see isolation.lua.
function transaction.transact(tx, batch)
  local now_ms
  while true do
    local refused = working_copy.missing_key_error(tx)
    if refused then
      return nil, refused
    end
    local plan
    local is_prepared, problem, redis_error = isolation.attempt(function()
      plan, refused = prepare(tx, batch, now_ms)
    end)
    if is_prepared then
      refused = refused or (plan and commit.write(tx, plan))
      return not refused and tx or nil, refused
    end
    refused = redis_error or isolation.note(batch, tx, problem)
    if refused then
      return nil, refused
    end
    tx, now_ms = working_copy.open(tx.key), tx.now_ms
  end
end

-- The instrument and the fields of a call that only reads, or nil and why not.
function transaction.open_query(call_keys, arguments, schema)
  local instrument, refusal = transaction.open_with(instrument_record.load, call_keys)
  if not instrument then
    return nil, refusal
  end
  local values, malformed = fields.from_arguments(arguments, schema)
  if not values then
    return nil, malformed
  end
  return instrument, values
end

return transaction
