-- Epochs: the name of one history of a book.
--
-- A server that restarts may have lost the end of what it told, and a replica that takes over may
-- never have had it, while the old primary goes on. Each then counts sequences and ids of its own.
-- So a book begins a new epoch whenever the process that runs it is another one, in the first call
-- that changes the book. Two histories never have one epoch: it is made of the time in seconds and
-- of a hash of the process, the book and the time in microseconds. Within a book epochs only grow.
--
-- An order or trade that was lost with the end of a history was told to somebody. Its id is never
-- given again: the counters skip more ids than one history can have lost.

local event_stream = require("market_data/event_stream")
local server = require("server/server")
local numbers = require("values/numbers")

local epoch = {}

-- Beyond what a book can give out in eight hours at full speed.
local ids_skipped = 1000000000
-- An epoch is a time in seconds times this, plus a hash of so many hexadecimal digits.
local hash_span = 1048576
local hash_digits = 5

-- The number of a history of the book that begins now; `before` is the one that it follows.
local function unique(tx, run_id, before)
  local source = (run_id or "") .. tx.key .. table.concat(redis.call("TIME"), ".")
  local hash = tonumber(redis.sha1hex(source):sub(1, hash_digits), 16)
  local time_s = math.max(math.floor(tx.now_ms / 1000), math.floor(before / hash_span) + 1)
  return numbers.integer_text(time_s * hash_span + hash)
end

-- The epoch of a new book. The time of the call must be set.
function epoch.start(tx)
  local instrument = tx.instrument
  instrument.server_run_id = server.run_id() or nil
  instrument.run_id = instrument.server_run_id
  instrument.epoch = unique(tx, instrument.run_id, 0)
end

-- Begins a new epoch on the server process of this id. The time of the call must be set.
function epoch.begin(tx, run_id)
  local instrument = tx.instrument
  instrument.epoch = unique(tx, run_id, instrument.epoch + 0)
  instrument.run_id, instrument.server_run_id = run_id, server.run_id() or run_id
  instrument.last_order_id = instrument.last_order_id + ids_skipped
  instrument.last_trade_id = instrument.last_trade_id + ids_skipped
  instrument.last_priority = instrument.last_priority + ids_skipped
  tx.changed, tx.epoch_changed = true, true
  event_stream.epoch_begun(tx)
end

-- Whether the book was last changed by another server process.
function epoch.is_due(instrument)
  local run_id = server.run_id()
  return run_id and run_id ~= instrument.server_run_id
end

-- Begins a new epoch where that is due. The time of the call must be set.
function epoch.follow_server(tx)
  if epoch.is_due(tx.instrument) then
    epoch.begin(tx, server.run_id())
  end
end

return epoch
