-- The trigger queue: trade prices that are still to be applied to stop orders, paused orders and
-- order lists to be armed. triggers.lua processes it.

local numbers = require("values/numbers")

local trigger_queue = {}

-- Reads the trigger queue of an instrument: its items in their order, from index `first` on. An
-- item is a trade price in ticks, { paused_id } of an order that is to go on, or { list_id, filled
-- } of an order list that is to be armed. As text: `@17 10025 17:30000 10030`. Returns false if no
-- order can be waiting for an item.
function trigger_queue.read(features)
  if features.waiting_orders == 0 and features.order_lists == 0 then
    return false
  end
  local items = { first = 1 }
  for item in features.agenda:gmatch("%S+") do
    local list_id, filled = item:match("^(%d+):(%d+)$")
    local paused_id = item:match("^@(%d+)$")
    if list_id then
      items[#items + 1] = { list_id = list_id, filled = filled + 0 }
    elseif paused_id then
      items[#items + 1] = { paused_id = paused_id }
    else
      -- Of an item of earlier libraries, `price@order_id@bound`, the price counts.
      items[#items + 1] = item:match("^%d+") + 0
    end
  end
  return items
end

-- Whether the trigger queue has items.
function trigger_queue.has_items(tx)
  local items = tx.trigger_queue
  return items and items[items.first] ~= nil
end

-- The trigger queue as text, as it is stored.
function trigger_queue.text(tx)
  local items, texts = tx.trigger_queue, {}
  for i = items and items.first or 1, items and #items or 0 do
    local item = items[i]
    if type(item) == "table" and item.paused_id then
      texts[#texts + 1] = "@" .. item.paused_id
    elseif type(item) == "table" then
      texts[#texts + 1] = item.list_id .. ":" .. numbers.integer_text(item.filled)
    else
      texts[#texts + 1] = numbers.integer_text(item)
    end
  end
  return table.concat(texts, " ")
end

return trigger_queue
