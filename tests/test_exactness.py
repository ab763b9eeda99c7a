"""Figures beyond 2^53 - 1: sums, differences and products are exact, whatever they are made of.

Every figure that the engine tells of prices and quantities is compared here with Python's integers,
for steps of many sizes, and for prices and quantities up to the documented limits.
"""

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from books import Book, Json, assert_rejected
from checker import checksum
from servers import Server

pytestmark = pytest.mark.exhaustive

EXACT_MAX = 2**53 - 1
MINUTE_MS = 60_000
HOUR_MS = 3_600_000
# A candle that no trade of today joins, in the layout of the hash `…:candles`.
OPEN_MS = 1_700_000_100_000

STEPS = (
    *("1", "0.01", "0.05", "0.25", "7", "1000", "0.5", "0.00000001", "0.000000000000001"),
    *("0.000123", "12.5", "9007199254740991", "3002399751580330", "9.007199254740991"),
)

exactly = settings(max_examples=50, deadline=None)
_symbols = itertools.count(1)


# ---- numbers


@dataclass(frozen=True)
class Step:
    """A tick_size or lot_size: so many units of its last decimal."""

    text: str

    @property
    def decimals(self) -> int:
        return len(self.text.partition(".")[2])

    @property
    def size(self) -> int:
        return int(self.text.replace(".", ""))

    @property
    def count_max(self) -> int:
        return EXACT_MAX // self.size

    def number(self, count: int) -> str:
        return decimal_text(count * self.size, self.decimals)


def decimal_text(units: int, decimals: int) -> str:
    """An integer in units of the last of so many decimals, as the protocol writes it."""
    digits = str(units).rjust(decimals + 1, "0")
    whole, fraction = digits[: len(digits) - decimals], digits[len(digits) - decimals :]
    return whole + ("." + fraction).rstrip("0").rstrip(".")


def exact_text(value: Fraction) -> str:
    """The same of a number that has an end."""
    decimals = next(n for n in range(80) if (value * 10**n).denominator == 1)
    return decimal_text(int(value * 10**decimals), decimals)


def counts(step: Step) -> st.SearchStrategy[int]:
    """Few steps, as many as there may be, and anything between."""
    most = step.count_max
    return st.one_of(
        st.integers(1, min(most, 20)),
        st.integers(max(1, most - 20), most),
        st.integers(1, most),
    )


steps = st.sampled_from(STEPS).map(Step)


# ---- books


def define(valkey: Server, tick: Step, lot: Step, **rules: str) -> Book:
    book = Book(valkey.client, f"X{next(_symbols)}")
    reply = book.ask("define_instrument", tick_size=tick.text, lot_size=lot.text, **rules)
    assert "sequence" in reply, reply
    return book


def trade(book: Book, quantity: str, price: str) -> None:
    assert book.limit("alice", "sell", quantity, price)["status"] == "open"
    assert book.limit("bob", "buy", quantity, price)["status"] == "filled"


def store_candle(book: Book, interval: str, open_ms: int, volume: str, price: str = "101") -> None:
    line = f"{open_ms} {price} {price} {price} {price} {volume} 3"
    book.client.hset(book.stream_key("candles"), interval, line)


# ---- candles and the ticker


def test_stored_candles_are_joined_to_the_last_digit(book: Book) -> None:
    store_candle(book, "1m", OPEN_MS + MINUTE_MS, "92233720368547.75809")
    store_candle(book, "5m", OPEN_MS, "100000000000000000000000000000.00000000000001", "99")
    trade(book, "9007199254740991", "100")
    five = book.read("get_candles", interval="5m")["candles"]
    assert five[0]["volume"] == "100000000000000092233720368547.75809000000001"
    assert (five[0]["trades"], five[0]["high"], five[0]["low"]) == (6, "101", "99")


def test_a_stored_volume_that_is_no_decimal_text_refuses_no_trade(book: Book) -> None:
    """As one was written beyond 1e13 before such sums were exact."""
    store_candle(book, "1m", OPEN_MS, "-92233720368547.75808")
    store_candle(book, "5m", OPEN_MS, "-92233720368547.75808")
    trade(book, "7", "100")
    trade(book, "8", "100")
    assert book.read("get_candles", interval="1m")["candles"][-1]["volume"] == "15"
    assert book.read("get_ticker")["volume_24h"] == "15"


