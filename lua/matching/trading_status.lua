-- The trading states of an instrument, and what changes them.
--
--   trading      everything
--   post_only    limit orders that do not trade at once
--   auction      limit orders are collected without trading, until trading is set (auction.lua)
--   cancel_only  cancels only
--   halted       cancels only
--
-- An operator sets the status with define_instrument, the circuit breaker by itself
-- (circuit_breaker.lua).

local book = require("book/book")
local auction = require("matching/auction")
local circuit_breaker = require("matching/circuit_breaker")
local instrument_record = require("records/instrument_record")
local reject = require("values/reject")

local trading_status = {}

-- ---- what is due

-- Whether an auction is still being uncrossed.
function trading_status.is_uncrossing(tx)
  local features = tx.instrument.features
  return features and features.uncrossing ~= "" or false
end

-- Reopens what a breaker has closed for a while, and goes on with an uncross; not before all is
-- gone that is to expire or to be canceled by now.
function trading_status.resume(tx)
  if tx.expiring or tx.canceling then
    return
  end
  local instrument, features = tx.instrument, tx.instrument.features
  local reopen_time_ms = features.reopen_time_ms + 0
  if reopen_time_ms > 0 and tx.now_ms >= reopen_time_ms then
    features.reopen_time_ms = "0"
    if instrument.status == "auction" then
      features.uncrossing = "begun"
    else
      instrument.status = "trading"
      book.change_rules(tx)
    end
  end
  if features.uncrossing ~= "" then
    auction.uncross(tx)
  end
end

-- A refusal where an operator cannot set the status now that `known` rules become the book's, else
-- nil; what the new one brings with it.
function trading_status.set(tx, known)
  local instrument, before = tx.instrument, known.status
  local status = instrument.status
  if before == status then
    return nil
  end
  if trading_status.is_uncrossing(tx) then
    return reject.new("UNCROSSING", "the auction is being uncrossed")
  end
  if instrument.features then
    circuit_breaker.begin_window_anew(instrument.features)
  end
  if before ~= "auction" then
    return nil
  end
  if status ~= "trading" and auction.is_crossed(tx) then
    return reject.new("AUCTION_CROSSED", "orders cross: end the auction by trading first")
  end
  if status == "trading" then
    instrument.status = "auction"
    instrument_record.extend(instrument).uncrossing = "begun"
  end
  return nil
end

-- ---- who may place

-- A refusal of an order that the status does not take, else nil.
function trading_status.order_refusal(tx, values)
  local status, force = tx.instrument.status, values.time_in_force or "gtc"
  local rests = values.order_type == "limit" and (force == "gtc" or force == "gtd")
  local waits = values.stop_price or values.trailing_offset
  if status == "post_only" and not rests then
    return reject.new("INSTRUMENT_POST_ONLY", "the instrument takes limit orders that rest only")
  end
  if status == "auction" and not waits and (not rests or values.post_only == "true") then
    return reject.new("INSTRUMENT_AUCTION", "an auction takes limit orders that rest only")
  end
  return nil
end

-- A refusal where the instrument takes no new orders or amends at all now, else nil. Cancels are
-- always allowed: risk can be taken off in every status.
function trading_status.closed_refusal(instrument)
  if instrument.status == "halted" then
    return reject.new("INSTRUMENT_HALTED", "the instrument is halted")
  end
  if instrument.status == "cancel_only" then
    return reject.new("INSTRUMENT_CANCEL_ONLY", "the instrument takes cancels only")
  end
  if instrument.features and instrument.features.uncrossing ~= "" then
    return reject.new("UNCROSSING", "an auction is being uncrossed: try again")
  end
  return nil
end

return trading_status
