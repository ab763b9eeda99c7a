"""Three primaries: books of two segments live on different nodes, and one Engine serves both."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from books import Book
from clients import connected as client_of
from clients import eventually
from orderbook.engine import engine as engine_module
from orderbook.engine import library, topology
from orderbook.engine.batcher import BATCH_LENGTH_MAX, Batcher
from orderbook.engine.engine import INSTRUMENTS_KEY, Engine
from orderbook.engine.errors import EngineError
from orderbook.engine.topology import ClusterTopology, Node
from orderbook.host.host import Host, HostConfig
from servers import HOST, Server, running, running_cluster

SYMBOL, OTHER_SYMBOL = "BTC-USD", "ETH-USD"
RULES = {"tick_size": "1", "lot_size": "1"}
MOVE_S = 0.3
MIGRATE_TIMEOUT_MS = 5000
# One after the other they would take longer than a test waits.
BOOKS_LEFT_HALF_MOVED = 12
LEFT_WAIT_S = 2.0


@pytest.fixture(scope="module")
def cluster(engine: str) -> Iterator[list[Server]]:
    if engine == "fakeredis":
        pytest.skip("fakeredis is no cluster")
    with running_cluster(engine) as servers:
        yield servers


@pytest.fixture
async def connected(cluster: list[Server]) -> AsyncIterator[Engine]:
    """An engine on an empty cluster with the library on every primary."""
    for server in cluster:
        server.client.flushall()
    found = await Engine.connect(f"redis+cluster://{HOST}:{cluster[0].port}")
    await library.load(found)
    yield found
    await found.close()


def owner(cluster: list[Server], segment: str) -> Server:
    """The node on which a segment's books are."""
    return owner_of_slot(
        cluster, cluster[0].client.execute_command("CLUSTER", "KEYSLOT", f"{{{segment}}}")
    )


def owner_of_slot(cluster: list[Server], slot: int) -> Server:
    for first, last, (_, port, *_), *_ in cluster[0].client.execute_command("CLUSTER", "SLOTS"):
        if first <= slot <= last:
            return next(server for server in cluster if server.port == port)
    raise AssertionError(f"nobody has slot {slot}")


def two_segments(cluster: list[Server]) -> tuple[str, str]:
    """Segments that lie on different nodes; the first is the default one."""
    home = owner(cluster, "main")
    names = (f"segment-{number}" for number in range(100))
    return "main", next(name for name in names if owner(cluster, name) is not home)


async def test_library_is_loaded_on_every_primary(cluster: list[Server], connected: Engine) -> None:
    assert len(connected.primaries()) == len(cluster)
    for server in cluster:
        reply = server.client.execute_command("FCALL_RO", "library_version", 0)
        assert library.bundle().digest.encode() in reply
    assert [report.action for report in await library.load(connected)] == ["kept"] * len(cluster)
    cluster[1].client.execute_command("FUNCTION", "FLUSH")
    assert sorted(report.action for report in await library.check(connected)) == [
        "kept", "kept", "loaded",
    ]  # fmt: skip


async def test_the_library_is_loaded_on_a_primary_without_slots(
    cluster: list[Server], engine: str
) -> None:
    settings = {"cluster-enabled": "yes", "cluster-node-timeout": "5000"}
    with running(engine, settings) as added:
        address = f"{HOST}:{added.port}"
        node_id = added.client.execute_command("CLUSTER MYID").decode()
        cluster[0].client.execute_command("CLUSTER MEET", HOST, added.port)
        for server in cluster:
            await eventually(
                lambda: address in server.client.execute_command("CLUSTER NODES"),  # noqa: B023
                "the node is known",
            )
        found = await Engine.connect(f"redis+cluster://{HOST}:{cluster[0].port}")
        try:
            assert address in {report.node for report in await library.load(found)}
            assert b'"library":"orderbook"' in added.client.fcall_ro("library_version", 0)
        finally:
            await found.close()
            for server in cluster:
                server.client.execute_command("CLUSTER FORGET", node_id)


async def test_every_address_of_a_cluster_is_tried(cluster: list[Server]) -> None:
    found = await Engine.connect(f"redis+cluster://{HOST}:1,{HOST}:2,{HOST}:{cluster[1].port}")
    assert len(found.primaries()) == len(cluster)
    await found.close()


