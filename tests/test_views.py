"""`level2` with checksums, and `level3`: what subscribers can build of them, and prove."""

import asyncio
import contextlib
import json
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest

from checker import Checker
from clients import eventually, new_symbol
from flow import RULES, random_batches
from orderbook.engine.engine import Engine
from orderbook.feed.feed import Feed, Subscription, Wanted
from orderbook.feed.views import Level2, Level3
from orderbook.messages import Channel
from servers import Server

Json = dict[str, Any]


class Watcher:
    """A subscriber with a checker."""

    def __init__(self) -> None:
        self.messages: list[Json] = []
        self.checker = Checker()
        self.subscription: Subscription

    def send(self, message: bytes) -> None:
        decoded = json.loads(message)
        self.messages.append(decoded)
        if decoded["channel"] in {"level2", "level3"}:
            self.checker.take(decoded)

    def send_newest(self, name: tuple[str, bytes], message: bytes) -> None:
        raise AssertionError((name, message))

    async def ready(self) -> None:
        await asyncio.sleep(0)

    async def reached(self, sequence: int) -> None:
        await eventually(lambda: self.checker.sequence >= sequence, f"{sequence} has come")

    def kinds(self) -> list[str]:
        return [message["type"] for message in self.messages]


@contextlib.asynccontextmanager
async def feeding(server: Server) -> AsyncIterator[tuple[Engine, Feed]]:
    """What a host has, without its sockets."""
    engine = await Engine.connect(server.url)
    feed = Feed(engine)
    try:
        await feed.start()
        yield engine, feed
    finally:
        await feed.stop()
        await engine.close()


@pytest.fixture
async def host(valkey: Server) -> AsyncIterator[tuple[Engine, Feed]]:
    async with feeding(valkey) as made:
        yield made


@pytest.fixture
async def symbol(host: tuple[Engine, Feed]) -> str:
    engine, feed = host
    symbol = new_symbol()
    await engine.define_instrument(symbol, **RULES)
    assert await feed.knows(symbol)
    return symbol


def watch(feed: Feed, channel: Channel, symbol: str, **more: Any) -> Watcher:
    watcher = Watcher()
    watcher.subscription = feed.subscribe(Wanted(channel, symbol, **more), watcher)
    return watcher


async def run(engine: Engine, symbol: str, batch: list[Json]) -> None:
    await engine.execute(symbol, [json.dumps(command).encode() for command in batch])


async def limit(engine: Engine, symbol: str, side: str, price: str, **more: Any) -> Json:
    fields = {"account": "alice", "order_type": "limit", "quantity": "1", "price": price}
    reply = await engine.place_order(symbol, side=side, **(fields | more))
    assert reply["status"] != "rejected", reply
    return reply


async def trade_randomly(engine: Engine, symbol: str, dice: random.Random, calls: int) -> int:
    """The sequence reached."""
    for batch in random_batches(dice, calls):
        await run(engine, symbol, batch)
    # The last change is one that every channel hears of.
    await limit(engine, symbol, "buy", "1")
    return int((await engine.get_instrument(symbol))["sequence"])


async def assert_is_the_book(watcher: Watcher, engine: Engine, symbol: str) -> None:
    if watcher.messages[0]["channel"] == "level3":
        book = await engine.get_level3(symbol, depth="full")
    else:
        book = await engine.get_book(symbol, depth="full")
    for side in ("bids", "asks"):
        assert watcher.checker.rows(side) == book[side]


# ---- under load


@pytest.mark.parametrize("seed", [1, 2])
async def test_every_checksum_holds_under_random_load_at_two_hosts(
    valkey: Server, host: tuple[Engine, Feed], symbol: str, seed: int
) -> None:
    """Subscribers come at any moment, to either host; the calls do not wait for the readers."""
    engine, feed = host
    dice = random.Random(seed)
    async with feeding(valkey) as (_, other_feed):
        assert await other_feed.knows(symbol)
        watchers = []
        for _ in range(12):
            for at in (feed, other_feed):
                channel = dice.choice((Channel.LEVEL2, Channel.LEVEL3))
                watchers.append(watch(at, channel, symbol))
            last = await trade_randomly(engine, symbol, dice, 40)
        for watcher in watchers:
            await watcher.reached(last)
            await assert_is_the_book(watcher, engine, symbol)
            assert watcher.checker.without_checksum == []
            assert watcher.kinds()[0] == "snapshot"
            assert set(watcher.kinds()[1:]) <= {"update"}
        assert sum(watcher.checker.checked for watcher in watchers) > 1000


