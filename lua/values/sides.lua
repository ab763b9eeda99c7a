-- The two sides.

local sides = {}

sides.opposite = { buy = "sell", sell = "buy" }

return sides
