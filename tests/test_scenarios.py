"""Stories in tests/scenarios: orders in, replies, reports and the book drawn as a table out.

A scenario is read top to bottom. `#` begins a comment. An unindented line says or asks something:

    instrument tick_size 0.01 lot_size 1      what the book is (these are the defaults)
    status halted                             the instrument's status from here on
    is halted                                 what it is now
    ticker bid 99 ask 110 last 110 volume 0   what the ticker tells
    candles 1m                                the candles, one to an indented line: when it opened,
                                              open, high, low, close, volume, trades, open or closed
    auction 100 5 buy 2                       what an auction would come to: price, quantity, and on
                                              which side how much would be left over
    at 1500                                   it is 1500 seconds past the story's beginning now
    tick                                      what is due happens
    alice buy 5 @ 100                         a limit order; `as NAME` gives it a client_order_id,
    bob sell 3 market                         and further words are ioc, fok and post_only
    alice amends a1 price 101 quantity 4      named by client_order_id, or #17 by order_id
    alice cancels a1
    alice cancels everything                  or `everything buy`: of one side
    alice replaces a1 with sell 3 @ 100       a new order in place of another; ending in `continue`
                                              each of the two is tried
    alice quotes buy 5 @ 99, sell 5 @ 101     a mass_quote; `quotes nothing` withdraws all.
                                              post_only, stp, group at its end are about all of it
    alice cancels everything of s1            of what she placed with the session s1
    alice arms 60                             cancel_all_after: her timer runs out in 60 seconds
    alice arms 60 of s1                       the same for her session s1
    alice disarms                             `of s1` likewise
    alice joins desk                          an operator puts her into a group of one trader
    alice leaves                              and out of it
    batch                                     the indented lines below are one `execute`
    1000 times alice buy 1 @ 90               the same over and over, each time accepted

Orders can be told more:

    alice sell 10 @ 100 display 3             an iceberg
    alice buy 5 @ 100 until 2000              gtd: it expires 2000 seconds past the beginning
    bob buy market for 250                    a quote_quantity in place of a quantity
    bob buy 5 market protection 5%
    bob buy 5 @ 100 stp cancel_maker group g1
    bob buy 5 @ 100 validate_only
    bob buy 5 @ 100 of s1                     placed with the session s1
    carol sell stop 5 at 98                   an order that waits for a trade at 98;
    carol sell stop_limit 5 at 98 @ 97.5      take_profit and take_profit_limit likewise
    carol sell trailing 5 by 2%

    alice oco sell 5 @ 110; sell stop 5 at 95
    alice bracket buy 5 @ 100; sell @ 110; sell stop at 95

(an order list: oco, oto or bracket), and any command may end in `valid_until 1500`. An indented
line says what comes of it:

    → 1 open 5 left                           order 1, its status, its remaining_quantity
    → rejected PRICE_OFF_TICK
    → valid 2 fill                            of validate_only
    → canceled 1 2                            of `cancels everything`, and first of `quotes`
    → list 1                                  of an order list, then each of its orders;
    → 2 dormant 5 left                        one that is not armed yet
    → 2 expired 0 triggered                   of tick, with ` pending` behind where more is due,
                                              and before that ` 3 canceled` where timers did so
    → armed until 1560                        of a timer; or `→ disarmed`
    → the same reply again                    word for word what the same command got before,
                                              however it was written then
    trade 2 @ 100 with 1                      each fill, in order, and its maker's order_id

and then what happened beside the reply, as the accounts learn it from their order reports, one
account after the other:

    expired 3 5 left                          order 3, and its remaining_quantity
    refreshed 4 7 left
    decremented 4 7 left
    triggered 7 5 left
    paused 7 2 left                           one that goes on in the next call, and does
    resumed 7 2 left
    armed 2 3 left                            an order of a list, with as much as its entry filled
    amended 2 5 left                          though nobody asked for it
    7 trades 5 @ 98 with 2                    a triggered order's fill
    canceled 5 3 left self_trade              another's order, or this one for an unusual reason

(Very many are told as their kinds and numbers: `expired and so on 1000 in all`.) And the book,
whenever it matters, asks above bids; order ids stand in queue order:

    book
        102 | 4 | 3
        ---
        100 | 7 | 1 2

and `waiting 7 8`, the orders that wait for their price. Whatever happens in a scenario, the book
must verify after each line, and at the end be what its event stream alone tells.
"""