def day_of(prints: Sequence[tuple[Fraction, Fraction]]) -> Json:
    """What the ticker tells of trades: price and quantity each."""
    prices = [price for price, _ in prints]
    change = prices[-1] - prices[0]
    sign = "-" if change < 0 else ""
    hundredths = int(abs(change) * 10000 / prices[0])
    return {
        "open_24h": exact_text(prices[0]),
        "high_24h": exact_text(max(prices)),
        "low_24h": exact_text(min(prices)),
        "volume_24h": exact_text(sum((quantity for _, quantity in prints), Fraction(0))),
        "change_24h": sign + exact_text(abs(change)),
        "change_percent_24h": (sign if hundredths else "") + decimal_text(hundredths, 2),
    }


@exactly
@given(data=st.data(), tick=steps, lot=steps)
def test_ticker_and_candles_are_exact(valkey: Server, data: Any, tick: Step, lot: Step) -> None:
    book = define(valkey, tick, lot)
    prints: list[tuple[Fraction, Fraction]] = []
    if data.draw(st.booleans(), "an hour of other steps before"):
        old_tick, old_lot = data.draw(steps), data.draw(steps)
        price = old_tick.number(data.draw(counts(old_tick)))
        volume = old_lot.number(data.draw(st.integers(1, 10**9)) * old_lot.count_max)
        hour_ms = int(time.time() * 1000) // HOUR_MS * HOUR_MS - 2 * HOUR_MS
        store_candle(book, "1h", hour_ms, volume, price)
        prints.append((Fraction(price), Fraction(volume)))
    trades = data.draw(st.lists(st.tuples(counts(tick), counts(lot)), min_size=1, max_size=5))
    for ticks, lots in trades:
        price, quantity = tick.number(ticks), lot.number(lots)
        trade(book, quantity, price)
        prints.append((Fraction(price), Fraction(quantity)))
    ticker = book.read("get_ticker")
    expected = day_of(prints)
    assert {name: ticker[name] for name in expected} == expected
    candles = book.read("get_candles", interval="1d", limit="2")["candles"]
    today = candles[-1]
    if len(candles) == 1:
        fresh = day_of(prints[-len(trades) :])
        names = {"open": "open_24h", "high": "high_24h", "low": "low_24h", "volume": "volume_24h"}
        assert {name: today[name] for name in names} == {n: fresh[names[n]] for n in names}
        assert (today["close"], today["trades"]) == (ticker["last_price"], len(trades))
    assert book.read("verify_book")["verified"] is True


# ---- depth


@exactly
@given(data=st.data(), tick=steps, lot=steps)
def test_levels_and_checksums_are_exact(valkey: Server, data: Any, tick: Step, lot: Step) -> None:
    book = define(valkey, tick, lot)
    side = data.draw(st.sampled_from(("buy", "sell")))
    prices = data.draw(st.lists(counts(tick), min_size=1, max_size=12, unique=True))
    orders = data.draw(
        st.lists(st.tuples(st.sampled_from(prices), counts(lot)), min_size=1, max_size=15)
    )
    totals: dict[int, int] = {}
    queue: list[tuple[int, int, str]] = []
    for ticks, lots in orders:
        reply = book.limit("alice", side, lot.number(lots), tick.number(ticks))
        if totals.get(ticks, 0) + lots > lot.count_max:
            assert_rejected(reply, "LEVEL_QUANTITY_TOO_LARGE")
            continue
        assert reply["status"] == "open"
        totals[ticks] = totals.get(ticks, 0) + lots
        queue.append((ticks, lots, reply["order_id"]))
    sign = -1 if side == "buy" else 1
    levels = [[tick.number(t), lot.number(totals[t])] for t in sorted(totals, key=sign.__mul__)]
    rows = [
        [tick.number(ticks), lot.number(lots), order_id]
        for ticks, lots, order_id in sorted(queue, key=lambda row: sign * row[0])
    ]
    name, other = ("bids", "asks") if side == "buy" else ("asks", "bids")
    best = {level[0] for level in levels[:10]}
    for function, found_in_book in (("get_book", levels), ("get_level3", rows)):
        found = book.read(function, depth="full")
        assert [row[:3] for row in found[name]] == found_in_book
        sides = {name: [row for row in found_in_book if row[0] in best], other: []}
        assert found["checksum"] == checksum(sides["asks"], sides["bids"], tick.text, lot.text)
    assert book.read("verify_book")["verified"] is True


# ---- auctions


def demand_at(orders: Sequence[tuple[str, int, int]], side: str, ticks: int) -> int:
    """How many lots of a side would trade at a price."""
    sign = 1 if side == "buy" else -1
    return sum(lots for of, price, lots in orders if of == side and sign * (price - ticks) >= 0)


