"""Stories in tests/scenarios: orders in, replies, trades and the book drawn as a table out.

A scenario is read top to bottom. `#` begins a comment. An unindented line says or asks something:

    instrument tick_size 0.01 lot_size 1      what the book is (these are the defaults)
    status halted                             the instrument's status from here on
    alice buy 5 @ 100                         a limit order; `as NAME` gives it a client_order_id,
    bob sell 3 market                         and further words are ioc, fok and post_only
    alice amends a1 price 101 quantity 4      named by client_order_id, or #17 by order_id
    alice cancels a1
    alice cancels everything
    batch                                     the indented lines below are one `execute`

An indented line says what comes of it:

    → 1 open 5 left                           order 1, its status, its remaining_quantity
    → rejected PRICE_OFF_TICK
    → canceled 1 2                            of `cancels everything`
    → the same reply again                    word for word what the same command got before
    trade 2 @ 100 with 1                      each fill, in order, and its maker's order_id

And the book, whenever it matters, asks above bids; order ids stand in queue order:

    book
        102 | 4 | 3
        ---
        100 | 7 | 1 2

Whatever happens in a scenario, the book must verify after each line.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from books import Book, Json, decode, words
from conftest import NewBook

SCENARIOS = Path(__file__).resolve().parent / "scenarios"
DEFINITION = {"tick_size": "0.01", "lot_size": "1"}
SPREAD = "---"

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

    def play(self, step: Step) -> None:
        verb = step.line.split()[0]
        if verb == "instrument":
            self.define(step.line.split()[1:])
            return
        if not self.is_defined:
            self.define([])
        if verb == "status":
            self.book.ask("define_instrument", status=step.line.split()[1])
        elif verb == "book":
            assert self.drawn() == [_squeezed(line) for line in step.expected], "\n".join(
                ["the book is", *self.drawn()]
            )
        elif verb == "batch":
            self.play_batch(step)
        else:
            self.play_command(step)
        self.book.state_hash()

    def define(self, pairs: list[str]) -> None:
        fields = DEFINITION | dict(zip(pairs[::2], pairs[1::2], strict=True))
        assert "sequence" in self.book.ask("define_instrument", **fields)
        self.is_defined = True

    def play_command(self, step: Step) -> None:
        command = parse_command(step.line)
        fields = dict(command)
        raw = self.book.raw(fields.pop("method"), *words(fields))
        self.check(step.line, raw, step.expected)

    def play_batch(self, step: Step) -> None:
        """Commands and what comes of each; all indented, so told apart by what they begin with."""
        said: list[Step] = []
        for line in step.expected:
            if _is_outcome(line):
                said[-1].expected.append(line)
            else:
                said.append(Step(step.number, line))
        replies = self.book.execute(*(parse_command(part.line) for part in said))
        for part, reply in zip(said, replies, strict=True):
            assert told(reply) == part.expected, part.line

    def check(self, line: str, raw: bytes, expected: list[str]) -> None:
        if expected == ["→ the same reply again"]:
            assert raw == self.first_replies[line]
            return
        self.first_replies[line] = raw
        found = told(decode(raw))
        assert found == expected, "\n".join(["what came of it:", *found])

    def drawn(self) -> list[str]:
        """The book as scenarios draw it."""
        depth = self.book.read("get_book", depth="full")
        queues = self.queues()
        asks, bids = (
            [f"{price} | {quantity} | {' '.join(queues[price])}" for price, quantity in depth[side]]
            for side in ("asks", "bids")
        )
        return [*reversed(asks), SPREAD, *bids]

    def queues(self) -> dict[str, list[str]]:
        """price → order ids in the order they will trade, as subscribers learn it from reports."""
        priorities: dict[str, int] = {}
        prices: dict[str, str] = {}
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
            for order in self.book.read("get_open_orders", account=account)["orders"]:
                prices[order["order_id"]] = order["price"]
        queued = sorted(prices, key=priorities.__getitem__)
        by_price = itertools.groupby(sorted(queued, key=prices.__getitem__), prices.__getitem__)
        return {price: list(ids) for price, ids in by_price}


def _is_outcome(line: str) -> bool:
    return line.startswith(("→", "trade "))


def _squeezed(line: str) -> str:
    return " ".join(line.split())


def parse_command(line: str) -> Json:
    """A line of a scenario as the command it means."""
    account, verb, *rest = line.split()
    if verb in {"buy", "sell"}:
        return _parse_order(account, verb, rest)
    if rest == ["everything"]:
        assert verb == "cancels", line
        return {"method": "cancel_all_orders", "account": account}
    named, *terms = rest
    command: Json = {"method": {"cancels": "cancel_order", "amends": "amend_order"}[verb]}
    command["account"] = account
    key = "order_id" if named.startswith("#") else "client_order_id"
    command[key] = named.removeprefix("#")
    return command | dict(zip(terms[::2], terms[1::2], strict=True))


def _parse_order(account: str, side: str, rest: list[str]) -> Json:
    quantity, *terms = rest
    order: Json = {"method": "place_order", "account": account, "side": side, "quantity": quantity}
    words_left = iter(terms)
    for word in words_left:
        if word == "@":
            order |= {"order_type": "limit", "price": next(words_left)}
        elif word == "market":
            order["order_type"] = "market"
        elif word == "as":
            order["client_order_id"] = next(words_left)
        elif word == "post_only":
            order["post_only"] = "true"
        else:
            order["time_in_force"] = word
    return order


def told(reply: Json) -> list[str]:
    """A reply as scenarios tell it."""
    if reply.get("status") == "rejected":
        return [f"→ rejected {reply['code']}"]
    if "canceled_order_ids" in reply:
        return [" ".join(["→ canceled", *reply["canceled_order_ids"]])]
    order = f"→ {reply['order_id']} {reply['status']} {reply['remaining_quantity']} left"
    fills = [
        f"trade {fill['quantity']} @ {fill['price']} with {fill['maker_order_id']}"
        for fill in reply.get("fills", [])
    ]
    return [order, *fills]


@pytest.mark.parametrize("path", paths, ids=lambda path: path.stem)
def test_scenario_ends_as_told(new_book: NewBook, path: Path) -> None:
    story = Story(new_book())
    for step in read_steps(path):
        try:
            story.play(step)
        except AssertionError as error:
            raise AssertionError(f"{path.name}:{step.number}: {step.line}\n{error}") from error


def test_there_are_scenarios_for_every_rule() -> None:
    assert len(paths) >= 20
