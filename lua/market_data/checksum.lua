-- The checksum that lets a client prove it holds the same book: CRC-32 over the digits of the
-- published levels.

local checksum = {}

-- So many levels of a side count, and are published each half second.
checksum.levels = 10

-- So many bytes of a text are looked at as one list.
local bytes_chunk = 128

-- The table of CRC-32 (reflected polynomial 0xEDB88320). Built on first use: no arithmetic on bits
-- exists while a library loads.
local crc_table

local function build_crc_table()
  crc_table = {}
  for byte = 0, 255 do
    local value = byte
    for _ = 1, 8 do
      if value % 2 == 1 then
        value = bit.bxor(bit.rshift(value, 1), 0xEDB88320)
      else
        value = bit.rshift(value, 1)
      end
    end
    crc_table[byte] = value
  end
end

-- Three of the four steps for a byte of a text are arithmetic: a call to `bit` costs several times
-- as much. Its results have a sign.
local function crc32(text)
  if not crc_table then
    build_crc_table()
  end
  local steps, bxor, value = crc_table, bit.bxor, 0xFFFFFFFF
  for from = 1, #text, bytes_chunk do
    local bytes = { text:byte(from, from + bytes_chunk - 1) }
    for i = 1, #bytes do
      local low = value % 256
      value = bxor((value - low) / 256, steps[bxor(low, bytes[i])]) % 4294967296
    end
  end
  return bxor(value, 0xFFFFFFFF) % 4294967296
end

-- Decimal text as it counts in a checksum: with all decimals of its step, but without the point and
-- leading zeros. So 1, 0.1 and 0.01 differ.
function checksum.digits_of(text, decimals)
  local point = text:find(".", 1, true)
  if not point then
    return text .. ("0"):rep(decimals)
  end
  local digits = text:sub(1, point - 1) .. text:sub(point + 1)
  digits = digits .. ("0"):rep(decimals - (#text - point))
  return digits:byte() == 48 and digits:gsub("^0+", "") or digits
end

-- The checksum of both sides as JSON members with a comma before them, and the steps by which a
-- reader can compute it.
function checksum.json_fields(instrument, asks_text, bids_text)
  return string.format(
    ',"checksum":%.0f,"tick_size":"%s","lot_size":"%s"',
    crc32(asks_text .. bids_text),
    instrument.price_step.text,
    instrument.quantity_step.text
  )
end

return checksum
