"""`orderbook repair`: a damaged book becomes what its event stream tells, and nothing is lost."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import CliRunner
from redis.exceptions import ResponseError

from books import Book, overwrite, stored_fields
from checker import Checker
from clients import eventually
from conftest import NewBook
from orderbook.cli.main import cli
from orderbook.cli.shared import EXIT_SERVER
from orderbook.engine.engine import Engine
from orderbook.feed.feed import Feed, Wanted
from orderbook.feed.repair import Repair, RepairError, repair
from orderbook.messages import Channel
from test_faults import (  # noqa: F401
    CASES,
    TIMERS,
    Case,
    arm,
    everything,
    hang_together,
    hide_most,
    let_wait,
    others,
    populate,
    prepared,
    run_recorded,
    shimmed,
)

pytestmark = pytest.mark.exhaustive


def url_of(client: Any) -> str:
    options = client.connection_pool.connection_kwargs
    return f"redis://{options['host']}:{options['port']}/{options.get('db', 0)}"


@pytest.fixture
def real_book(new_book: NewBook, engine: str) -> NewBook:
    """Makes books on a server that others can connect to."""
    if engine == "fakeredis":
        pytest.skip("fakeredis has no address to connect to")
    return new_book


def repaired(*books: Book) -> list[Repair]:
    """Repairs books; what was done to each."""

    async def work() -> list[Repair]:
        engine = await Engine.connect(url_of(books[0].client))
        try:
            await engine.instruments()
            return [await repair(engine, book.symbol) for book in books]
        finally:
            await engine.close()

    return asyncio.run(work())


def assert_in_order(book: Book, done: Repair) -> None:
    """Verified, equal to its replay, halted with what was replaced kept, and it trades on."""
    assert done.kept_as, done
    assert done.verified, done
    assert done.equal, (book.read("verify_book"), done)
    book.assert_is_what_its_stream_tells()
    assert done.status == book.read("get_instrument")["status"]
    for name in done.replaced:
        suffix = name[len(book.key) + 1 :] or "book"
        assert book.client.exists(f"{done.kept_as}:{suffix}"), name
    assert not list(book.client.scan_iter(f"{book.key}:repairing:*"))
    book.ask("define_instrument", status="trading")
    book.limit("zoe", "buy", "1", "50")
    book.state_hash()


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name].stream is not None])
def test_whole_book_is_left_alone(prepared: Callable[[Case], Book], name: str) -> None:  # noqa: F811
    case = CASES[name]
    book = prepared(case)
    case.run(book)
    before = everything(book.client)
    (done,) = repaired(book)
    assert not done.kept_as, done
    assert everything(book.client) == before


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name].stream == "events"])
def test_half_written_book_becomes_what_its_stream_tells(
    prepared: Callable[[Case], Book],  # noqa: F811
    name: str,
) -> None:
    case = CASES[name]
    _, made = run_recorded(prepared(case), case)
    first = next(i for i, call in enumerate(made) if call.writes)
    for at in range(first + 2, len(made) + 1):
        book = prepared(case)
        arm(book.client, at)
        try:
            case.run(book)
        except ResponseError:
            pass
        else:
            # The discovery hash is a courtesy: the call went on.
            continue
        finally:
            arm(book.client, 0)
        books = [book, *others(book)] if "several" in name else [book]
        damaged = [one for one in books if one.read("verify_book").get("verified") is not True]
        if damaged:
            for one, done in zip(damaged, repaired(*damaged), strict=True):
                assert_in_order(one, done)


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name].stream == TIMERS])
def test_half_written_timers_are_counted_again(
    prepared: Callable[[Case], Book],  # noqa: F811
    name: str,
) -> None:
    case = CASES[name]
    _, made = run_recorded(prepared(case), case)
    for at in range(next(i for i, call in enumerate(made) if call.writes) + 2, len(made) + 1):
        book = prepared(case)
        arm(book.client, at)
        with pytest.raises(ResponseError):
            case.run(book)
        arm(book.client, 0)
        for done in repaired(book):
            assert_in_order(book, done)


def furnish(book: Book) -> None:
    """Orders of every kind, so that every key is there."""
    hang_together(book)
    let_wait_too(book)
    book.ask("cancel_all_after", account="frank", session="s1", timeout_ms="86400000")
    book.limit("frank", "buy", "3", "90", session="s1", display_quantity="2")
    expiry = {"time_in_force": "gtd", "expire_time_ms": "4000000000000"}
    book.limit("frank", "buy", "3", "91", **expiry)
    quotes = '[{"side":"buy","price":"80","quantity":"4"}]'
    book.ask("mass_quote", account="frank", quotes=quotes)
    book.ask("publish_book")


def let_wait_too(book: Book) -> None:
    stop = {"side": "buy", "order_type": "stop", "stop_price": "120", "quantity": "2"}
    trailing = {"side": "sell", "order_type": "trailing_stop", "trailing_offset": "50%"}
    book.ask("place_order", account="frank", **stop)
    book.ask("place_order", account="frank", quantity="2", **trailing)
    book.ask("place_order", account="frank", quantity="2", **{**trailing, "side": "buy"})


def told_suffixes(book: Book) -> list[str]:
    """The keys of a book that its stream tells."""
    untold = ("events", "timers", "stored_replies", "candles", "trades", "book")
    suffixes = [name.decode()[len(book.key) + 1 :] for name in book.stored_keys()]
    return [suffix for suffix in suffixes if not suffix.startswith(untold)]


@pytest.mark.parametrize("damage", ["missing", "of another type", "with a foreign member"])
def test_each_damaged_key_is_rebuilt(real_book: NewBook, damage: str) -> None:
    book = real_book()
    furnish(book)
    suffixes = told_suffixes(book)
    assert {"", "bids", "asks:levels", "orders:frank", "quotes:frank"} <= set(suffixes)
    assert {"sessions:frank:s1", "expiries", "stops:rising", "stops:trailing:buy"} <= set(suffixes)
    for suffix in suffixes:
        key = f"{book.key}:{suffix}" if suffix else book.key
        kind = book.client.type(key)
        if damage == "with a foreign member":
            if not suffix:
                overwrite(book.client, key, last_order_id="1")
            elif kind == b"hash":
                book.client.hset(key, "77 x", "1")
            elif kind == b"zset":
                book.client.zadd(key, {"0000000000000077:77": 1})
            else:
                book.client.sadd(key, "77")
        else:
            book.client.delete(key)
            if damage == "of another type":
                book.client.set(key, "something else")
        (done,) = repaired(book)
        assert_in_order(book, done)
        if damage == "of another type":
            assert key in done.replaced


def half_write(book: Book) -> None:
    """A placement of erin that trades, of which only the entry in the stream was written."""
    stored = {key: book.client.dump(key) for key in book.stored_keys()}
    order = {"side": "buy", "price": "101", "quantity": "2", "client_order_id": "once"}
    book.limit("erin", **order)
    for key in book.stored_keys():
        if key == book.stream_key("events").encode():
            continue
        book.client.delete(key)
        if key in stored:
            book.client.restore(key, 0, stored[key])
    assert book.violations()


def test_a_retry_of_what_was_half_written_does_not_trade_again(real_book: NewBook) -> None:
    book = real_book()
    populate(book)
    half_write(book)
    (done,) = repaired(book)
    assert_in_order(book, done)
    retried = book.limit("erin", "buy", "2", "101", client_order_id="once")
    assert retried["code"] == "DUPLICATE_CLIENT_ORDER_ID"
    assert any("replies" in note for note in done.notes)
    # The stream of trades has what that of events has.
    told = [topics["trades"] for _, topics in book.entries("events") if "trades" in topics]
    assert [topics["trades"] for _, topics in book.entries("trades")] == told


def test_a_whole_book_of_the_old_layout_is_left_alone(real_book: NewBook) -> None:
    book = real_book()
    populate(book)
    fields = stored_fields(book.client, book.key)
    book.client.delete(book.key)
    book.client.hset(book.key, mapping=fields)
    (done,) = repaired(book)
    assert not done.kept_as, done


@pytest.mark.parametrize("state", [None, "", "no counters", "1 2 3"])
def test_lost_counters_are_rebuilt(real_book: NewBook, state: str | None) -> None:
    book = real_book()
    furnish(book)
    book.client.hdel(book.key, "state")
    if state is not None:
        book.client.hset(book.key, "state", state)
    with pytest.raises(ResponseError, match="DAMAGED"):
        book.limit("erin", "buy", "1", "1")
    (done,) = repaired(book)
    assert_in_order(book, done)


def test_a_paused_taker_goes_on_after_a_repair(real_book: NewBook) -> None:
    book, limit = real_book(), 10_000
    book.define()
    order = {"method": "place_order", "order_type": "limit", "quantity": "1"}
    for start in range(0, limit, 250):
        prices = ["101"] * 250 if start else ["100"] * 250
        sells = [{**order, "account": "zoe", "side": "sell", "price": price} for price in prices]
        book.execute(*sells)
    for price in ("101", "102"):
        book.limit("zoe", "sell", "5", price)
    terms = {"order_type": "market", "quantity": str(limit + 8), "protection": "1"}
    (taker,) = book.execute({"method": "place_order", "account": "bob", "side": "buy", **terms})
    assert (taker["status"], taker["remaining_quantity"]) == ("partially_filled", "8")
    # The book loses the order, and that it is to go on.
    sequence = book.read("get_instrument")["sequence"]
    overwrite(book.client, book.key, agenda="", sequence=str(sequence - 1))
    book.client.delete(f"{book.key}:orders")
    (done,) = repaired(book)
    assert_in_order(book, done)
    # It has bought within 1 percent of 100, where it began, and nothing at 102.
    (closed,) = book.read("get_closed_orders", account="bob")["orders"]
    assert (closed["reason"], closed["remaining_quantity"]) == ("protection", "3")


def test_a_call_broken_off_while_stored_replies_change_generation_forgets_none(
    real_book: NewBook,
) -> None:
    book = real_book()
    populate(book)
    first = book.limit("erin", "buy", "1", "50", client_order_id="x")
    replies = f"{book.key}:stored_replies:erin"
    full = {f"old{n}": "content\n{}" for n in range(10_000)}
    book.client.hset(replies, mapping={**full, "generation start_ms": "1700000000000"})
    before = book.client.dump(book.key)
    book.limit("erin", "buy", "1", "50", client_order_id="y")
    assert book.client.hget(f"{replies}:previous", "x")
    # Neither the new generation nor the counters were written.
    book.client.delete(replies)
    book.client.restore(book.key, 0, before, replace=True)
    (done,) = repaired(book)
    assert_in_order(book, done)
    assert book.limit("erin", "buy", "1", "50", client_order_id="x") == first


class Watcher:
    """A subscriber to level2, with a checker."""

    def __init__(self) -> None:
        self.checker = Checker()
        self.kinds: list[str] = []

    def send(self, message: bytes) -> None:
        decoded = json.loads(message)
        self.kinds.append(decoded["type"])
        self.checker.take(decoded)

    def send_newest(self, name: tuple[str, bytes], message: bytes) -> None:
        raise AssertionError((name, message))

    async def ready(self) -> None:
        await asyncio.sleep(0)


async def test_subscribers_of_a_host_follow_a_repair_without_a_gap(real_book: NewBook) -> None:
    book, watcher = real_book(), Watcher()
    populate(book)
    engine = await Engine.connect(url_of(book.client))
    feed = Feed(engine)
    try:
        await engine.define_instrument(book.symbol)
        await feed.start()
        feed.subscribe(Wanted(Channel.LEVEL2, book.symbol), watcher)
        await eventually(lambda: watcher.kinds, "the snapshot is there")
        half_write(book)
        done = await repair(engine, book.symbol)
        assert (done.verified, done.equal) == (True, True)
        book.ask("define_instrument", status="trading")
        last = book.limit("zoe", "buy", "1", "50")["sequence"]
        await eventually(lambda: watcher.checker.sequence >= last, "the last change has come")
        assert set(watcher.kinds[1:]) == {"update"}
        found = book.read("get_book")
        for side in ("bids", "asks"):
            assert watcher.checker.rows(side)[:10] == found[side]
    finally:
        await feed.stop()
        await engine.close()


def test_a_book_stays_halted_until_an_operator_reopens_it(real_book: NewBook) -> None:
    book = real_book()
    populate(book)
    half_write(book)
    (done,) = repaired(book)
    assert done.status == "halted"
    assert book.limit("zoe", "buy", "1", "50")["code"] == "INSTRUMENT_HALTED"
    (again,) = repaired(book)
    assert not again.kept_as


def test_a_stream_that_does_not_tell_all_is_refused(real_book: NewBook) -> None:
    for arguments, words in (
        (("XTRIM", "{}", "MAXLEN", "3"), "begins at sequence"),
        (("XDEL", "{}", "4-0"), "lacks sequence 4"),
        (("XDEL", "{}", "11-0"), "ends at sequence 10"),
        (("DEL", "{}"), "no event stream"),
    ):
        book = real_book()
        hide_most(book)
        key = book.stream_key("events")
        book.client.execute_command(*[word.replace("{}", key) for word in arguments])
        book.client.delete(f"{book.key}:asks")
        before = book.contents()
        with pytest.raises(RepairError, match=words):
            repaired(book)
        assert book.contents() == before


def test_the_command_prints_what_was_done(real_book: NewBook) -> None:
    book = real_book()
    let_wait(book)
    half_write(book)
    arguments = ["repair", book.symbol, "--redis-url", url_of(book.client), "--json"]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, result.output
    told = json.loads(result.output)
    assert (told["repaired"], told["verified"], told["equal"]) == (True, True, True)
    assert told["status"] == "halted"
    book.client.delete(book.stream_key("events"))
    refused = CliRunner().invoke(cli, arguments)
    assert refused.exit_code == EXIT_SERVER
    assert "no event stream" in refused.output
