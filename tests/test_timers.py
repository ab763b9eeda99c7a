"""Timers by FCALL: where they lie, their limits, and the damage that verify_book finds in them.

What they do is told in tests/scenarios. Here the clock is the library's own where time does not
matter, and the test's where it does.
"""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from redis.exceptions import ResponseError

import reference
from books import Book, Json, assert_rejected
from clock import set_clock, shimmed
from conftest import ROOT
from orderbook.engine import library
from servers import running

NOON_MS = 1_800_000_000_000
BATCH = 256
CANCELED_MAX = 1000


@pytest.fixture(scope="module")
def moved_clock(engine: str) -> Iterator[Any]:
    """A client of a server of its own whose library asks the test for the time."""
    if engine == "fakeredis":
        pytest.skip("fakeredis takes minutes for thousands of orders")
    with running(engine) as server:
        server.client.execute_command("FUNCTION", "LOAD", shimmed(library.bundle().text))
        yield server.client


@pytest.fixture
def timed(moved_clock: Any) -> Book:
    """A fresh book at noon."""
    moved_clock.flushall()
    set_clock(moved_clock, NOON_MS)
    book = Book(moved_clock, "TIMED")
    book.define()
    return book


def arm(book: Book, account: str, timeout_ms: int, **fields: str) -> Json:
    return book.ask("cancel_all_after", account=account, timeout_ms=str(timeout_ms), **fields)


def timers(book: Book) -> dict[str, int]:
    """Member to time of all that are running."""
    rows = book.client.zrange(f"{book.key}:timers", 0, -1, withscores=True)
    return {member.decode(): int(score) for member, score in rows}


def fill(book: Book, count: int, **fields: str) -> None:
    """So many buy orders of one at 90."""
    terms = {"account": "alice", "side": "buy", "quantity": "1", "price": "90", **fields}
    text = json.dumps({"method": "place_order", "order_type": "limit", **terms})
    for start in range(0, count, BATCH):
        replies = book.execute(*[text] * min(BATCH, count - start))
        assert {reply["status"] for reply in replies} == {"open"}


def test_books_that_are_canceled_together_share_what_one_call_may_do(timed: Book) -> None:
    second = Book(timed.client, "SECOND")
    second.define()
    for book in (timed, second):
        fill(book, CANCELED_MAX - 300)
        arm(book, "alice", 1000)
    set_clock(timed.client, NOON_MS + 1000)
    keys = [timed.key, second.key]
    cancel_all = ("FCALL", "cancel_all_orders", len(keys), *keys, "account", "bob")
    for left in (CANCELED_MAX - 600, 0):
        timed.client.execute_command(*cancel_all)
        open_orders = [book.read("get_instrument")["open_orders"] for book in (timed, second)]
        assert open_orders == [0, left]


def test_a_timer_reads_well_and_tells_when_it_runs_out(timed: Book) -> None:
    reply = arm(timed, "alice", 60_000)
    assert reply == {
        "account": "alice",
        "timeout_ms": 60_000,
        "cancel_time_ms": NOON_MS + 60_000,
        "sequence": 1,
        "timestamp_ms": NOON_MS,
    }
    assert arm(timed, "alice", 1000, session="s1")["session"] == "s1"
    assert timers(timed) == {"alice": NOON_MS + 60_000, "alice s1": NOON_MS + 1000}
    assert arm(timed, "alice", 0) == {
        "account": "alice", "timeout_ms": 0, "sequence": 1, "timestamp_ms": NOON_MS,
    }  # fmt: skip
    assert timers(timed) == {"alice s1": NOON_MS + 1000}


def test_a_timer_changes_no_book_and_is_no_part_of_its_hash(book: Book) -> None:
    book.limit("alice", "buy", "1", "90")
    state_hash, entries = book.state_hash(), book.entries("events")
    arm(book, "alice", 60_000)
    assert (book.state_hash(), book.entries("events")) == (state_hash, entries)
    arm(book, "alice", 0)
    assert not book.client.exists(f"{book.key}:timers")
    assert book.state_hash() == state_hash


def test_stopping_a_timer_that_is_not_there_writes_nothing(book: Book) -> None:
    before = book.contents()
    assert arm(book, "alice", 0)["timeout_ms"] == 0
    assert book.contents() == before