import contextlib
import itertools
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from books import Book, Json, decode, words
from clock import set_clock, shimmed
from orderbook.engine import library
from servers import fake_client, library_for, running

SCENARIOS = Path(__file__).resolve().parent / "scenarios"
DEFINITION = {"tick_size": "0.01", "lot_size": "1"}
SPREAD = "---"
# When every story begins.
BEGINNING_MS = 1_800_000_000_000
BATCH_LENGTH_MAX = 256
TOLD_LENGTH_MAX = 20

TICKER_FIELDS = {
    "bid": "best_bid",
    "ask": "best_ask",
    "last": "last_price",
    "open": "open_24h",
    "high": "high_24h",
    "low": "low_24h",
    "volume": "volume_24h",
    "change": "change_24h",
    "percent": "change_percent_24h",
}

paths = sorted(SCENARIOS.glob("*.txt"))


@dataclass
class Step:
    """An unindented line and the indented ones that belong to it."""

    number: int
    line: str
    expected: list[str] = field(default_factory=list)


def read_steps(path: Path) -> Iterator[Step]:
    step: Step | None = None
    for number, raw in enumerate(path.read_text("utf-8").splitlines(), 1):
        line = raw.partition("# ")[0].rstrip()
        if not line or line == "#":
            continue
        if not line.startswith(" "):
            if step is not None:
                yield step
            step = Step(number, line)
        else:
            assert step is not None, f"{path.name}:{number}: belongs to no line"
            step.expected.append(line.strip())
    if step is not None:
        yield step


