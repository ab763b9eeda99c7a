"""Three primaries: books of two segments live on different nodes, and one Engine serves both."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from books import Book
from orderbook import library, topology
from orderbook.engine import Engine
from orderbook.topology import ClusterTopology, Node
from servers import HOST, Server, running_cluster

SYMBOL, OTHER_SYMBOL = "BTC-USD", "ETH-USD"


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
    slot = cluster[0].client.execute_command("CLUSTER", "KEYSLOT", f"{{{segment}}}")
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
