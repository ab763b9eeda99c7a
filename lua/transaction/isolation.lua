-- What an unexpected error costs: one command, or the trading of one book; never the rest of a
-- batch.
--
-- Nothing is written before everything of a call has run, so a call that raised an error is simply
-- run again on a fresh working copy, without the command that raised it. That command is refused.
-- Damage, and an error outside every command, come from what is stored: scheduled work, what a
-- trade has triggered, the figures that are written with it. They would come again in every call,
-- so the book is halted with the reason, and the call runs again on the halted book. Errors of
-- Redis itself (rights, a key of another type) refuse the whole call.

local book = require("book/book")
local instrument_record = require("records/instrument_record")
local damage = require("server/damage")
local reject = require("values/reject")

local isolation = {}

-- So many commands of a call may raise an error; then all others are refused, too.
local errors_max = 8
local reason_length_max = 200

-- The text of an error as it can stand in JSON and in the log.
local function reason_of(problem)
  local text = tostring(problem):gsub('[%c"\\]', " ")
  return text:sub(1, reason_length_max)
end

local function as_raised(problem)
  return problem
end

-- Runs a function without arguments. Returns true; or false and the text of an error in Lua; or
-- false, nil and the error of Redis that refuses the call. pcall would make a text of both.
function isolation.attempt(work)
  local is_done, problem = xpcall(work, as_raised)
  if is_done or type(problem) == "string" then
    return is_done, problem
  end
  if type(problem) == "table" then
    return false, nil, problem
  end
  return error(problem, 0)
end

-- What the sender of a command gets that raised an error.
function isolation.refusal()
  local message = "an internal error refused this command: nothing of it was done"
  return reject.new("INTERNAL_ERROR", message)
end

local function refuse(batch, index)
  batch.list[index] = false
  batch.replies[index] = reject.json(isolation.refusal())
end

local function refuse_all(batch)
  for index = 1, #batch.list do
    if batch.list[index] then
      refuse(batch, index)
    end
  end
end

-- Notes an error of a run of this batch on a working copy, and changes the batch so that it can be
-- run again. Returns an error reply where there is no way to go on, else nil.
function isolation.note(batch, tx, problem)
  local reason = reason_of(problem)
  redis.log(redis.LOG_WARNING, "internal error in " .. tx.key .. ": " .. reason)
  batch.errors = (batch.errors or 0) + 1
  local index = tx.command_index
  if index and not damage.is_in(problem) then
    refuse(batch, index)
    if batch.errors >= errors_max then
      refuse_all(batch)
    end
    return nil
  end
  if batch.halt_reason then
    return redis.error_reply(
      "DAMAGED an internal error keeps the book from being halted: " .. reason
    )
  end
  batch.halt_reason = reason
  return nil
end

-- Writes what the runs before have shown into a fresh working copy: the number of errors and, where
-- one came from what is stored, the halt.
function isolation.apply(batch, tx)
  if not batch.errors then
    return
  end
  local features = instrument_record.extend(tx.instrument)
  features.internal_errors = features.internal_errors + batch.errors
  if batch.halt_reason then
    tx.instrument.status, features.halt_reason = "halted", batch.halt_reason
    features.reopen_time_ms = "0"
  end
  book.change_rules(tx)
end

-- Whether an internal error has halted the book: then nothing that is due runs.
function isolation.is_halted(tx)
  local features = tx.instrument.features
  return features and features.halt_reason ~= "" or false
end

return isolation
