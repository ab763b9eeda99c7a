-- What an account's orders came to: the orders that are no longer open, and their trades.
--
-- Nothing is stored for these queries. They read the stream of events backwards, as far as it
-- reaches, and take from it the account's own reports. A stream has the events of everybody, so a
-- call looks at a bounded part of it and tells where to go on; a page may be empty and yet have
-- more behind it. An entry is one change of the book and is never split between two pages.

local transaction = require("transaction/transaction")
local fields = require("values/fields")
local keys = require("values/keys")
local numbers = require("values/numbers")
local reject = require("values/reject")

local order_history = {}

local limit_max = 1000
local entries_per_call_max = 1000
local bytes_per_call_max = 1048576
local chunk_max = 100

local history_schema = fields.schema({ "account", "before", "limit" }, { "account" })

local function field(report, name)
  return report:match('"' .. name .. '":"([^"]*)"')
end

local function with_field(text, name, value)
  return value and text .. ',"' .. name .. '":"' .. value .. '"' or text
end

-- The end of a row: when it happened.
local function row_end(report, sequence)
  return ',"sequence":' .. sequence .. ',"timestamp_ms":' .. report:match('"timestamp_ms":(%d+)}$')
end

-- An order whose last report is the trade that filled it.
local function filled_row(report, sequence)
  local row = '{"order_id":"' .. field(report, "order_id") .. '"'
  row = with_field(row, "client_order_id", field(report, "client_order_id"))
  row = with_field(row, "displayed_order_id", field(report, "displayed_order_id"))
  row = with_field(row, "side", field(report, "side"))
  row = with_field(row, "quantity", field(report, "order_quantity"))
  row = with_field(row, "price", field(report, "order_price"))
  row = with_field(row, "remaining_quantity", field(report, "remaining_quantity"))
  return row .. ',"status":"filled"' .. row_end(report, sequence) .. "}"
end

-- A report's text between its event and its time: whatever it tells of the order.
local function told(report)
  return report:match('^{"event":"%a+",(.*),"timestamp_ms":%d+}$')
end

-- The order that a report closes as a row, else nil. Of an order by quote_quantity nothing remains
-- from its first trade on, so several reports may close it: the last one counts, which is met
-- first.
local function closed_row(report, sequence, met)
  local event = report:match('^{"event":"(%a+)"')
  local is_fill = event == "trade" and field(report, "status") == "filled"
  if not is_fill and event ~= "canceled" and event ~= "expired" then
    return nil
  end
  local order_id = field(report, "order_id")
  if met[order_id] then
    return nil
  end
  met[order_id] = true
  if is_fill then
    return filled_row(report, sequence)
  end
  return "{" .. told(report) .. ',"status":"' .. event .. '"' .. row_end(report, sequence) .. "}"
end

local function trade_row(report, sequence)
  if report:find('^{"event":"trade"') then
    local text = told(report):gsub(',"order_%a+":"[^"]*"', "", 2)
    return "{" .. text .. row_end(report, sequence) .. "}"
  end
  return nil
end

-- The reports of a message to an account, as they stand in its text.
local function reports_of(message)
  local reports = {}
  for report in message:match('"orders":(%[.*%])}$'):gmatch("%b{}") do
    reports[#reports + 1] = report
  end
  return reports
end

-- Adds the rows of one entry, newest first. Returns how many bytes the entry has.
local function add_rows(walk, sequence, topics)
  local bytes = 0
  for i = 1, #topics, 2 do
    bytes = bytes + #topics[i + 1]
    if topics[i] == walk.topic then
      local reports, met = reports_of(topics[i + 1]), {}
      for j = #reports, 1, -1 do
        walk.rows[#walk.rows + 1] = walk.row_of(reports[j], sequence, met)
      end
    end
  end
  return bytes
end

-- How many entries to read next: about as many as the bytes that are left are worth.
local function next_chunk(walk)
  local left = entries_per_call_max - walk.entries
  if walk.entries == 0 then
    return 1
  end
  local worth = (bytes_per_call_max - walk.bytes) / math.max(1, walk.bytes / walk.entries)
  return math.max(1, math.min(chunk_max, left, math.floor(worth)))
end

local function is_done(walk)
  return #walk.rows >= walk.limit
    or walk.entries >= entries_per_call_max
    or walk.bytes >= bytes_per_call_max
end

-- Reads backwards from before a sequence until the page is full, or enough was looked at, or the
-- stream ends.
local function read_back(walk, events_key)
  while not is_done(walk) do
    local to = "(" .. numbers.integer_text(walk.before) .. "-0"
    local count = next_chunk(walk)
    local entries = redis.call("XREVRANGE", events_key, to, "-", "COUNT", count)
    for _, entry in ipairs(entries) do
      local sequence = entry[1]:match("^%d+")
      walk.before = tonumber(sequence)
      walk.entries = walk.entries + 1
      walk.bytes = walk.bytes + add_rows(walk, sequence, entry[2])
      if #walk.rows >= walk.limit then
        break
      end
    end
    if #entries == 0 then
      break
    end
  end
end

-- Whether the stream reaches further back than a sequence.
local function reaches_before(events_key, sequence)
  local first = redis.call("XRANGE", events_key, "-", "+", "COUNT", 1)[1]
  return first ~= nil and tonumber(first[1]:match("^%d+")) < sequence
end

-- The answer to a query whose rows `row_of` makes of reports; `name` is what it calls them.
local function page(call_keys, arguments, name, row_of)
  local instrument, values = transaction.open_query(call_keys, arguments, history_schema)
  if not instrument then
    return reject.json(values)
  end
  local limit = tonumber(values.limit or 100)
  if limit > limit_max then
    return reject.json(reject.new("INVALID_VALUE", "limit must be at most 1000"))
  end
  local walk = {
    topic = "orders:" .. values.account,
    row_of = row_of,
    limit = limit,
    before = math.min(tonumber(values.before or instrument.sequence + 1), instrument.sequence + 1),
    rows = {},
    entries = 0,
    bytes = 0,
  }
  local events_key = keys.events(instrument.key)
  read_back(walk, events_key)
  return string.format(
    '{"account":"%s","symbol":"%s","sequence":%.0f,"epoch":%s,"%s":[%s],"more":%s,"before":%.0f}',
    values.account,
    instrument.symbol,
    instrument.sequence,
    instrument.epoch,
    name,
    table.concat(walk.rows, ","),
    tostring(reaches_before(events_key, walk.before)),
    walk.before
  )
end

-- get_closed_orders: an account's orders that are filled, canceled or expired, the latest first, as
-- far back as the stream of events reaches.
-- Fields: account; before (a sequence) limit (1 to 1000; 100). Reply: account symbol sequence epoch
-- orders more before. Rejects: INVALID_VALUE.
function order_history.get_closed_orders(call_keys, arguments)
  return page(call_keys, arguments, "orders", closed_row)
end

-- get_own_trades: an account's trades, the latest first, as far back as the stream of events
-- reaches.
-- Fields: account; before (a sequence) limit (1 to 1000; 100). Reply: account symbol sequence epoch
-- trades more before. Rejects: INVALID_VALUE.
function order_history.get_own_trades(call_keys, arguments)
  return page(call_keys, arguments, "trades", trade_row)
end

return order_history