async def test_both_hosts_tell_the_same_level3(
    valkey: Server, host: tuple[Engine, Feed], symbol: str
) -> None:
    engine, feed = host
    dice = random.Random(3)
    await trade_randomly(engine, symbol, dice, 30)
    async with feeding(valkey) as (_, other_feed):
        assert await other_feed.knows(symbol)
        watchers = [watch(at, Channel.LEVEL3, symbol) for at in (feed, other_feed)]
        for watcher in watchers:
            await eventually(lambda: watcher.messages, "the snapshot is there")  # noqa: B023
        last = await trade_randomly(engine, symbol, dice, 60)
        for watcher in watchers:
            await watcher.reached(last)
        assert watchers[0].messages == watchers[1].messages


# ---- level2


async def test_a_resumed_level2_has_checksums_from_the_moment_it_is_live(
    host: tuple[Engine, Feed], symbol: str
) -> None:
    engine, feed = host
    first = await limit(engine, symbol, "buy", "9")
    history = [(await limit(engine, symbol, "buy", price))["sequence"] for price in ("8", "7")]
    witness = watch(feed, Channel.TRADES, symbol)
    await eventually(lambda: witness.messages, "the reader is there")
    watcher = Watcher()
    watcher.checker.take(
        {"channel": "level2", "type": "snapshot", "bids": [["9", "1"]], "asks": []}
        | {"sequence": first["sequence"], **RULES}
    )
    resumed = {"after": first["sequence"], "epoch": feed._books[symbol].epoch}
    feed.subscribe(Wanted(Channel.LEVEL2, symbol, **resumed), watcher)
    await watcher.reached(history[-1])
    last = await limit(engine, symbol, "sell", "11")
    await watcher.reached(last["sequence"])
    assert [message["sequence"] for message in watcher.messages] == [*history, last["sequence"]]
    assert "checksum" in watcher.messages[-1]
    await assert_is_the_book(watcher, engine, symbol)


async def test_a_second_subscriber_gets_what_the_first_one_got(
    host: tuple[Engine, Feed], symbol: str
) -> None:
    engine, feed = host
    for channel in (Channel.LEVEL2, Channel.LEVEL3):
        first = watch(feed, channel, symbol)
        start = (await limit(engine, symbol, "buy", "9"))["sequence"]
        await first.reached(start)
        last = (await limit(engine, symbol, "buy", "8"))["sequence"]
        await first.reached(last)
        resumed = watch(feed, channel, symbol, after=start, epoch=first.messages[0]["epoch"])
        await eventually(lambda: resumed.messages, "history has come")  # noqa: B023
        assert resumed.messages == first.messages[-1:]
        assert "checksum" in resumed.messages[0]


async def test_a_view_is_kept_no_longer_than_somebody_looks(
    host: tuple[Engine, Feed], symbol: str
) -> None:
    engine, feed = host
    for _ in range(2):
        watcher = watch(feed, Channel.LEVEL3, symbol)
        other = watch(feed, Channel.LEVEL2, symbol)
        last = (await limit(engine, symbol, "buy", "9"))["sequence"]
        await watcher.reached(last)
        await other.reached(last)
        views = feed._books[symbol].views
        assert set(views) == {Channel.LEVEL2, Channel.LEVEL3}
        feed.unsubscribe(watcher.subscription)
        feed.unsubscribe(other.subscription)
        assert views == {}
        await limit(engine, symbol, "sell", "10")


async def change_no_level(engine: Engine, symbol: str, count: int) -> int:
    """Orders that wait for a price; the sequence of the last one."""
    stop = {"account": "carol", "side": "buy", "order_type": "stop", "stop_price": "99"}
    for _ in range(count):
        reply = await engine.place_order(symbol, quantity="1", **stop)
    return int(reply["sequence"])


async def test_a_level2_update_names_the_one_before_it(
    host: tuple[Engine, Feed], symbol: str
) -> None:
    engine, feed = host
    first = (await limit(engine, symbol, "buy", "9"))["sequence"]
    quiet = await change_no_level(engine, symbol, 30)
    watcher = watch(feed, Channel.LEVEL2, symbol)
    await watcher.reached(quiet)
    made = [first]
    for price in ("8", "7", "6"):
        await change_no_level(engine, symbol, 2)
        made.append((await limit(engine, symbol, "buy", price))["sequence"])
    await watcher.reached(made[-1])
    updates = watcher.messages[1:]
    assert [update["sequence"] for update in updates] == made[1:]
    assert [update["previous_sequence"] for update in updates] == made[:-1]