async def test_books_of_two_segments_live_on_different_nodes(
    cluster: list[Server], connected: Engine
) -> None:
    home, elsewhere = two_segments(cluster)
    await connected.define_instrument(SYMBOL, segment=home, tick_size="0.01", lot_size="1")
    reply = await connected.define_instrument(
        OTHER_SYMBOL, segment=elsewhere, tick_size="0.01", lot_size="1"
    )
    assert reply["segment"] == elsewhere
    assert await connected.instruments() == {SYMBOL: home, OTHER_SYMBOL: elsewhere}
    for symbol, quantity in ((SYMBOL, "2"), (OTHER_SYMBOL, "3")):
        terms = {"order_type": "limit", "price": "100", "quantity": quantity}
        await connected.place_order(symbol, account="alice", side="sell", **terms)
        filled = await connected.place_order(symbol, account="bob", side="buy", **terms)
        assert filled["status"] == "filled"
        (trade,) = (await connected.get_trades(symbol))["trades"]
        assert trade["quantity"] == quantity
        assert (await connected.verify_book(symbol))["verified"] is True
    for symbol, segment in ((SYMBOL, home), (OTHER_SYMBOL, elsewhere)):
        server = owner(cluster, segment)
        assert Book(server.client, symbol, segment).stored_keys()
        for other in cluster:
            if other is not server:
                assert Book(other.client, symbol, segment).stored_keys() == []


async def test_another_engine_finds_books_in_their_segments(
    cluster: list[Server], connected: Engine
) -> None:
    _, elsewhere = two_segments(cluster)
    await connected.define_instrument(SYMBOL, segment=elsewhere, tick_size="1", lot_size="1")
    other = await Engine.connect(f"redis+cluster://{HOST}:{cluster[2].port}")
    try:
        assert other.book_key(SYMBOL) == f"orderbook:{{{elsewhere}}}:{SYMBOL}"
        order = b'{"method":"place_order","account":"a","side":"buy","order_type":"limit",'
        order += b'"price":"1","quantity":"1"}'
        (reply,) = await other.execute(SYMBOL, [order])
        assert b'"status":"open"' in reply
        assert (await connected.get_book(SYMBOL))["bids"] == [["1", "1"]]
    finally:
        await other.close()


async def test_symbol_stays_in_the_segment_where_it_is(
    cluster: list[Server], connected: Engine
) -> None:
    home, elsewhere = two_segments(cluster)
    await connected.define_instrument(SYMBOL, segment=home, tick_size="1", lot_size="1")
    reply = await connected.define_instrument(
        SYMBOL, segment=elsewhere, tick_size="1", lot_size="1"
    )
    assert reply["code"] == "SYMBOL_IN_OTHER_SEGMENT"
    assert await connected.instruments() == {SYMBOL: home}
    assert Book(owner(cluster, elsewhere).client, SYMBOL, elsewhere).stored_keys() == []


async def test_all_keys_of_a_book_lie_in_one_slot(cluster: list[Server], connected: Engine) -> None:
    home, _ = two_segments(cluster)
    await connected.define_instrument(SYMBOL, segment=home, tick_size="1", lot_size="1")
    order = {"order_type": "limit", "price": "100", "quantity": "2", "client_order_id": "x"}
    await connected.place_order(SYMBOL, account="alice", side="sell", **order)
    await connected.place_order(SYMBOL, account="bob", side="buy", **{**order, "price": "99"})
    await connected.place_order(SYMBOL, account="carol", side="buy", **{**order, "quantity": "1"})
    await connected.publish_book(SYMBOL)
    server = owner(cluster, home)
    keys = Book(server.client, SYMBOL, home).stored_keys()
    assert len(keys) > 8
    assert len({server.client.execute_command("CLUSTER", "KEYSLOT", key) for key in keys}) == 1


async def test_streams_are_found_where_a_slot_has_moved(
    cluster: list[Server], connected: Engine
) -> None:
    await connected.define_instrument(SYMBOL, segment="moving", tick_size="1", lot_size="1")
    home = owner(cluster, "moving")
    for key in Book(home.client, SYMBOL, "moving").stored_keys():
        home.client.delete(key)
    slot = home.client.execute_command("CLUSTER", "KEYSLOT", "{moving}")
    away = next(server for server in cluster if server is not home)
    stream = f"orderbook:{{moving}}:{SYMBOL}:events"
    for new_home in (away, home):
        name = new_home.client.execute_command("CLUSTER", "MYID")
        for server in (new_home, *cluster):
            server.client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", name)
        new_home.client.xadd(stream, {"where": new_home.port})
        ((_, fields),) = await connected.read_stream(SYMBOL, "XRANGE", stream, "-", "+")
        assert fields == [b"where", b"%d" % new_home.port]
        new_home.client.delete(stream)