@exactly
@given(data=st.data(), tick=steps, lot=steps)
def test_an_auction_is_exact(valkey: Server, data: Any, tick: Step, lot: Step) -> None:
    book = define(valkey, tick, lot, status="auction")
    prices = data.draw(st.lists(counts(tick), min_size=2, max_size=4, unique=True))
    # Totals beyond exactness need several large orders on both sides.
    large = st.integers(max(1, lot.count_max - 20), lot.count_max)
    lots_of_one = st.one_of(large, large, counts(lot))
    one = st.tuples(st.sampled_from(("buy", "sell")), st.sampled_from(prices), lots_of_one)
    orders = []
    drawn = data.draw(st.lists(one, min_size=4, max_size=14))
    for number, (side, ticks, lots) in enumerate(drawn):
        iceberg = {"display_quantity": lot.number(max(1, lots // 7))} if number % 3 == 2 else {}
        reply = book.limit("alice", side, lot.number(lots), tick.number(ticks), **iceberg)
        if reply["status"] == "open":
            orders.append((side, ticks, lots))
    found = book.read("get_auction")
    outcomes = {}
    for ticks in {ticks for _, ticks, _ in orders}:
        demand, supply = (demand_at(orders, side, ticks) for side in ("buy", "sell"))
        outcomes[tick.number(ticks)] = min(demand, supply), demand - supply
    most = max((volume for volume, _ in outcomes.values()), default=0)
    if most == 0:
        assert "indicative_price" not in found
        return
    surplus = outcomes[found["indicative_price"]][1]
    least = min(abs(surplus) for volume, surplus in outcomes.values() if volume == most)
    assert found["indicative_quantity"] == lot.number(most)
    assert abs(surplus) == least
    assert found.get("imbalance_quantity", "0") == lot.number(least)
    assert found.get("imbalance_side", "buy") == ("sell" if surplus < 0 else "buy")
    assert book.ask("define_instrument", status="trading")["status"] == "trading"
    traded = [Fraction(t["quantity"]) for t in book.read("get_trades")["trades"]]
    assert sum(traded) == Fraction(lot.number(most))
    assert book.read("get_ticker")["volume_24h"] == lot.number(most)
    assert book.read("verify_book")["verified"] is True


# ---- a last price between two ticks


def near(ticks: Fraction, most: int) -> st.SearchStrategy[int]:
    """Prices about one that may lie between two ticks, as far as they can be taken on."""
    whole = int(ticks)
    return st.integers(whole - 2, whole + 3).map(lambda count: min(max(count, 1), most))


@exactly
@given(data=st.data(), before=steps, after=steps, parts=st.integers(1, 1_000_000))
def test_rules_read_a_last_price_between_two_ticks_exactly(
    valkey: Server, data: Any, before: Step, after: Step, parts: int
) -> None:
    book = define(valkey, before, Step("1"))
    text = before.number(data.draw(counts(before)))
    trade(book, "1", text)
    band = decimal_text(parts, 4)
    assert "code" not in book.ask("define_instrument", tick_size=after.text, price_band=band)
    last = Fraction(text) / Fraction(after.text)
    width = last * parts / 1_000_000
    edges = st.sampled_from((last - width, last, last + width))
    ticks = data.draw(edges.flatmap(lambda edge: near(edge, after.count_max)))
    checked = {"validate_only": "true"}
    reply = book.limit("alice", "buy", "1", after.number(ticks), **checked)
    is_within = abs(ticks - last) <= width
    assert reply.get("code", "valid") == ("valid" if is_within else "PRICE_OUT_OF_BAND")
    for side, is_due in (("sell", last <= ticks), ("buy", last >= ticks)):
        stop = {"account": "alice", "side": side, "order_type": "stop", "quantity": "1"}
        reply = book.ask("place_order", **stop, stop_price=after.number(ticks), **checked)
        assert reply.get("code", "valid") == ("WOULD_TRIGGER" if is_due else "valid")


@exactly
@given(data=st.data(), before=steps, tick=steps, parts=st.integers(1, 10**6))
def test_breaker_and_trailing_stops_begin_at_a_last_price_between_two_ticks(
    valkey: Server, data: Any, before: Step, tick: Step, parts: int
) -> None:
    last_text = before.number(data.draw(counts(before)))
    last = Fraction(last_text)
    book = define(valkey, before, Step("1"))
    trade(book, "1", last_text)
    book.ask("define_instrument", tick_size=tick.text, limit_percent=decimal_text(parts, 4))
    trailing = {"account": "carol", "order_type": "trailing_stop", "trailing_offset": "1%"}
    below, above = last // Fraction(tick.text), -(-last // Fraction(tick.text))
    for side, first in (("sell", below), ("buy", above)):
        reply = book.ask("place_order", side=side, quantity="1", **trailing)
        if first <= tick.count_max:
            assert reply["reference_price"] == tick.number(int(first))
    book.ask("cancel_all_orders", account="carol")
    width = last * parts / 10**6
    ticks = data.draw(near((last + width) / Fraction(tick.text), tick.count_max))
    trade(book, "1", tick.number(ticks))
    is_within = abs(Fraction(tick.number(ticks)) - last) <= width
    assert book.read("get_instrument")["status"] == ("trading" if is_within else "halted")
    assert book.read("verify_book")["verified"] is True


# ---- price times quantity


@exactly
@given(data=st.data(), tick=steps, lot=steps)
def test_an_amount_of_money_buys_exactly_what_it_pays(
    valkey: Server, data: Any, tick: Step, lot: Step
) -> None:
    book = define(valkey, tick, lot)
    makers = {}
    for ticks in sorted(data.draw(st.lists(counts(tick), min_size=1, max_size=4, unique=True))):
        makers[ticks] = data.draw(counts(lot))
        assert book.limit("a", "sell", lot.number(makers[ticks]), tick.number(ticks))["fills"] == []
    decimals = tick.decimals + lot.decimals
    units = tick.size * lot.size
    whole = sum(ticks * lots for ticks, lots in makers.items()) * units
    amount = data.draw(st.one_of(st.integers(1, whole), st.integers(whole, 2 * whole)))
    text = decimal_text(amount, decimals)
    left, bought, fills = amount, 0, []
    for ticks, lots in makers.items():
        part = min(lots, left // (ticks * units))
        left, bought = left - part * ticks * units, bought + part
        fills += [(tick.number(ticks), lot.number(part))] if part else []
        if part < lots:
            break
    reply = book.ask(
        "place_order", account="b", side="buy", order_type="market", quote_quantity=text
    )
    if len(text) > 40:
        assert_rejected(reply, "INVALID_NUMBER")
    elif bought > lot.count_max:
        assert_rejected(reply, "QUANTITY_TOO_LARGE")
    else:
        assert [(fill["price"], fill["quantity"]) for fill in reply["fills"]] == fills
    assert book.read("verify_book")["verified"] is True


@exactly
@given(data=st.data(), tick=steps, lot=steps)
def test_min_notional_is_met_to_the_last_unit(
    valkey: Server, data: Any, tick: Step, lot: Step
) -> None:
    ticks, lots = data.draw(counts(tick)), data.draw(counts(lot))
    notional, decimals = ticks * lots * tick.size * lot.size, tick.decimals + lot.decimals
    for least, is_met in ((notional, True), (notional + 1, False)):
        text = decimal_text(least, decimals)
        if len(text) > 40:
            continue
        book = define(valkey, tick, lot, min_notional=text)
        assert book.read("get_instrument")["min_notional"] == text
        reply = book.limit("alice", "buy", lot.number(lots), tick.number(ticks))
        assert (reply["status"] == "open") == is_met, reply
        if not is_met:
            assert_rejected(reply, "NOTIONAL_TOO_SMALL")


# ---- percentages


@exactly
@given(
    data=st.data(),
    tick=steps,
    parts=st.one_of(st.integers(1, 10**6), st.integers(1, 10)),
    side=st.sampled_from(("buy", "sell")),
)
def test_a_price_band_is_exact(
    valkey: Server, data: Any, tick: Step, parts: int, side: str
) -> None:
    last = data.draw(counts(tick))
    book = define(valkey, tick, Step("1"))
    trade(book, "1", tick.number(last))
    book.ask("define_instrument", price_band=decimal_text(parts, 4))
    width = last * parts // 10**6
    for ticks, fits in (
        *((last + width, True), (last + width + 1, False)),
        *((last - width, True), (last - width - 1, False)),
    ):
        if 0 < ticks <= tick.count_max:
            reply = book.limit("alice", side, "1", tick.number(ticks), time_in_force="ioc")
            assert ("code" not in reply) == fits, reply


@pytest.mark.parametrize("side", ["buy", "sell"])
def test_a_trailing_stop_at_the_largest_price_waits_on(book: Book, side: str) -> None:
    most = decimal_text(EXACT_MAX, 2)
    trade(book, "1", most)
    reply = book.ask(
        "place_order", account="carol", side=side, order_type="trailing_stop", quantity="1",
        trailing_offset=most,
    )  # fmt: skip
    assert reply["status"] == "open"
    trade(book, "1", most)
    assert book.read("get_order", order_id=reply["order_id"])["reference_price"] == most
    assert book.read("verify_book")["verified"] is True
