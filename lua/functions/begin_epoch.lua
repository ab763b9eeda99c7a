-- A host tells which server process it talks to: see epoch.lua.

local epoch = require("transaction/epoch")
local transaction = require("transaction/transaction")
local working_copy = require("transaction/working_copy")
local fields = require("values/fields")
local reject = require("values/reject")

local begin_epoch = {}

local schema = fields.schema({ "run_id" }, { "run_id" })

-- begin_epoch: starts a new epoch when the server is not the one the book last saw.
-- Fields: run_id. Reply: epoch sequence. Rejects: those of the fields' forms.
function begin_epoch.call(call_keys, arguments)
  local tx, refusal = transaction.open_with(working_copy.open, call_keys)
  local values
  if tx then
    values, refusal = fields.from_arguments(arguments, schema)
  end
  if refusal then
    return reject.json(refusal)
  end
  local instrument = tx.instrument
  if instrument.run_id ~= values.run_id then
    working_copy.set_time(tx)
    epoch.begin(tx, values.run_id)
    instrument.sequence = tx.call_sequence
    local refused = working_copy.missing_key_error(tx) or transaction.commit(tx)
    if refused then
      return refused
    end
  end
  return string.format('{"epoch":%s,"sequence":%.0f}', instrument.epoch, instrument.sequence)
end

return begin_epoch
