"""The public matching-engine challenge: 34 cases that broke real engines, and two small workloads.

Played through the engine on every server, and through the reference, which so proves itself: the
expected report streams were published by others.
"""

import json
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import challenge
from books import Book
from conftest import ROOT
from reference import ReferenceBook

pytestmark = pytest.mark.exhaustive

WORKLOADS = ("small-normal.bin", "small-swing-25.bin")
# fakeredis interprets every command in Python: a workload would take minutes.
SLOW_ENGINES = ("fakeredis",)
CASES = 34
DEEP_CASE = "deep_recursive_sweep_5000"


class EngineDoor:
    """The engine as the challenge's driver sees it."""

    def __init__(self, book: Book) -> None:
        self.book = book
        self.replies: list[list[bytes]] = []
        book.define(tick_size="1", lot_size="1")

    def send(self, commands: Sequence[dict[str, str]]) -> None:
        if len(commands) == 1:
            fields = dict(commands[0])
            method = fields.pop("method")
            arguments = [word for pair in fields.items() for word in pair]
            self.replies.append([self.book.raw(method, *arguments)])
        else:
            self.replies.append(self.book.raw("execute", *map(json.dumps, commands)))

    def receive(self) -> list[bytes]:
        return self.replies.pop(0)


class ReferenceDoor:
    """The reference in the same place."""

    def __init__(self) -> None:
        self.book = ReferenceBook("CHALLENGE")
        self.replies: list[list[bytes]] = []
        self.book.call("define_instrument", "tick_size", "1", "lot_size", "1")

    def send(self, commands: Sequence[dict[str, str]]) -> None:
        replies = self.book.execute(commands)
        assert isinstance(replies, list)
        self.replies.append([json.dumps({"message": "", **reply}).encode() for reply in replies])

    def receive(self) -> list[bytes]:
        return self.replies.pop(0)


def find_data(name: str) -> Path:
    """A file of the challenge, or the test is skipped."""
    data = Path(os.environ.get("ORDERBOOK_DATA") or ROOT.parent / "shared" / "data")
    path = data / "challenge" / name
    if not path.is_file():
        pytest.skip(f"there is no {path}: set ORDERBOOK_DATA to the folder of the market data")
    return path


@cache
def load_cases() -> dict[str, Any]:
    cases: dict[str, Any] = json.loads(find_data("edge_cases.json").read_bytes())
    assert len(cases) == CASES
    return cases


def deep_sweep() -> list[list[int]]:
    """5,000 sellers of one at one price, then a buyer of all: too long for the file to list."""
    sellers = [[challenge.NEW, 1, 0, 1, order_id, 100] for order_id in range(1, 5001)]
    return [*sellers, [challenge.NEW, 0, 0, 5000, 5001, 100]]


def to_messages(case: dict[str, Any]) -> list[challenge.Message]:
    listed = case["messages"] if isinstance(case["messages"], list) else deep_sweep()
    return [
        challenge.Message(kind, side, ioc, 0, quantity, sequence, order_id, price, 0)
        for sequence, (kind, side, ioc, quantity, order_id, price) in enumerate(listed)
    ]


def report_lines(door: challenge.Door, messages: list[challenge.Message], batch: int) -> list[str]:
    return [line for lines in challenge.replay(door, messages, batch) for line in lines]


def check_case(case: dict[str, Any], lines: list[str]) -> None:
    if isinstance(case["expected"], list):
        assert lines == case["expected"]
    assert challenge.hash_reports([lines]) == case["sha256"]


def test_reference_passes_every_case_but_the_deep_one() -> None:
    for name, case in load_cases().items():
        # The reference searches every collection from its beginning: too slow for that one.
        if name != DEEP_CASE:
            check_case(case, report_lines(ReferenceDoor(), to_messages(case), 1))


@pytest.mark.parametrize("workload", WORKLOADS)
def test_reference_reproduces_the_published_reports(workload: str) -> None:
    path = find_data(f"{workload}.xz")
    reports = challenge.replay(ReferenceDoor(), challenge.read_messages(path), 256)
    assert challenge.hash_reports(reports) == challenge.expected_hash(path)


def test_every_case_by_single_calls(new_book: Any) -> None:
    for name, case in load_cases().items():
        if name == DEEP_CASE:
            continue
        book = new_book()
        check_case(case, report_lines(EngineDoor(book), to_messages(case), 1))
        book.state_hash()


def test_every_case_in_one_batch(new_book: Any) -> None:
    for name, case in load_cases().items():
        if name == DEEP_CASE:
            continue
        book = new_book()
        check_case(case, report_lines(EngineDoor(book), to_messages(case), 256))
        book.state_hash()


def test_sweep_of_5000_makers(new_book: Any, engine: str) -> None:
    if engine in SLOW_ENGINES:
        pytest.skip(f"{engine} is too slow for this case")
    case = load_cases()[DEEP_CASE]
    book = new_book()
    # The sweep stands alone in its call, so that nothing but its own fills count.
    check_case(case, report_lines(EngineDoor(book), to_messages(case), 250))
    book.state_hash()


@pytest.mark.parametrize("workload", WORKLOADS)
def test_workload_reproduces_the_published_reports(
    new_book: Any, engine: str, workload: str
) -> None:
    if engine in SLOW_ENGINES:
        pytest.skip(f"{engine} is too slow for this workload")
    path = find_data(f"{workload}.xz")
    book = new_book()
    reports = challenge.replay(EngineDoor(book), challenge.read_messages(path), 64)
    assert challenge.hash_reports(reports) == challenge.expected_hash(path)
    book.state_hash()