def test_an_account_has_as_many_timers_as_documented_whatever_others_have(timed: Book) -> None:
    limit = reference.TIMERS_PER_ACCOUNT_MAX
    for number in range(limit // 2):
        arm(timed, "bob", 60_000, session=f"s{number}")
    commands = (
        {"method": "cancel_all_after", "account": "alice", "session": f"s{number}"}
        for number in range(limit + 2)
    )
    replies = timed.execute(*({**command, "timeout_ms": "60000"} for command in commands))
    assert [reply.get("code") for reply in replies] == [None] * limit + ["TOO_MANY_TIMERS"] * 2
    assert_rejected(arm(timed, "alice", 60_000), "TOO_MANY_TIMERS")
    # Those that are there can be set anew; one that is stopped makes room; others have room.
    assert "cancel_time_ms" in arm(timed, "alice", 1000, session="s7")
    stop_and_arm = (
        {"session": "s7", "timeout_ms": "0"},
        {"timeout_ms": "60000"},
        {"session": "x", "timeout_ms": "60000"},
    )
    command = {"method": "cancel_all_after", "account": "alice"}
    replies = timed.execute(*({**command, **fields} for fields in stop_and_arm))
    assert [reply.get("code") for reply in replies] == [None, None, "TOO_MANY_TIMERS"]
    assert "cancel_time_ms" in arm(timed, "bob", 60_000)
    timed.state_hash()


def test_books_without_timers_do_not_look_for_any(book: Book, engine: str) -> None:
    """Not even where something else is in the way."""
    if engine == "fakeredis":
        pytest.skip("fakeredis breaks where a key has another type, or a stream id is taken")
    book.client.set(f"{book.key}:timers", "by hand")
    assert book.limit("alice", "buy", "1", "90", post_only="true")["status"] == "open"
    assert book.ask("tick")["canceled_count"] == 0
    with pytest.raises(ResponseError):
        arm(book, "alice", 1000)
    assert book.violations() == ["WRONG_KEY_TYPE"]


def test_a_book_has_as_many_timers_as_documented_and_not_one_more(timed: Book) -> None:
    for start in range(0, reference.TIMERS_MAX, 250):
        commands = (
            {"method": "cancel_all_after", "account": f"a{number}", "timeout_ms": "60000"}
            for number in range(start, start + 250)
        )
        assert all("cancel_time_ms" in reply for reply in timed.execute(*commands))
    assert_rejected(arm(timed, "alice", 60_000), "TOO_MANY_TIMERS")
    # Those that are there can be set anew, and stopped.
    assert arm(timed, "a7", 1000)["cancel_time_ms"] == NOON_MS + 1000
    assert arm(timed, "a7", 0)["timeout_ms"] == 0
    assert arm(timed, "alice", 60_000)["cancel_time_ms"] == NOON_MS + 60_000
    timed.state_hash()


def test_a_call_carries_out_so_many_timers(timed: Book) -> None:
    count = reference.TIMERS_FIRED_MAX + 1
    for start in range(0, count, BATCH):
        commands = [
            {"method": "cancel_all_after", "account": f"a{n:04}", "timeout_ms": "1000"}
            for n in range(start, min(start + BATCH, count))
        ]
        timed.execute(*commands)
    timed.limit(f"a{count - 1:04}", "buy", "1", "90")
    set_clock(timed.client, NOON_MS + 1000)
    # The last one is still due, and what it cancels is not to be traded with.
    terms = {"account": "bob", "side": "sell", "order_type": "limit", "quantity": "1"}
    set_clock(timed.client, NOON_MS + 1001)
    assert_rejected(timed.ask("place_order", **terms, price="90"), "CANCELING")
    reply = timed.ask("tick")
    assert (reply["canceled_count"], reply["pending"]) == (1, False)
    assert timers(timed) == {}
    timed.state_hash()


@pytest.mark.parametrize("session", [{}, {"session": "s1"}])
def test_an_account_with_very_many_orders_loses_them_all(
    timed: Book, session: dict[str, str]
) -> None:
    arm(timed, "alice", 60_000, **session)
    count = reference.REMAINING_COUNT_MAX + 1500
    fill(timed, count, **session)
    fill(timed, 1, account="bob")
    set_clock(timed.client, NOON_MS + 60_000)
    canceled = []
    while (reply := timed.ask("tick"))["pending"]:
        canceled.append(reply["canceled_count"])
    assert [*canceled, reply["canceled_count"]] == [CANCELED_MAX] * 11 + [500]
    assert timed.read("get_instrument")["open_orders"] == 1
    assert timers(timed) == {}
    timed.state_hash()


def test_a_session_that_ended_leaves_no_key(timed: Book) -> None:
    arm(timed, "alice", 1000, session="s1")
    fill(timed, 3, session="s1")
    assert timed.client.smembers(f"{timed.key}:sessions:alice:s1") == {b"1", b"2", b"3"}
    timed.limit("bob", "sell", "1", "90")
    set_clock(timed.client, NOON_MS + 1000)
    timed.ask("tick")
    assert not [key for key in timed.stored_keys() if b"alice" in key or b"timers" in key]


def test_triggers_wait_until_timers_are_done(timed: Book) -> None:
    """A stop does not trade with orders whose time has run out."""
    timed.limit("carol", "sell", "1", "100")
    timed.limit("dave", "buy", "1", "100")
    fill(timed, CANCELED_MAX + 1)
    stop = {"account": "bob", "side": "sell", "order_type": "stop", "quantity": "1"}
    timed.ask("place_order", **stop, stop_price="95")
    arm(timed, "alice", 1000)
    # As if the call that traded at 95 had had no room for those it triggered.
    timed.client.hset(timed.key, "agenda", "9500")
    set_clock(timed.client, NOON_MS + 1000)
    reply = timed.ask("tick")
    assert (reply["canceled_count"], reply["triggered_count"]) == (CANCELED_MAX, 0)
    assert reply["pending"] is True
    reply = timed.ask("tick")
    assert (reply["canceled_count"], reply["triggered_count"]) == (1, 1)
    assert timed.read("get_trades")["trades"][-1]["price"] == "100"


def test_timers_run_out_though_memory_is_full(timed: Book) -> None:
    arm(timed, "alice", 1000)
    fill(timed, 3)
    client = timed.client
    try:
        client.config_set("maxmemory-policy", "noeviction")
        set_clock(client, NOON_MS + 1000)
        client.config_set("maxmemory", "1")
        assert timed.ask("tick")["canceled_count"] == 3
        # Who is there says so in time, or its orders are canceled.
        assert arm(timed, "alice", 1000)["timeout_ms"] == 1000
    finally:
        client.config_set("maxmemory", "0")
    timed.state_hash()


def test_several_books_are_written_with_their_timers_or_not_at_all(timed: Book) -> None:
    """One has only a timer to write, for an account without orders; another is damaged."""
    other = Book(timed.client, "OTHER")
    other.define()
    other.limit("bob", "buy", "1", "90")
    arm(timed, "alice", 1000)
    set_clock(timed.client, NOON_MS + 1000)
    events_key = other.stream_key("events")
    saved = other.client.dump(events_key)
    other.client.xadd(events_key, {"by": "hand"}, id=f"{other.sequence() + 1}-0")
    command = ("FCALL", "cancel_all_orders", 2, timed.key, other.key, "account", "bob")
    with pytest.raises(ResponseError, match="DAMAGED"):
        timed.client.execute_command(*command)
    assert timers(timed) == {"alice": NOON_MS + 1000}
    other.client.restore(events_key, 0, saved, replace=True)
    assert json.loads(timed.client.execute_command(*command))["canceled_count"] == 1
    assert timers(timed) == {}
    timed.state_hash()
    other.state_hash()


def test_the_mirror_knows_sessions(book: Book) -> None:
    arm(book, "alice", 60_000, session="s1")
    book.limit("alice", "buy", "3", "90", session="s1", self_trade_prevention="cancel_maker")
    book.limit("bob", "sell", "1", "90")
    assert book.mirrored().state_hash() == book.state_hash()


def test_damage_done_by_hand_is_named(book: Book) -> None:
    arm(book, "alice", 60_000, session="s1")
    book.limit("alice", "buy", "1", "90", session="s1")
    client, session_key = book.client, f"{book.key}:sessions:alice:s1"
    damages: list[tuple[str, Callable[[], Any], Callable[[], Any]]] = [
        (
            "TIMERS_MISMATCH",
            lambda: client.zadd(f"{book.key}:timers", {"bob": 1}),
            lambda: client.zrem(f"{book.key}:timers", "bob"),
        ),
        (
            "TIMERS_MISMATCH",
            lambda: client.hset(book.key, "timers", "0"),
            lambda: client.hset(book.key, "timers", "1"),
        ),
        (
            "SESSION_INDEX_MISMATCH",
            lambda: client.delete(session_key),
            lambda: client.sadd(session_key, "1"),
        ),
        (
            "SESSION_INDEX_MISMATCH",
            lambda: client.sadd(session_key, "2"),
            lambda: client.srem(session_key, "2"),
        ),
    ]
    for name, damage, repair in damages:
        damage()
        assert name in book.violations()
        repair()
        book.state_hash()
    client.delete(session_key)
    client.set(session_key, "by hand")
    assert "WRONG_KEY_TYPE" in book.violations()


def test_reports_and_queries_tell_the_session(book: Book) -> None:
    arm(book, "alice", 60_000, session="s1")
    placed = book.limit("alice", "buy", "1", "90", session="s1")
    assert placed["session"] == "s1"
    assert book.read("get_order", order_id="1")["session"] == "s1"
    (_, topics) = book.entries("events")[-1]
    (report,) = topics["orders:alice"]["orders"]
    assert (report["event"], report["session"]) == ("accepted", "s1")


def test_reference_knows_the_documented_limits() -> None:
    rows = (ROOT / "docs" / "data-model.md").read_text("utf-8").partition("## Limits")[2]
    documented = dict(re.findall(r"^\| (.*?) \| ([\d,]+)(?: each)? \|$", rows, re.MULTILINE))
    assert documented["timers running in a book"] == f"{reference.TIMERS_MAX:,}"
    each = documented[
        "trailing stops of an account waiting in a book; its timers running in a book"
    ]
    assert each == str(reference.TIMERS_PER_ACCOUNT_MAX)
    assert each == str(reference.TRAILING_STOPS_PER_ACCOUNT_MAX)
    each = documented["timers carried out by one call; orders canceled by them"]
    assert each == f"{reference.TIMERS_FIRED_MAX:,}" == f"{reference.CANCELED_BY_TIMERS_MAX:,}"