class Story:
    """One scenario on one book."""

    def __init__(self, book: Book) -> None:
        self.book = book
        # command → the raw reply it got first.
        self.first_replies: dict[str, bytes] = {}
        self.is_defined = False
        # The sequence up to which the story has told what happened.
        self.told_sequence = 0
        set_clock(book.client, BEGINNING_MS)

    def play(self, step: Step) -> None:
        verb, *rest = step.line.split()
        if verb == "instrument":
            self.define(rest)
            return
        if not self.is_defined:
            self.define([])
        if verb == "status":
            self.set_status(step, rest[0])
        elif verb == "at":
            set_clock(self.book.client, int(_time_ms(rest[0])))
        elif verb in {"book", "waiting", "is", "auction", "ticker", "candles"}:
            self.check(verb, rest, step.expected)
        elif verb == "batch":
            self.play_batch(step)
        elif rest[:1] == ["times"]:
            self.play_often(int(verb), " ".join(rest[1:]), step.expected)
        else:
            self.play_command(step)
        self.book.state_hash()

    def check(self, verb: str, rest: list[str], drawing: list[str]) -> None:
        """A line that says how things stand."""
        if verb == "book":
            drawn = self.drawn()
            expected = [_squeezed(line) for line in drawing]
            assert drawn == expected, "\n".join(["the book is", *drawn])
        elif verb == "waiting":
            assert self.waiting() == rest, f"waiting are {self.waiting()}"
        elif verb == "candles":
            drawn = self.candles(rest[0])
            assert drawn == drawing, "\n".join(["the candles are", *drawn])
        elif verb == "ticker":
            assert self.ticker() == rest, f"ticker {' '.join(self.ticker())}"
        elif verb == "is":
            assert self.book.read("get_instrument")["status"] == rest[0]
        else:
            assert self.indicated() == rest, f"auction {' '.join(self.indicated())}"

    def define(self, pairs: list[str]) -> None:
        fields = DEFINITION | dict(zip(pairs[::2], pairs[1::2], strict=True))
        assert "sequence" in self.book.ask("define_instrument", **fields)
        self.is_defined = True

    def set_status(self, step: Step, status: str) -> None:
        reply = self.book.ask("define_instrument", status=status)
        found = told(reply) if "code" in reply else self.happened([])
        assert found == [_squeezed(line) for line in step.expected], "\n".join(found)

    def indicated(self) -> list[str]:
        reply = self.book.read("get_auction")
        names = ("indicative_price", "indicative_quantity", "imbalance_side", "imbalance_quantity")
        return [reply[name] for name in names if name in reply] or ["nothing"]

    def candles(self, interval: str) -> list[str]:
        reply = self.book.read("get_candles", interval=interval)
        names = ("open", "high", "low", "close", "volume", "trades")
        return [
            " ".join(
                [
                    # Days begin at midnight, not with the story.
                    str(max(0, (candle["open_time_ms"] - BEGINNING_MS) // 1000)),
                    *(str(candle[name]) for name in names),
                    "closed" if candle["closed"] else "open",
                ]
            )
            for candle in reply["candles"]
        ]

    def ticker(self) -> list[str]:
        reply = self.book.read("get_ticker")
        return [
            word
            for name, field_name in TICKER_FIELDS.items()
            if field_name in reply
            for word in (name, reply[field_name])
        ]

    def play_command(self, step: Step) -> None:
        fields = parse_command(step.line)
        raw = self.book.raw(fields.pop("method"), *words(fields))
        happened = self.happened([decode(raw)])
        if step.expected == ["→ the same reply again"]:
            earlier = self.first_replies
            assert raw in ([earlier[step.line]] if step.line in earlier else earlier.values())
            return
        self.first_replies[step.line] = raw
        found = [*told(decode(raw)), *happened]
        expected = [_squeezed(line) for line in step.expected]
        assert found == expected, "\n".join(["what came of it:", *found])

    def play_often(self, count: int, line: str, expected: list[str]) -> None:
        """The same command over and over; only what happens beside the replies is told."""
        commands = [parse_command(line)] * count
        replies: list[Json] = []
        for start in range(0, count, BATCH_LENGTH_MAX):
            replies += self.book.execute(*commands[start : start + BATCH_LENGTH_MAX])
        assert [told(reply) for reply in replies if reply["status"] == "rejected"] == []
        assert self.happened(replies) == [_squeezed(line) for line in expected]

    def play_batch(self, step: Step) -> None:
        """Commands and what comes of each; all indented, so told apart by what they begin with."""
        said: list[Step] = []
        for line in step.expected:
            if _is_outcome(line):
                said[-1].expected.append(line)
            else:
                said.append(Step(step.number, line))
        replies = self.book.execute(*(parse_command(part.line) for part in said))
        found = [told(reply) for reply in replies]
        # The reports of a call are one: they are told after the last of its commands.
        found[-1] += self.happened(replies)
        for part, lines in zip(said, found, strict=True):
            assert lines == part.expected, f"{part.line}\n" + "\n".join(lines)

    def happened(self, replies: list[Json]) -> list[str]:
        """What order reports tell since the last time and these replies do not."""
        own = {part.get("order_id") for reply in replies for part in _parts(reply)}
        for reply in replies:
            own |= set(reply.get("canceled_order_ids", ()))
        lines: list[str] = []
        for sequence, topics in self.book.entries("events", self.told_sequence):
            self.told_sequence = sequence
            trades = {trade["trade_id"]: trade for trade in _trades(topics)}
            for topic, message in topics.items():
                if topic.startswith("orders:"):
                    lines += told_reports(message["orders"], own, trades)
        return _abbreviated(lines)

    def drawn(self) -> list[str]:
        """The book as scenarios draw it."""
        depth = self.book.read("get_book", depth="full")
        queues = self.queues()
        asks, bids = (
            [
                f"{price} | {quantity} | {' '.join(queues[side, price])}"
                for price, quantity in depth[levels]
            ]
            for side, levels in (("sell", "asks"), ("buy", "bids"))
        )
        return [*reversed(asks), SPREAD, *bids]

    def queues(self) -> dict[tuple[str, str], list[str]]:
        """(side, price) → order ids in the order they will trade, as told in reports."""
        priorities: dict[str, int] = {}
        prices: dict[str, tuple[str, str]] = {}
        accounts = set()
        for _, topics in self.book.entries("events"):
            for topic, message in topics.items():
                if not topic.startswith("orders:"):
                    continue
                accounts.add(message["account"])
                for report in message["orders"]:
                    if "priority" in report:
                        priorities[report["order_id"]] = report["priority"]
        for account in accounts:
            for order in self.open_orders(account):
                stands = order.get("triggered", True) and order.get("armed", True)
                if stands and "price" in order:
                    prices[order["order_id"]] = order["side"], order["price"]
        queued = sorted(prices, key=priorities.__getitem__)
        by_price = itertools.groupby(sorted(queued, key=prices.__getitem__), prices.__getitem__)
        return {price: list(ids) for price, ids in by_price}

    def open_orders(self, account: str) -> Iterator[Json]:
        """All of an account, page by page."""
        after: dict[str, str] = {}
        while True:
            fields = {"account": account, "limit": "1000", **after}
            page = self.book.read("get_open_orders", **fields)
            yield from page["orders"]
            if not page["more"]:
                return
            after = {"after": page["orders"][-1]["order_id"]}

    def waiting(self) -> list[str]:
        """The ids of the orders that wait for their price."""
        accounts = set()
        for _, topics in self.book.entries("events"):
            accounts |= {topic[len("orders:") :] for topic in topics if topic[:7] == "orders:"}
        orders = (order for account in accounts for order in self.open_orders(account))
        ids = [
            order["order_id"]
            for order in orders
            if order.get("triggered") is False and order.get("armed", True)
        ]
        return sorted(ids, key=int)


def _trades(topics: Json) -> list[Json]:
    trades: list[Json] = topics.get("trades", {}).get("trades", [])
    return trades


def _is_outcome(line: str) -> bool:
    first, second, *_ = (*line.split(), "")
    return first in {"→", "trade", *TOLD_EVENTS, "amended", "canceled"} or second == "trades"


def _squeezed(line: str) -> str:
    return " ".join(line.split())


def _abbreviated(lines: list[str]) -> list[str]:
    """Very many lines as their kinds and how many there are of each."""
    if len(lines) <= TOLD_LENGTH_MAX:
        return lines
    kinds = Counter("trades" if " trades " in line else line.split()[0] for line in lines)
    return [f"{kind} and so on {count} in all" for kind, count in kinds.items()]


def _time_ms(seconds: str) -> str:
    return str(BEGINNING_MS + round(float(seconds) * 1000))


def parse_command(line: str) -> Json:
    """A line of a scenario as the command it means."""
    if line == "tick":
        return {"method": "tick"}
    account, verb, *rest = line.split()
    if verb in {"joins", "leaves"}:
        group = {"stp_group": rest[0]} if rest else {}
        return {"method": "set_stp_group", "account": account, **group}
    line, _, seconds = line.partition(" valid_until ")
    command = _parse_timeless(line)
    return command | ({"valid_until_ms": _time_ms(seconds)} if seconds else {})


def _parse_timeless(line: str) -> Json:
    account, verb, *rest = line.split()
    if verb in {"buy", "sell"}:
        return _parse_order(account, verb, rest)
    if verb in LIST_TYPES:
        return _parse_list(account, verb, rest)
    if verb == "quotes":
        return _parse_quotes(account, line.partition(" quotes ")[2])
    if verb == "replaces":
        named, _, side, *terms = rest
        key = "cancel_order_id" if named.startswith("#") else "cancel_client_order_id"
        order = _parse_order(account, side, terms)
        return {**order, "method": "replace_order", key: named.removeprefix("#")}
    if verb in {"arms", "disarms"} or rest[:1] == ["everything"]:
        return _parse_about_all(account, verb, rest)
    named, *terms = rest
    command: Json = {"method": {"cancels": "cancel_order", "amends": "amend_order"}[verb]}
    command["account"] = account
    key = "order_id" if named.startswith("#") else "client_order_id"
    command[key] = named.removeprefix("#")
    return command | dict(zip(terms[::2], terms[1::2], strict=True))


def _parse_quotes(account: str, said: str) -> Json:
    """Quotes apart by commas; what they do not have of their own is the command's."""
    command: Json = {"method": "mass_quote", "account": account}
    quotes = []
    for part in said.split(",") if said != "nothing" else ():
        side, *terms = part.split()
        order = _parse_order(account, side, terms)
        quotes.append({name: order.pop(name) for name in QUOTE_FIELDS if name in order})
        del order["method"], order["order_type"]
        command |= order
    return {**command, "quotes": json.dumps(quotes)}


QUOTE_FIELDS = ("side", "price", "quantity", "client_order_id")


def _parse_about_all(account: str, verb: str, rest: list[str]) -> Json:
    """A command about all orders of an account, or of one side or one of its sessions."""
    command: Json = {"method": "cancel_all_orders", "account": account}
    if verb != "cancels":
        timeout_ms = str(round(float(rest[0]) * 1000)) if verb == "arms" else "0"
        command = {"method": "cancel_all_after", "account": account, "timeout_ms": timeout_ms}
    elif len(rest) % 2 == 0:
        command["side"] = rest[1]
    return command | ({"session": rest[-1]} if rest[-2:-1] == ["of"] else {})


# A word of an order → the field that the next word is the value of.
FIELDS = {
    "as": "client_order_id",
    "at": "stop_price",
    "by": "trailing_offset",
    "display": "display_quantity",
    "for": "quote_quantity",
    "group": "stp_group",
    "of": "session",
    "stp": "self_trade_prevention",
}
LIST_TYPES = ("oco", "oto", "bracket")
# A word of an order that tells all by itself.
WORDS = {
    "post_only": {"post_only": "true"},
    "validate_only": {"validate_only": "true"},
    "continue": {"on_failure": "continue"},
}
WAITING_TYPES = ("stop", "stop_limit", "take_profit", "take_profit_limit", "trailing")


def _parse_order(account: str, side: str, rest: list[str]) -> Json:
    order: Json = {"method": "place_order", "account": account, "side": side}
    if rest[0] in WAITING_TYPES:
        order["order_type"] = "trailing_stop" if rest[0] == "trailing" else rest[0]
        rest = rest[1:]
    if rest[0] not in {"market", "@", "at", "by"}:
        order["quantity"], *rest = rest
    words_left = iter(rest)
    for word in words_left:
        if word in FIELDS:
            order[FIELDS[word]] = next(words_left)
        elif word == "@":
            order |= {"order_type": "limit"} | order | {"price": next(words_left)}
        elif word == "market":
            order["order_type"] = "market"
        elif word == "until":
            order |= {"time_in_force": "gtd", "expire_time_ms": _time_ms(next(words_left))}
        elif word == "protection":
            order["protection"] = next(words_left).removesuffix("%")
        else:
            order |= WORDS.get(word, {"time_in_force": word})
    return order


def _parse_list(account: str, list_type: str, rest: list[str]) -> Json:
    fields: Json = {"method": "place_order_list", "account": account, "list_type": list_type}
    while rest[0] in {"as", "of"}:
        fields[FIELDS[rest[0]]], *rest = rest[1:]
    orders = []
    for part in " ".join(rest).split(";"):
        side, *terms = part.split()
        order = _parse_order(account, side, terms)
        orders.append({k: v for k, v in order.items() if k not in {"method", "account"}})
    return fields | {"orders": json.dumps(orders)}


def _parts(reply: Json) -> list[Json]:
    """The replies about single orders that a reply consists of."""
    if "list_type" in reply:
        return list(reply["orders"])
    if "placed" not in reply:
        return [reply]
    if "canceled_order_ids" in reply:
        return list(reply["placed"])
    return [reply["canceled"], reply["placed"]]


def _told_parts(reply: Json) -> list[str]:
    """A reply of parts, after what it says as a whole."""
    lines = []
    if "list_type" in reply:
        lines = [f"→ list {reply['order_list_id']}"]
    elif "canceled_order_ids" in reply:
        lines = [" ".join(["→ canceled", *reply["canceled_order_ids"]])]
    return lines + [line for part in _parts(reply) for line in told(part)]


def told(reply: Json) -> list[str]:
    """A reply as scenarios tell it."""
    if {"placed", "list_type"} & reply.keys():
        return _told_parts(reply)
    if reply.get("status") == "rejected":
        return [f"→ rejected {reply['code']}"]
    if "segment" in reply:
        return []
    if reply.get("status") == "valid":
        return [f"→ valid {reply['fill_quantity']} fill"]
    for name, teller in TOLD_BY_FIELD.items():
        if name in reply:
            return [teller(reply)]
    status = reply["status"] if reply.get("armed", True) else "dormant"
    order = f"→ {reply['order_id']} {status} {reply['remaining_quantity']} left"
    fills = [
        f"trade {fill['quantity']} @ {fill['price']} with {fill['maker_order_id']}"
        for fill in reply.get("fills", [])
    ]
    return [order, *fills]


def _told_tick(reply: Json) -> str:
    counts = f"→ {reply['expired_count']} expired {reply['triggered_count']} triggered"
    canceled = f" {reply['canceled_count']} canceled" if reply["canceled_count"] else ""
    return counts + canceled + (" pending" if reply["pending"] else "")


def _told_timer(reply: Json) -> str:
    if "cancel_time_ms" not in reply:
        return "→ disarmed"
    return f"→ armed until {(reply['cancel_time_ms'] - BEGINNING_MS) / 1000:g}"


# What a reply that is not about an order has alone → how it is told.
TOLD_BY_FIELD = {
    "canceled_order_ids": lambda reply: " ".join(["→ canceled", *reply["canceled_order_ids"]]),
    "expired_count": _told_tick,
    "timeout_ms": _told_timer,
}

TOLD_EVENTS = {
    *("expired", "refreshed", "decremented", "triggered", "armed"),
    *("paused", "resumed"),
}
# Reasons that the status of a reply tells already.
USUAL_REASONS = ("requested", "replaced", "cancel_all", "ioc", "fok")


def told_reports(reports: list[Json], own: set[str | None], trades: Json) -> Iterator[str]:
    """An account's reports as scenarios tell them; `own` are the orders that replies are about."""
    for report in reports:
        order_id, event = report["order_id"], report["event"]
        if event in TOLD_EVENTS or (event == "amended" and order_id not in own):
            yield f"{event} {order_id} {report['remaining_quantity']} left"
        elif event == "canceled":
            if order_id not in own or report["reason"] not in USUAL_REASONS:
                left = f"{report['remaining_quantity']} left {report['reason']}"
                yield f"canceled {order_id} {left}"
        elif event == "trade" and report["role"] == "taker" and order_id not in own:
            maker = trades[report["trade_id"]]["maker_order_id"]
            yield f"{order_id} trades {report['quantity']} @ {report['price']} with {maker}"


@pytest.fixture(scope="module")
def moved_clock(engine: str) -> Iterator[Any]:
    """A client of a server of its own whose library asks the stories for the time."""
    with contextlib.ExitStack() as cleanup:
        if engine == "fakeredis":
            client = fake_client()
        else:
            client = cleanup.enter_context(running(engine)).client
        text = library_for(engine, shimmed(library.bundle().text))
        client.execute_command("FUNCTION", "LOAD", text)
        yield client


@pytest.mark.parametrize("path", paths, ids=lambda path: path.stem)
def test_scenario_ends_as_told(moved_clock: Any, path: Path) -> None:
    moved_clock.flushall()
    story = Story(Book(moved_clock, "STORY"))
    for step in read_steps(path):
        try:
            story.play(step)
        except AssertionError as error:
            raise AssertionError(f"{path.name}:{step.number}: {step.line}\n{error}") from error
    if story.is_defined:
        story.book.assert_is_what_its_stream_tells()


def test_there_are_scenarios_for_every_rule() -> None:
    assert len(paths) >= 20
