-- The way of every call: which book it is about, what is due before its commands, and the one
-- writing at its end.

local book = require("book")
local cascade = require("cascade")
local events = require("events")
local fields = require("fields")
local instrument = require("instrument")
local keys = require("keys")
local reject = require("reject")
local states = require("states")
local stops = require("stops")
local switch = require("switch")
local writing = require("writing")

local call = {}

local function invalid_key()
  return reject.new("INVALID_BOOK_KEY", "give one key: orderbook:{SEGMENT}:SYMBOL")
end

-- The book's key, or nil and why not.
function call.book_key(call_keys)
  if #call_keys ~= 1 or not keys.parse(call_keys[1]) then
    return nil, invalid_key()
  end
  return call_keys[1]
end

-- What `open` (book.open or instrument.load) gives for the call's key, or nil and why not.
function call.open_with(open, call_keys)
  local key, refusal = call.book_key(call_keys)
  if not key then
    return nil, refusal
  end
  local opened = open(key)
  if not opened then
    return reject.with("UNKNOWN_SYMBOL", "there is no such instrument")
  end
  return opened
end

-- Tells what is told once a call, as it stands at its end.
function call.conclude(b)
  if b.trailing_touched then
    stops.tell_trailed(b)
  end
end

-- Writes the working copy, then replies; or gives the error that kept it from being written.
function call.finish(b, reply)
  call.conclude(b)
  local refused = writing.write(b)
  if refused then
    return refused
  end
  return reply
end

-- What a call does before its commands: the time is read and what is due is done. Returns how many
-- orders expired, and how many timers have canceled. Of several books one clock reading is given.
function call.begin(b, now_ms)
  book.stamp(b, now_ms)
  local extended = b.instrument.extended
  local expired = extended and book.expire(b) or {}
  for i = 1, #expired do
    events.expired(b, expired[i])
  end
  local canceled_count = 0
  if extended then
    canceled_count = extended.timers > 0 and switch.fire(b) or 0
    states.watch(b)
    states.carry_on(b)
  end
  if b.agenda or b.notes then
    cascade.run(b)
  end
  return #expired, canceled_count
end

-- Carries out what a command has led to.
function call.follow_up(b)
  if b.breaker then
    states.settle(b)
  end
  if b.agenda or b.notes then
    cascade.run(b)
  end
end

-- Runs commands one after the other, and what the trades of each trigger; false in the list is one
-- that was refused before. Adds the replies by their places.
function call.run(b, list, replies)
  for i = 1, #list do
    local values = list[i]
    if values then
      local reply, refusal = values.method.run(b, values)
      if b.agenda or b.notes or b.breaker then
        call.follow_up(b)
      end
      replies[i] = reply or reject.json(refusal, values.client_order_id)
    end
  end
end

-- The instrument and the fields of a call that only reads, or nil and why not.
function call.open_query(call_keys, arguments, schema)
  local record, refusal = call.open_with(instrument.load, call_keys)
  if not record then
    return nil, refusal
  end
  local values, malformed = fields.from_arguments(arguments, schema)
  if not values then
    return nil, malformed
  end
  return record, values
end

return call