async def test_nodes_that_are_gone_are_dropped_once_however_many_notice(
    cluster: list[Server],
) -> None:
    found = await topology.connect(f"redis+cluster://{HOST}:{cluster[0].port}")
    assert isinstance(found, ClusterTopology)
    for number in range(2):
        found._nodes[f"gone:{number}"] = Node(Redis(host=HOST))
    await asyncio.gather(*(found.refresh() for _ in range(3)))
    assert len(found.nodes()) == len(cluster)
    await found.close()


def test_function_on_the_wrong_node_is_redirected(cluster: list[Server]) -> None:
    home = owner(cluster, "main")
    wrong = next(server for server in cluster if server is not home)
    with pytest.raises(ResponseError, match="MOVED|" + str(home.port)):
        Book(wrong.client, SYMBOL).read("get_book")


async def test_each_node_confirms_the_changes_of_its_books(
    cluster: list[Server], connected: Engine
) -> None:
    if b"waitaof" not in cluster[0].client.execute_command("COMMAND LIST"):
        pytest.skip("the server has no WAITAOF")
    for server in cluster:
        server.client.config_set("appendonly", "yes")
        server.client.config_set("appendfsync", "always")
    try:
        for symbol, segment in zip((SYMBOL, OTHER_SYMBOL), two_segments(cluster), strict=True):
            await connected.define_instrument(symbol, segment=segment, **RULES)
        reply = await connected.cancel_all_orders(
            [SYMBOL, OTHER_SYMBOL], account="alice", durability="fsync"
        )
        assert (len(reply["books"]), reply["durability"]) == (2, "fsync")
    finally:
        for server in cluster:
            server.client.config_set("appendonly", "no")


# ---- while a slot moves


@dataclass
class Move:
    """A segment's slot that is being moved from one node to another."""

    cluster: list[Server]
    slot: int
    source: Server
    target: Server

    def begin(self) -> None:
        """No key moves yet: a key that is not there already is asked for at the target."""
        self._set(self.target, "IMPORTING", self.source)
        self._set(self.source, "MIGRATING", self.target)

    def _set(self, server: Server, state: str, other: Server) -> None:
        name = other.client.execute_command("CLUSTER", "MYID")
        server.client.execute_command("CLUSTER", "SETSLOT", self.slot, state, name)

    def end(self) -> None:
        """Moves the keys, and then the slot."""
        keys = self.source.client.execute_command("CLUSTER", "GETKEYSINSLOT", self.slot, 1000)
        if keys:
            address = (HOST, self.target.port, "", 0, MIGRATE_TIMEOUT_MS)
            self.source.client.execute_command("MIGRATE", *address, "KEYS", *keys)
        for server in (self.target, *self.cluster):
            self._set(server, "NODE", self.target)


@contextlib.contextmanager
def moving(cluster: list[Server], segment: str) -> Iterator[Move]:
    """A slot that begins to move. At the end it is on some node, and nobody moves it."""
    source = owner(cluster, segment)
    target = next(server for server in cluster if server is not source)
    slot = int(source.client.execute_command("CLUSTER", "KEYSLOT", f"{{{segment}}}"))
    move = Move(cluster, slot, source, target)
    move.begin()
    try:
        yield move
    finally:
        if owner(cluster, segment) is source:
            move.end()


async def _answered_after_the_move(move: Move, call: Awaitable[Any]) -> Any:
    """What a call comes to that must wait until the slot is at the target."""
    waiting = asyncio.ensure_future(call)
    await asyncio.sleep(MOVE_S)
    assert not waiting.done()
    await asyncio.to_thread(move.end)
    return await waiting


async def test_a_call_waits_until_its_slot_has_moved(
    cluster: list[Server], connected: Engine
) -> None:
    with moving(cluster, "moving") as move:
        call = connected.define_instrument(SYMBOL, segment="moving", **RULES)
        assert (await _answered_after_the_move(move, call))["segment"] == "moving"
        assert Book(move.target.client, SYMBOL, "moving").stored_keys()


async def test_a_book_that_moves_is_read_and_written_when_it_is_there(
    cluster: list[Server], connected: Engine
) -> None:
    await connected.define_instrument(SYMBOL, segment="moving", **RULES)
    terms = {"order_type": "limit", "price": "1", "quantity": "1"}
    with moving(cluster, "moving") as move:
        calls = asyncio.gather(
            connected.place_order(SYMBOL, account="alice", side="buy", **terms),
            connected.get_book(SYMBOL),
        )
        placed, _ = await _answered_after_the_move(move, calls)
        assert placed["status"] == "open"
        assert (await connected.get_book(SYMBOL))["bids"] == [["1", "1"]]
        assert (await connected.verify_book(SYMBOL))["verified"] is True


