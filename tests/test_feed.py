"""The stream reader: what subscribers get from a real server, whatever happens to the streams."""

import asyncio
import contextlib
import itertools
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from books import overwrite, stored_fields
from clients import eventually, new_symbol
from orderbook.engine.engine import Engine
from orderbook.feed.feed import KEEP_INTERVAL_S, START_TIMEOUT_S, Feed, Wanted
from orderbook.messages import Channel
from proxy import Proxy
from servers import Server, free_port, load_library, running, running_cluster

Json = dict[str, Any]

RULES = {"tick_size": "0.01", "lot_size": "1"}
LIMIT = {"account": "alice", "order_type": "limit", "quantity": "1", "price": "10"}


class Collector:
    """A subscriber that keeps everything."""

    def __init__(self) -> None:
        self.messages: list[Json] = []

    def send(self, message: bytes) -> None:
        self.messages.append(json.loads(message))

    def send_newest(self, name: tuple[str, bytes], message: bytes) -> None:
        assert json.loads(message)["symbol"] == name[0]
        self.send(message)

    async def ready(self) -> None:
        await asyncio.sleep(0)

    async def wait(self, count: int) -> list[Json]:
        await eventually(lambda: len(self.messages) >= count, f"{count} messages have come")
        return self.messages

    async def wait_for_sequence(self, sequence: int) -> list[Json]:
        await eventually(
            lambda: self.messages and self.messages[-1]["sequence"] >= sequence,
            f"sequence {sequence} has come",
        )
        return self.messages

    def kinds(self) -> list[str]:
        return [message["type"] for message in self.messages]


class Venue:
    """A server, an engine and a feed, as in a host."""

    def __init__(self, server: Server, engine: Engine, feed: Feed) -> None:
        self.server = server
        self.engine = engine
        self.feed = feed

    def subscribe(self, channel: Channel, symbol: str | None = "X", **more: Any) -> Collector:
        if "after" in more:
            more.setdefault("epoch", self.feed._books[symbol or ""].epoch)
        collector = Collector()
        self.feed.subscribe(Wanted(channel, symbol, **more), collector)
        return collector

    async def place(self, side: str, symbol: str = "X", **fields: Any) -> Json:
        reply = await self.engine.place_order(symbol, side=side, **(LIMIT | fields))
        assert reply["status"] != "rejected", reply
        return reply

    async def trade(self, symbol: str = "X") -> int:
        """Makes a trade; its sequence."""
        await self.place("sell", symbol)
        return int((await self.place("buy", symbol, account="bob"))["sequence"])

    def key(self, stream: str) -> str:
        return f"orderbook:{{main}}:X:{stream}"


@contextlib.asynccontextmanager
async def open_venue(server: Server) -> AsyncIterator[Venue]:
    load_library(server.client, server.engine)
    engine = await Engine.connect(server.url)
    feed = Feed(engine)
    try:
        await engine.define_instrument("X", **RULES)
        await feed.start()
        yield Venue(server, engine, feed)
    finally:
        await feed.stop()
        await engine.close()


@pytest.fixture
async def venue() -> AsyncIterator[Venue]:
    with running("valkey") as server:
        async with open_venue(server) as venue:
            yield venue


def sequences(messages: list[Json], kind: str = "update") -> list[int]:
    return [message["sequence"] for message in messages if message["type"] == kind]


# ---- snapshots and updates


async def test_trades_begin_with_the_latest_and_go_on(venue: Venue) -> None:
    first = await venue.trade()
    collector = venue.subscribe(Channel.TRADES)
    snapshot = (await collector.wait(1))[0]
    assert (snapshot["type"], snapshot["sequence"]) == ("snapshot", first)
    assert [trade["sequence"] for trade in snapshot["trades"]] == [first]
    second = await venue.trade()
    update = (await collector.wait(2))[1]
    assert (update["type"], update["sequence"]) == ("update", second)
    assert len(update["trades"]) == 1


async def test_level2_snapshot_and_updates_give_the_book(venue: Venue) -> None:
    await venue.place("buy", price="9")
    collector = venue.subscribe(Channel.LEVEL2)
    await collector.wait(1)
    await venue.trade()
    await venue.place("sell", price="11")
    last = await venue.place("buy", price="9")
    messages = await collector.wait_for_sequence(last["sequence"])
    assert _levels(messages) == _levels([await venue.engine.get_book("X")])