async def test_a_resumed_level2_follows_on_from_what_is_known(
    valkey: Server, host: tuple[Engine, Feed], symbol: str
) -> None:
    """Also on a host that has seen nothing of what was before, and from a sequence that changed no
    level."""
    engine, _ = host
    first = (await limit(engine, symbol, "buy", "9"))["sequence"]
    quiet = await change_no_level(engine, symbol, 3)
    history = [(await limit(engine, symbol, "buy", price))["sequence"] for price in ("8", "7")]
    await change_no_level(engine, symbol, 3)
    epoch = (await engine.get_instrument(symbol))["epoch"]
    async with feeding(valkey) as (_, feed):
        for after in (first, quiet):
            watcher = watch(feed, Channel.LEVEL2, symbol, after=after, epoch=epoch)
            await eventually(lambda: len(watcher.messages) >= 2, "history has come")  # noqa: B023
            last = (await limit(engine, symbol, "sell", "11"))["sequence"]
            await watcher.reached(last)
            previous = [message["previous_sequence"] for message in watcher.messages]
            assert previous[0] == after
            assert previous[1 : len(history)] == history[:-1]
            known = [message["sequence"] for message in watcher.messages]
            assert previous[1:] == known[:-1]


# ---- level3


async def test_level3_tells_each_order_and_nothing_private(
    host: tuple[Engine, Feed], symbol: str
) -> None:
    engine, feed = host
    iceberg = {"quantity": "9", "display_quantity": "2", "client_order_id": "secret"}
    await limit(engine, symbol, "sell", "10", account="whoever", **iceberg)
    watcher = watch(feed, Channel.LEVEL3, symbol)
    await eventually(lambda: watcher.messages, "the snapshot is there")
    assert watcher.messages[0]["asks"] == [["10", "2", "1", 1]]
    await limit(engine, symbol, "sell", "10", client_order_id="n1")
    await limit(engine, symbol, "buy", "10", quantity="2.5", account="bob")
    await limit(engine, symbol, "sell", "12", account="bob")
    last = await engine.amend_order(symbol, order_id="5", price="11")
    await watcher.reached(last["sequence"])
    assert [message["asks"] for message in watcher.messages[1:]] == [
        [["10", "1", "2", 2]],
        # The first slice is gone and the next one queues behind order 2, which trades the rest.
        [["10", "0", "1", 1], ["10", "0.5", "2", 2], ["10", "2", "4", 4]],
        [["12", "1", "5", 5]],
        [["11", "1", "5", 6]],
    ]
    assert {"channel", "symbol", "type", "sequence", "epoch", "bids", "asks", "checksum"} | {
        "timestamp_ms"
    } == set(watcher.messages[1])
    text = json.dumps(watcher.messages)
    assert not [word for word in ("whoever", "secret", "alice", "bob", "n1") if word in text]


async def test_level3_resumes_from_what_the_host_remembers_and_else_begins_again(
    host: tuple[Engine, Feed], symbol: str
) -> None:
    engine, feed = host
    start = (await limit(engine, symbol, "buy", "9"))["sequence"]
    epoch = (await engine.get_instrument(symbol))["epoch"]
    early = watch(feed, Channel.LEVEL3, symbol, after=start, epoch=epoch)
    await eventually(lambda: Channel.LEVEL3 in feed._books[symbol].views, "the view has begun")
    middle = (await limit(engine, symbol, "buy", "8"))["sequence"]
    last = (await limit(engine, symbol, "buy", "7"))["sequence"]
    await eventually(lambda: len(early.messages) == 2, "both changes have come")
    assert early.kinds() == ["update", "update"]
    resumed = watch(feed, Channel.LEVEL3, symbol, after=middle, epoch=epoch)
    await resumed.reached(last)
    assert resumed.messages == early.messages[1:]
    late = watch(feed, Channel.LEVEL3, symbol, after=start - 1, epoch=epoch)
    await late.reached(last)
    assert late.kinds() == ["gap", "snapshot"]
    assert late.messages[0]["after"] == start - 1