async def test_commands_that_wait_for_a_move_keep_their_order(
    cluster: list[Server], connected: Engine
) -> None:
    await connected.define_instrument(SYMBOL, segment="moving", **RULES)
    order = b'{"method":"place_order","account":"alice","side":"buy","order_type":"limit",'
    order += b'"price":"1","quantity":"1","client_order_id":"%d"}'
    batcher, replies = Batcher(connected, SYMBOL), list[bytes]()
    with moving(cluster, "moving") as move:
        for number in range(BATCH_LENGTH_MAX + 2):
            batcher.submit(order % number, replies.append)
            await asyncio.sleep(0)
        await _answered_after_the_move(move, batcher.drained())
    placed = [json.loads(reply) for reply in replies]
    assert [reply["client_order_id"] for reply in placed] == [str(n) for n in range(len(placed))]
    order_ids = [int(reply["order_id"]) for reply in placed]
    assert order_ids == list(range(order_ids[0], order_ids[0] + BATCH_LENGTH_MAX + 2))


@pytest.mark.exhaustive
async def test_a_slot_that_is_left_half_moved_keeps_no_other_book_from_a_host(
    cluster: list[Server], connected: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "MOVE_WAIT_S_MAX", LEFT_WAIT_S)
    for number in range(BOOKS_LEFT_HALF_MOVED):
        await connected.define_instrument(f"LEFT-{number}", segment="moving", **RULES)
    await connected.define_instrument(SYMBOL, segment="main", **RULES)
    with moving(cluster, "moving"):
        async with (
            Host(HostConfig(f"redis+cluster://{HOST}:{cluster[0].port}", port=0)) as host,
            client_of(host.port) as client,
        ):
            await client.limit(SYMBOL, "buy", "1", "1")
            # Two rounds of checks, which do not wait for the books that are left.
            checks = {host.feed._checked_at}
            await eventually(lambda: len(checks | {host.feed._checked_at}) > 1, "a check")
            checks.add(host.feed._checked_at)
            await eventually(lambda: len(checks | {host.feed._checked_at}) > 2, "another check")
            # The host is ready for the others, and tells which are not served.
            left = {f"LEFT-{number}" for number in range(BOOKS_LEFT_HALF_MOVED)}
            await eventually(lambda: set(host.feed.troubled_books()) == left, "they are told")
            assert await host.readiness.reasons() == []


async def test_a_stream_that_has_moved_before_its_slot_is_read_there(
    cluster: list[Server], connected: Engine
) -> None:
    connected._segments[SYMBOL] = "moving"
    stream = connected.book_key(SYMBOL) + ":events"
    with moving(cluster, "moving") as move:
        with move.target.client.pipeline(transaction=False) as pipeline:
            pipeline.execute_command("ASKING")
            pipeline.execute_command("XADD", stream, "1-0", "trades", "x")
            pipeline.execute()
        ((entry_id, _),) = await connected.read_stream(SYMBOL, "XRANGE", stream, "-", "+")
        assert entry_id == b"1-0"
        move.end()
        move.target.client.delete(stream)


async def test_a_slot_that_nobody_has_is_waited_for(
    cluster: list[Server], connected: Engine
) -> None:
    await connected.define_instrument(SYMBOL, segment="moving", **RULES)
    home = owner(cluster, "moving")
    slot = home.client.execute_command("CLUSTER", "KEYSLOT", "{moving}")
    home.client.execute_command("CLUSTER", "DELSLOTS", slot)
    waiting = asyncio.create_task(connected.get_book(SYMBOL))
    await asyncio.sleep(MOVE_S)
    assert not waiting.done()
    home.client.execute_command("CLUSTER", "ADDSLOTS", slot)
    assert (await waiting)["bids"] == []


async def test_a_move_that_does_not_end_in_time_is_told_without_naming_servers(
    cluster: list[Server], connected: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "MOVE_WAIT_S_MAX", MOVE_S)
    with moving(cluster, "moving") as move:
        with pytest.raises(EngineError) as refusal:
            await connected.define_instrument(SYMBOL, segment="moving", **RULES)
        assert refusal.value.code == "UNAVAILABLE"
        assert b"is being moved to another server" in refusal.value.reply()
        assert str(move.target.port).encode() not in refusal.value.reply()
        assert str(move.target.port) in str(refusal.value)


async def test_an_address_of_a_single_server_is_no_address_of_a_cluster(
    cluster: list[Server],
) -> None:
    slot = cluster[0].client.execute_command("CLUSTER", "KEYSLOT", INSTRUMENTS_KEY)
    home = owner_of_slot(cluster, slot)
    wrong = next(server for server in cluster if server is not home)
    with pytest.raises(EngineError, match="belongs to a cluster"):
        await Engine.connect(wrong.url)