def _levels(messages: list[Json]) -> dict[str, dict[str, str]]:
    """The book after these messages."""
    sides: dict[str, dict[str, str]] = {"bids": {}, "asks": {}}
    for message, side in itertools.product(messages, sides):
        if message.get("type") == "snapshot":
            sides[side] = {}
        sides[side].update(dict(message[side]))
    return {
        side: {price: quantity for price, quantity in levels.items() if quantity != "0"}
        for side, levels in sides.items()
    }


async def test_orders_are_those_of_the_account_alone(venue: Venue) -> None:
    await venue.place("buy", account="alice", price="9")
    alice = venue.subscribe(Channel.ORDERS, account="alice")
    bob = venue.subscribe(Channel.ORDERS, account="bob")
    assert [order["price"] for order in (await alice.wait(1))[0]["orders"]] == ["9"]
    assert (await bob.wait(1))[0]["orders"] == []
    placed = await venue.place("buy", account="bob", price="8")
    report = (await bob.wait(2))[1]
    assert (report["account"], report["sequence"]) == ("bob", placed["sequence"])
    filled = await venue.place("sell", account="carol", price="9")
    assert (await alice.wait(2))[1]["sequence"] == filled["sequence"]
    assert len(bob.messages) == 2


async def test_many_open_orders_come_in_pages(venue: Venue) -> None:
    command = json.dumps({"method": "place_order", "side": "buy", **LIMIT}).encode()
    for _ in range(10):
        await venue.engine.execute("X", [command] * 128)
    collector = venue.subscribe(Channel.ORDERS, account="alice")
    pages = await collector.wait(2)
    order_ids = [order["order_id"] for page in pages for order in page["orders"]]
    assert order_ids == [str(number + 1) for number in range(1280)]
    assert [page["more"] for page in pages] == [True, False]


async def test_the_book_comes_at_once_and_again_when_it_has_changed(venue: Venue) -> None:
    collector = venue.subscribe(Channel.BOOK)
    assert (await collector.wait(1))[0]["bids"] == []
    await venue.place("buy", price="9")
    await eventually(
        lambda: collector.messages[-1]["bids"] == [["9", "1"]], "the changed book is there"
    )
    assert set(collector.kinds()) == {"snapshot"}
    assert len(set(sequences(collector.messages, "snapshot"))) == len(collector.messages)


async def test_a_book_that_does_not_change_is_published_once(venue: Venue) -> None:
    collector = venue.subscribe(Channel.BOOK)
    placed = await venue.place("buy", price="9")
    await collector.wait_for_sequence(placed["sequence"])
    other = venue.subscribe(Channel.BOOK)
    await other.wait(1)
    await venue.engine.define_instrument("Y", **RULES)
    await eventually(lambda: venue.engine.segment("Y"), "a second has passed")
    ids = venue.server.client.xrange(venue.key("book"))
    assert len({entry_id for entry_id, _ in ids}) == len(ids) <= 2


async def test_orders_expire_though_nobody_trades(venue: Venue) -> None:
    orders, book = venue.subscribe(Channel.ORDERS, account="alice"), venue.subscribe(Channel.BOOK)
    await orders.wait(1)
    soon_ms = time.time_ns() // 1_000_000 + 200
    await venue.place("buy", price="9", time_in_force="gtd", expire_time_ms=soon_ms)
    reports = (await orders.wait(3))[2]["orders"]
    assert [report["event"] for report in reports] == ["expired"]
    await eventually(lambda: book.messages[-1]["bids"] == [], "the book without it is there")