async def test_a_new_epoch_is_a_gap_and_a_new_view(host: tuple[Engine, Feed], symbol: str) -> None:
    engine, feed = host
    watchers = [watch(feed, channel, symbol) for channel in (Channel.LEVEL2, Channel.LEVEL3)]
    first = (await limit(engine, symbol, "buy", "9"))["sequence"]
    for watcher in watchers:
        await watcher.reached(first)
    await engine.call("begin_epoch", symbol, "run_id", "another")
    last = (await limit(engine, symbol, "buy", "8"))["sequence"]
    for watcher in watchers:
        await watcher.reached(last)
        assert "gap" in watcher.kinds()
        assert watcher.checker.without_checksum == []
        await assert_is_the_book(watcher, engine, symbol)


# ---- views of books that a snapshot does not tell to the end


STEPS = {"checksum": 0, "tick_size": "1", "lot_size": "1"}


def snapshot_of(channel: str, rows: int) -> bytes:
    bids: list[list[Any]] = [[str(100 - number), "1"] for number in range(rows)]
    if channel == "level3":
        bids = [[*row, str(number + 1), number + 1] for number, row in enumerate(bids)]
    message = {"channel": channel, "type": "snapshot", "symbol": "X", "sequence": 5, "epoch": 1}
    return json.dumps(message | {"bids": bids, "asks": [], "more": True, **STEPS}).encode()


def gone(number: int) -> list[bytes]:
    """The entry that takes the best level away."""
    level2 = {"sequence": 6 + number, "bids": [[str(100 - number), "0"]], "asks": []}
    report = {"event": "canceled", "order_id": str(number + 1), "timestamp_ms": 1}
    orders = {"account": "a", "epoch": 1, "orders": [report]}
    return [b"level2", json.dumps(level2).encode(), b"orders:a", json.dumps(orders).encode()]


@pytest.mark.parametrize("channel", ["level2", "level3"])
def test_a_view_ends_before_its_checksum_can_be_wrong(
    channel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orderbook.feed.views.SNAPSHOT_ROWS_MAX", 13)
    snapshot = snapshot_of(channel, 13)
    view = Level2(snapshot, 5) if channel == "level2" else Level3(snapshot)
    assert view.complete(6, gone(0)) is not None
    assert view.complete(7, gone(1)) is not None
    # Ten levels are known still, but of the last one perhaps not every order.
    assert view.complete(8, gone(2)) is None


async def test_subscribers_get_a_new_snapshot_when_a_view_ends(
    host: tuple[Engine, Feed], symbol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, feed = host
    monkeypatch.setattr(Level2, "complete", lambda *_: None)
    monkeypatch.setattr(Level3, "complete", lambda *_: 1 / 0)
    watchers = [watch(feed, channel, symbol) for channel in (Channel.LEVEL2, Channel.LEVEL3)]
    for watcher in watchers:
        await eventually(lambda: watcher.messages, "the snapshot is there")  # noqa: B023
    trades = watch(feed, Channel.TRADES, symbol)
    await eventually(lambda: trades.messages, "the snapshot is there")
    last = (await limit(engine, symbol, "buy", "9"))["sequence"]
    for watcher in watchers:
        await watcher.reached(last)
        assert watcher.kinds() == ["snapshot", "gap", "snapshot"]
    assert trades.kinds() == ["snapshot"]


async def test_checksums_follow_new_steps(host: tuple[Engine, Feed], symbol: str) -> None:
    engine, feed = host
    watchers = [watch(feed, channel, symbol) for channel in (Channel.LEVEL2, Channel.LEVEL3)]
    first = await limit(engine, symbol, "buy", "9")
    for watcher in watchers:
        await watcher.reached(first["sequence"])
    await engine.cancel_order(symbol, order_id=first["order_id"])
    await engine.define_instrument(symbol, tick_size="0.001", lot_size="0.01")
    last = await limit(engine, symbol, "buy", "8.125", quantity="0.5")
    stored = {Channel.LEVEL2: "get_book", Channel.LEVEL3: "get_level3"}
    for watcher, function in zip(watchers, stored.values(), strict=True):
        watcher.checker.tick_size, watcher.checker.lot_size = "0.001", "0.01"
        await watcher.reached(last["sequence"])
        book = await engine.call(function, symbol)
        assert watcher.messages[-1]["checksum"] == json.loads(book)["checksum"]