async def test_what_one_tick_cannot_do_is_done_at_once_by_the_next(venue: Venue) -> None:
    soon_ms = str(time.time_ns() // 1_000_000 + 1000)
    order = LIMIT | {"side": "buy", "time_in_force": "gtd", "expire_time_ms": soon_ms}
    command = json.dumps({"method": "place_order", **order}).encode()
    for _ in range(10):
        await venue.engine.execute("X", [command] * 250)
    last = (await venue.engine.get_instrument("X"))["sequence"]
    collector = venue.subscribe(Channel.ORDERS, account="alice", after=last)
    messages = await collector.wait(3)
    assert [len(message["orders"]) for message in messages] == [1000, 1000, 500]
    times_ms = [message["orders"][0]["timestamp_ms"] for message in messages]
    assert times_ms[2] - times_ms[0] < 2 * KEEP_INTERVAL_S * 1000


async def test_instruments_are_those_of_now_and_those_to_come(venue: Venue) -> None:
    collector = venue.subscribe(Channel.INSTRUMENTS, None)
    assert (await collector.wait(1))[0]["instrument"]["symbol"] == "X"
    await venue.engine.define_instrument("Y", **RULES)
    assert (await collector.wait(2))[1]["instrument"]["symbol"] == "Y"
    await venue.engine.define_instrument("X", status="halted")
    assert (await collector.wait(3))[2]["instrument"]["status"] == "halted"


async def test_an_instrument_is_known_as_soon_as_somebody_asks(venue: Venue) -> None:
    assert not await venue.feed.knows("NEW")
    await venue.engine.define_instrument("NEW", **RULES)
    assert await venue.feed.knows("NEW")
    collector = venue.subscribe(Channel.TRADES, "NEW")
    await collector.wait(1)
    sequence = await venue.trade("NEW")
    assert (await collector.wait(2))[1]["sequence"] == sequence


async def test_nothing_comes_after_unsubscribing(venue: Venue) -> None:
    collector, witness = Collector(), venue.subscribe(Channel.TRADES)
    subscription = venue.feed.subscribe(Wanted(Channel.TRADES, "X"), collector)
    await collector.wait(1)
    await witness.wait(1)
    venue.feed.unsubscribe(subscription)
    await venue.trade()
    await witness.wait(2)
    assert len(collector.messages) == 1


async def test_a_snapshot_is_followed_by_everything_after_it_under_load(venue: Venue) -> None:
    """Subscribers that come at any moment of a busy stream miss nothing and get nothing twice."""
    collectors = []
    for _ in range(60):
        await venue.trade()
        collectors.append(venue.subscribe(Channel.TRADES))
    last = await venue.trade()
    every = [trade["trade_id"] for trade in (await venue.engine.get_trades("X"))["trades"]]
    newest = int(every[-1])
    for collector in collectors:
        await collector.wait_for_sequence(last)
        ids = [int(trade["trade_id"]) for m in collector.messages for trade in m["trades"]]
        assert ids == list(range(ids[0], newest + 1))


async def test_what_a_snapshot_says_already_does_not_come_again(valkey: Server) -> None:
    """The reader is behind the server that answers the query."""
    async with Proxy(valkey.port) as proxy:
        engine = await Engine.connect(valkey.url, read_url=proxy.url)
        feed = Feed(engine)
        venue = Venue(valkey, engine, feed)
        symbol = new_symbol()
        try:
            await engine.define_instrument(symbol, **RULES)
            await feed.start()
            witness = venue.subscribe(Channel.TRADES, symbol)
            await witness.wait(1)
            proxy.passes_replies.clear()
            await venue.trade(symbol)
            second = await venue.trade(symbol)
            collector = venue.subscribe(Channel.TRADES, symbol)
            assert (await collector.wait(1))[0]["sequence"] == second
            proxy.passes_replies.set()
            await witness.wait(3)
            third = await venue.trade(symbol)
            assert sequences(await collector.wait_for_sequence(third)) == [third]
        finally:
            await feed.stop()
            await engine.close()


# ---- resuming


async def test_a_client_resumes_where_it_was(venue: Venue) -> None:
    made = [await venue.trade() for _ in range(5)]
    collector = venue.subscribe(Channel.TRADES, after=made[1])
    assert sequences(await collector.wait(3)) == made[2:]
    made.append(await venue.trade())
    assert sequences(await collector.wait(4)) == made[2:]
    assert set(collector.kinds()) == {"update"}


async def test_resuming_at_the_end_sends_only_what_is_new(venue: Venue) -> None:
    last = await venue.trade()
    epoch = (await venue.engine.get_instrument("X"))["epoch"]
    collector = venue.subscribe(Channel.TRADES, after=last, epoch=epoch)
    made = await venue.trade()
    assert sequences(await collector.wait(1)) == [made]


async def test_history_older_than_the_reader_remembers_comes_from_the_stream() -> None:
    with running("valkey") as server:
        async with open_venue(server) as before:
            made = [await before.trade() for _ in range(300)]
        async with open_venue(server) as after:
            collector = after.subscribe(Channel.TRADES, after=made[9])
            made.append(await after.trade())
            messages = await collector.wait_for_sequence(made[-1])
            assert sequences(messages) == made[10:]
            level2 = after.subscribe(Channel.LEVEL2, after=0)
            messages = await level2.wait_for_sequence(made[-1])
            assert _levels(messages) == {"bids": {}, "asks": {}}


async def test_another_epoch_is_a_gap_and_then_a_snapshot(venue: Venue) -> None:
    last = await venue.trade()
    collector = venue.subscribe(Channel.TRADES, after=last, epoch=77)
    gap, snapshot = (await collector.wait(2))[:2]
    assert gap == {
        "channel": "trades",
        "symbol": "X",
        "type": "gap",
        "after": last,
        "sequence": last,
        "epoch": (await venue.engine.get_instrument("X"))["epoch"],
    }
    assert (snapshot["type"], snapshot["sequence"]) == ("snapshot", last)


_RESUMABLE = (Channel.TRADES, Channel.LEVEL2, Channel.LEVEL3, Channel.ORDERS)


@pytest.mark.parametrize("channel", _RESUMABLE)
async def test_resuming_across_the_beginning_of_an_epoch_is_a_gap(
    venue: Venue, channel: Channel
) -> None:
    more = {"account": "bob"} if channel is Channel.ORDERS else {}
    known = await venue.trade()
    await venue.place("buy", price="9")
    before = (await venue.engine.get_instrument("X"))["epoch"]
    reply = json.loads(await venue.engine.call("begin_epoch", "X", "run_id", "another"))
    last = await venue.trade()
    book = venue.feed._books["X"]
    await eventually(lambda: book.position == last, "the reader has come so far")
    # Both cannot be: what was known in the new epoch was not before its beginning.
    for epoch in (before, reply["epoch"]):
        collector = venue.subscribe(channel, after=known, epoch=epoch, **more)
        gap, snapshot = (await collector.wait(2))[:2]
        assert (gap["type"], gap["after"], gap["epoch"]) == ("gap", known, reply["epoch"])
        assert (snapshot["type"], snapshot["sequence"]) == ("snapshot", last)


async def test_a_sequence_that_has_not_been_yet_is_a_gap(venue: Venue) -> None:
    collector = venue.subscribe(Channel.TRADES, after=1_000_000)
    await collector.wait(2)
    assert collector.kinds() == ["gap", "snapshot"]


async def test_history_that_was_trimmed_is_a_gap_and_then_a_snapshot(venue: Venue) -> None:
    made = [await venue.trade() for _ in range(5)]
    book = venue.feed._books["X"]
    await eventually(lambda: book.position == made[-1], "the reader has read all")
    _trim(venue, minimum=made[3])
    await _forget(venue)
    collector = venue.subscribe(Channel.TRADES, after=made[0])
    gap, snapshot = (await collector.wait(2))[:2]
    assert (gap["type"], gap["after"], gap["sequence"]) == ("gap", made[0], made[-1])
    assert snapshot["type"] == "snapshot"
    made.append(await venue.trade())
    assert sequences(await collector.wait(3)) == made[-1:]


def _trim(venue: Venue, minimum: int) -> None:
    venue.server.client.xtrim(venue.key("events"), minid=f"{minimum}-0", approximate=False)


async def _forget(venue: Venue) -> None:
    """What a long time would do to the reader's memory."""
    for book in venue.feed._books.values():
        book.forget()


# ---- trouble


async def test_a_reader_behind_the_trim_says_so(venue: Venue) -> None:
    """The server cannot be read for a while, and by then the stream has been trimmed."""
    trades, orders = venue.subscribe(Channel.TRADES), venue.subscribe(Channel.ORDERS, account="bob")
    first = await venue.trade()
    await trades.wait_for_sequence(first)
    client = venue.server.client
    # One transaction: the reader sees either nothing or all of it.
    with client.pipeline(transaction=True) as pipeline:
        for side in ("sell", "buy") * 3:
            fields = [word for pair in (LIMIT | {"side": side}).items() for word in pair]
            pipeline.execute_command("FCALL", "place_order", 1, "orderbook:{main}:X", *fields)
        pipeline.xtrim(venue.key("events"), maxlen=2, approximate=False)
        pipeline.execute()
    await eventually(lambda: "gap" in trades.kinds(), "the gap has been told")
    last = await venue.trade()
    messages = await trades.wait_for_sequence(last)
    gap = next(message for message in messages if message["type"] == "gap")
    assert gap["after"] == first
    after_gap = messages[messages.index(gap) + 1 :]
    assert after_gap[0]["type"] == "snapshot"
    assert after_gap[0]["sequence"] == gap["sequence"]
    assert sequences(after_gap) == [last]
    await eventually(lambda: "gap" in orders.kinds(), "the gap in orders has been told")


async def test_who_knows_more_than_the_reader_is_told_of_a_gap_once(
    venue: Venue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orderbook.feed.feed.GATHER_INTERVAL_S", 1.0)
    first = await venue.trade()
    book = venue.feed._books["X"]
    await eventually(lambda: book.position == first, "the reader has come so far, and pauses")
    made = [await venue.trade() for _ in range(4)]
    _trim(venue, minimum=made[2])
    await _forget(venue)
    collector = venue.subscribe(Channel.TRADES, after=first - 1)
    gap, snapshot = await collector.wait(2)
    assert (gap["type"], gap["after"]) == ("gap", first - 1)
    assert (snapshot["type"], snapshot["sequence"]) == ("snapshot", made[-1])
    assert book.position == first
    last = await venue.trade()
    messages = await collector.wait_for_sequence(last)
    assert [message["type"] for message in messages] == ["gap", "snapshot", "update"]


async def test_a_new_epoch_is_a_gap_for_everybody(venue: Venue) -> None:
    trades, level2 = venue.subscribe(Channel.TRADES), venue.subscribe(Channel.LEVEL2)
    first = await venue.trade()
    await trades.wait_for_sequence(first)
    await level2.wait_for_sequence(first)
    reply = await venue.engine.call("begin_epoch", "X", "run_id", "another")
    epoch = json.loads(reply)["epoch"]
    await trades.wait_for_sequence(first + 1)
    await level2.wait_for_sequence(first + 1)
    for collector in (trades, level2):
        await eventually(lambda: "gap" in collector.kinds(), "the gap has been told")  # noqa: B023
        gap = next(message for message in collector.messages if message["type"] == "gap")
        assert (gap["after"], gap["epoch"]) == (first, epoch)
        await eventually(lambda: collector.kinds()[-1] == "snapshot", "the snapshot")  # noqa: B023


async def test_a_lost_end_of_history_is_told_under_a_new_epoch(venue: Venue) -> None:
    collector = venue.subscribe(Channel.TRADES)
    first, lost = await venue.trade(), await venue.trade()
    await collector.wait_for_sequence(lost)
    client, key = venue.server.client, "orderbook:{main}:X"
    for stream in ("events", "trades"):
        client.xtrim(f"{key}:{stream}", maxlen=0, approximate=False)
        client.execute_command("XSETID", f"{key}:{stream}", f"{first}-0")
    overwrite(client, key, sequence=str(first), run_id="another", server_run_id="another")
    client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    await eventually(lambda: collector.messages[-1]["type"] == "snapshot", "it begins again")
    gap, snapshot = collector.messages[-2:]
    assert gap["type"] == "gap"
    assert gap["epoch"] == snapshot["epoch"] > collector.messages[0]["epoch"]


@pytest.mark.parametrize("channel", _RESUMABLE)
async def test_an_epoch_that_begins_in_an_order_is_told_before_the_order(
    venue: Venue, channel: Channel
) -> None:
    more = {"account": "bob"} if channel is Channel.ORDERS else {}
    collector = venue.subscribe(channel, **more)
    first = await venue.trade()
    await collector.wait_for_sequence(first)
    overwrite(venue.server.client, "orderbook:{main}:X", server_run_id="another")
    begun = await venue.place("buy", account="bob", price="9")
    await collector.wait_for_sequence(begun["sequence"])
    old = collector.messages[0]["epoch"]
    news = [message for message in collector.messages if message["epoch"] != old]
    assert [message["type"] for message in news] == ["gap", "snapshot"]
    assert (news[0]["after"], news[0]["sequence"]) == (first, begun["sequence"])


async def test_a_history_that_has_outgrown_the_one_it_replaced_is_not_taken_for_it(
    venue: Venue,
) -> None:
    level2, level3 = venue.subscribe(Channel.LEVEL2), venue.subscribe(Channel.LEVEL3)
    first = await venue.place("buy", price="9")
    for collector in (level2, level3):
        await collector.wait_for_sequence(first["sequence"])
    old = level2.messages[0]["epoch"]
    book = "orderbook:{main}:X"
    with venue.server.client.pipeline(transaction=True) as pipeline:
        pipeline.flushall()
        define = ("tick_size", "0.01", "lot_size", "1")
        pipeline.execute_command("FCALL", "define_instrument", 1, book, *define)
        pipeline.hset("orderbook:instruments", "X", "main")
        for price in range(20, 26):
            fields = (LIMIT | {"side": "buy", "price": str(price)}).items()
            words = [word for pair in fields for word in pair]
            pipeline.execute_command("FCALL", "place_order", 1, book, *words)
        pipeline.execute()
    last = await venue.place("buy", price="8")
    for collector in (level2, level3):
        await collector.wait_for_sequence(last["sequence"])
        news = [message for message in collector.messages if message["epoch"] != old]
        assert [message["type"] for message in news[:2]] == ["gap", "snapshot"]
        assert news[0]["after"] == first["sequence"]
    told = [message for message in level2.messages if message["type"] != "gap"]
    assert _levels(told) == _levels([await venue.engine.get_book("X")])


@pytest.mark.parametrize("copies", [True, False])
async def test_a_server_that_takes_over_with_another_history_is_a_gap(copies: bool) -> None:
    """A replica that had not all of it, or a server that begins empty: each has outgrown it."""
    with running("valkey") as old, running("valkey") as new:
        for server in (old, new):
            load_library(server.client, "valkey")
        async with Proxy(old.port) as proxy:
            engine = await Engine.connect(proxy.url)
            feed = Feed(engine)
            venue = Venue(old, engine, feed)
            try:
                await engine.define_instrument("X", **RULES)
                await feed.start()
                collectors = [
                    venue.subscribe(channel)
                    for channel in (Channel.TRADES, Channel.LEVEL2, Channel.LEVEL3)
                ]
                await venue.trade()
                if copies:
                    await _copy(old, new)
                await venue.place("sell", price="12")
                lost = await venue.trade()
                for collector in collectors:
                    await collector.wait_for_sequence(lost)
                last = _outgrow(new, is_new=not copies)
                assert last > lost
                proxy.switch(new.port)
                for collector in collectors:
                    await collector.wait_for_sequence(last)
                    epoch = collector.messages[0]["epoch"]
                    news = [one for one in collector.messages if one["epoch"] != epoch]
                    assert [one["type"] for one in news] == ["gap", "snapshot"]
                    assert (news[0]["after"], news[0]["sequence"]) == (lost, last)
                assert _levels(collectors[1].messages[-1:]) == _levels([await engine.get_book("X")])
            finally:
                await feed.stop()
                await engine.close()


async def _copy(primary: Server, replica: Server) -> None:
    """What a replica has when it is promoted."""
    replica.client.replicaof("127.0.0.1", primary.port)
    await eventually(
        lambda: replica.client.exists("orderbook:{main}:X:events"), "the replica has the book"
    )
    replica.client.replicaof("NO", "ONE")


def _outgrow(server: Server, *, is_new: bool) -> int:
    """Another history on another server; its last sequence."""
    call = ("FCALL", "define_instrument", 1, "orderbook:{main}:X")
    if is_new:
        server.client.execute_command(*call, *itertools.chain(*RULES.items()))
        server.client.hset("orderbook:instruments", "X", "main")
    fields = itertools.chain(*(LIMIT | {"side": "buy", "price": "8"}).items())
    words = list(fields)
    for _ in range(10):
        placed = server.client.execute_command(
            "FCALL", "place_order", 1, "orderbook:{main}:X", *words
        )
    return int(json.loads(placed)["sequence"])


async def test_a_book_that_was_defined_again_in_another_segment_is_another_history(
    venue: Venue,
) -> None:
    collectors = [venue.subscribe(channel) for channel in (Channel.TRADES, Channel.LEVEL2)]
    first = await venue.trade()
    for collector in collectors:
        await collector.wait_for_sequence(first)
    with venue.server.client.pipeline(transaction=True) as pipeline:
        pipeline.flushall()
        define = ("tick_size", "0.01", "lot_size", "1")
        pipeline.execute_command("FCALL", "define_instrument", 1, "orderbook:{other}:X", *define)
        pipeline.hset("orderbook:instruments", "X", "other")
        pipeline.execute()
    for collector in collectors:
        await eventually(lambda: collector.kinds()[-1] == "snapshot", "the new book")  # noqa: B023
        await eventually(lambda: "gap" in collector.kinds(), "the gap has been told")  # noqa: B023
    last = await venue.trade()
    for collector in collectors:
        messages = await collector.wait_for_sequence(last)
        gap = next(message for message in messages if message["type"] == "gap")
        assert (gap["after"], gap["epoch"]) == (first, messages[-1]["epoch"])


async def test_a_broken_connection_loses_nothing(venue: Venue) -> None:
    collector = venue.subscribe(Channel.TRADES)
    await collector.wait(1)
    made = []
    for _ in range(10):
        made.append(await venue.trade())
        venue.server.client.client_kill_filter(_type="normal", skipme=True)
        await _until_answering(venue)
    messages = await collector.wait_for_sequence(made[-1])
    assert sequences(messages) == made
    assert collector.kinds() == ["snapshot"] + ["update"] * len(made)


async def _until_answering(venue: Venue) -> None:
    async def answers() -> bool:
        try:
            await venue.engine.ping()
        except Exception:  # noqa: BLE001 - that is what we wait for
            return False
        return True

    async with asyncio.timeout(20):
        while not await answers():
            pass


async def test_a_flushed_server_ends_nothing_and_books_come_back(venue: Venue) -> None:
    collector = venue.subscribe(Channel.TRADES)
    for _ in range(5):
        last = await venue.trade()
    await collector.wait_for_sequence(last)
    venue.server.client.flushall()
    await eventually(lambda: not venue.feed._is_defined("X"), "the book's end is noticed")
    await venue.engine.define_instrument("X", **RULES)
    await eventually(lambda: "gap" in collector.kinds(), "the gap has been told")
    await eventually(lambda: collector.kinds()[-1] == "snapshot", "the new book is there")
    assert collector.messages[-1]["trades"] == []
    sequence = await venue.trade()
    assert sequences(await collector.wait_for_sequence(sequence))[-1] == sequence


@pytest.mark.parametrize("run_id", [None, "another"])
async def test_a_flushed_and_redefined_book_is_noticed(venue: Venue, run_id: str | None) -> None:
    """Also when the new book's epoch happens to be that of the old one."""
    collector = venue.subscribe(Channel.LEVEL2)
    last = await venue.trade()
    await collector.wait_for_sequence(last)
    with venue.server.client.pipeline(transaction=True) as pipeline:
        pipeline.flushall()
        pipeline.execute_command(
            *("FCALL", "define_instrument", 1, "orderbook:{main}:X"),
            *("tick_size", "0.01", "lot_size", "1"),
        )
        if run_id:
            begin = ("FCALL", "begin_epoch", 1, "orderbook:{main}:X")
            pipeline.execute_command(*begin, "run_id", run_id)
        pipeline.execute()
    await eventually(lambda: "gap" in collector.kinds(), "the gap has been told")
    await eventually(lambda: collector.kinds()[-1] == "snapshot", "the new book is there")


async def test_a_subscriber_that_fails_costs_the_others_nothing(venue: Venue) -> None:
    class Failing(Collector):
        def send(self, message: bytes) -> None:
            super().send(message)
            if len(self.messages) > 1:
                raise ValueError("a client's trouble")

    failing = Failing()
    venue.feed.subscribe(Wanted(Channel.TRADES, "X"), failing)
    await failing.wait(1)
    collector = venue.subscribe(Channel.TRADES)
    await collector.wait(1)
    made = [await venue.trade() for _ in range(3)]
    assert sequences(await collector.wait_for_sequence(made[-1])) == made


async def test_the_lag_is_small_when_all_is_well_and_grows_without_redis(venue: Venue) -> None:
    await venue.trade()
    assert venue.feed.lag_s() < 1
    venue.server.process.stop()
    await eventually(lambda: venue.feed.lag_s() > 1, "the lag shows that Redis is away")


@pytest.mark.parametrize("stream", ["events", "book"])
async def test_a_stream_of_another_type_stops_its_own_book_alone(venue: Venue, stream: str) -> None:
    await venue.engine.define_instrument("Y", **RULES)
    await eventually(lambda: "Y" in venue.feed._books, "the second book is known")
    await venue.trade("X")
    followed = venue.subscribe(Channel.TRADES)
    other = venue.subscribe(Channel.TRADES, "Y")
    await followed.wait(1)
    await other.wait(1)
    key = venue.key(stream)
    await eventually(lambda: venue.server.client.exists(key), "the stream is there")
    venue.server.client.rename(key, "aside")
    venue.server.client.set(key, "by hand")
    await followed.wait(2)
    assert followed.kinds() == ["snapshot", "error"]
    assert followed.messages[1]["code"] == "UNAVAILABLE"
    assert "WRONGTYPE" in venue.feed.troubled_books()["X"]
    assert venue.feed.unreadable_books_count() == 1
    late = venue.subscribe(Channel.BOOK)
    assert [message["type"] for message in await late.wait(1)] == ["error"]
    sequence = await venue.trade("Y")
    await other.wait_for_sequence(sequence)
    assert venue.feed.lag_s() < 1
    assert other.kinds() == ["snapshot", "update"]
    venue.server.client.rename("aside", key)
    await followed.wait(4)
    assert followed.kinds() == ["snapshot", "error", "gap", "snapshot"]
    sequence = await venue.trade("X")
    await followed.wait_for_sequence(sequence)
    await eventually(lambda: not venue.feed.troubled_books(), "all is well")


async def test_a_stream_that_cannot_be_read_from_the_start_delays_no_other_book() -> None:
    with running("valkey") as server:
        load_library(server.client, server.engine)
        engine = await Engine.connect(server.url)
        for symbol in ("X", "Y"):
            await engine.define_instrument(symbol, **RULES)
        server.client.set("orderbook:{main}:X:events", "by hand")
        feed = Feed(engine)
        began = asyncio.get_running_loop().time()
        await feed.start()
        assert asyncio.get_running_loop().time() - began < START_TIMEOUT_S / 2
        venue = Venue(server, engine, feed)
        collector = venue.subscribe(Channel.TRADES, "Y")
        await collector.wait_for_sequence(await venue.trade("Y"))
        assert list(feed.troubled_books()) == ["X"]
        await feed.stop()
        await engine.close()


async def test_what_is_due_is_done_though_the_streams_cannot_be_read() -> None:
    with running("valkey") as server:
        load_library(server.client, server.engine)
        engine = await Engine.connect(server.url, read_url=f"redis://127.0.0.1:{free_port()}")
        await engine.define_instrument("X", **RULES)
        feed = Feed(engine)
        await feed.start()
        soon = str(time.time_ns() // 1_000_000 + 500)
        terms = {**LIMIT, "time_in_force": "gtd", "expire_time_ms": soon}
        await engine.place_order("X", side="buy", **terms)
        await eventually(
            lambda: stored_fields(server.client, "orderbook:{main}:X")["open_orders"] == "0",
            "it expires",
        )
        assert feed.lag_s() > 1
        await feed.stop()
        await engine.close()


async def test_a_book_that_is_gone_is_told(venue: Venue) -> None:
    await venue.trade()
    venue.server.client.delete("orderbook:{main}:X")
    await eventually(lambda: "missing" in venue.feed.troubled_books().get("X", ""), "it is told")
    venue.server.client.delete("orderbook:instruments")
    await eventually(lambda: "listed" in venue.feed.troubled_books().get("X", ""), "it is told")


async def test_streams_of_a_cluster_are_read_from_every_node() -> None:
    with running_cluster("valkey") as servers:
        for server in servers:
            load_library(server.client, "valkey")
        engine = await Engine.connect(f"redis+cluster://127.0.0.1:{servers[0].port}")
        symbols = [f"S{number}" for number in range(4)]
        for number, symbol in enumerate(symbols):
            await engine.define_instrument(symbol, segment=f"s{number}", **RULES)
        feed = Feed(engine)
        try:
            await feed.start()
            venue = Venue(servers[0], engine, feed)
            collectors = [venue.subscribe(Channel.TRADES, symbol) for symbol in symbols]
            for symbol, collector in zip(symbols, collectors, strict=True):
                await collector.wait(1)
                sequence = await venue.trade(symbol)
                assert sequences(await collector.wait(2)) == [sequence]
        finally:
            await feed.stop()
            await engine.close()


async def test_streams_can_be_read_from_a_replica() -> None:
    with running("valkey") as primary, running("valkey") as replica:
        load_library(primary.client, "valkey")
        replica.client.replicaof("127.0.0.1", primary.port)
        await eventually(
            lambda: replica.client.info("replication")["master_link_status"] == "up",
            "the replica follows",
        )
        engine = await Engine.connect(primary.url, read_url=replica.url)
        await engine.define_instrument("X", **RULES)
        feed = Feed(engine)
        try:
            await feed.start()
            venue = Venue(primary, engine, feed)
            collector = venue.subscribe(Channel.TRADES)
            await collector.wait(1)
            sequence = await venue.trade()
            assert sequences(await collector.wait(2)) == [sequence]
            assert _readers(replica) == 1
            assert _readers(primary) == 0
        finally:
            await feed.stop()
            await engine.close()


def _readers(server: Server) -> int:
    """How many connections wait for the next entries of streams."""
    return sum(client["cmd"] == "xread" for client in server.client.client_list())
