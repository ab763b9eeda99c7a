"""The Python engine client and its batcher against real servers, and against servers in trouble."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from books import overwrite
from clients import eventually, new_symbol
from orderbook.engine.batcher import BATCH_LENGTH_MAX, Batcher
from orderbook.engine.engine import KEYS_PER_CALL_MAX, Engine
from orderbook.engine.errors import EngineError
from orderbook.engine.topology import Node
from orderbook.engine.wire import Wire
from orderbook.processes.child_process import ChildProcess, Surroundings
from proxy import Proxy
from servers import (
    BINARIES,
    Server,
    connect,
    free_port,
    is_installed,
    load_library,
    running,
    running_cluster,
)

RULES = {"tick_size": "0.01", "lot_size": "1"}
LIMIT = {"account": "alice", "side": "buy", "order_type": "limit", "quantity": "1", "price": "10"}

Alone = tuple[Server, Engine]

needs_redis7 = pytest.mark.skipif(
    not is_installed("redis7"), reason="redis-server is not installed"
)


def command(method: str, **fields: Any) -> bytes:
    return json.dumps({"method": method, **fields}).encode()


def place(**fields: Any) -> bytes:
    return command("place_order", **(LIMIT | fields))


@contextlib.asynccontextmanager
async def connected(url: str) -> AsyncIterator[Engine]:
    engine = await Engine.connect(url)
    try:
        yield engine
    finally:
        await engine.close()


async def failure(awaitable: Any) -> EngineError:
    with pytest.raises(EngineError) as caught:
        await awaitable
    return caught.value


@pytest.fixture
async def exchange(valkey: Server) -> AsyncIterator[Engine]:
    """A client of the server that other tests use as well."""
    async with connected(valkey.url) as engine:
        yield engine


@contextlib.asynccontextmanager
async def own_server(settings: Mapping[str, str] | None = None) -> AsyncIterator[Alone]:
    """A server to break, with one book, X."""
    with running("valkey", settings) as server:
        load_library(server.client, "valkey")
        async with connected(server.url) as engine:
            await engine.define_instrument("X", **RULES)
            yield server, engine


@pytest.fixture
async def symbol(exchange: Engine) -> str:
    symbol = new_symbol()
    assert (await exchange.define_instrument(symbol, **RULES))["symbol"] == symbol
    return symbol


# ---- the functions


async def test_every_function_has_a_method(exchange: Engine, symbol: str) -> None:
    placed = await exchange.place_order(symbol, **LIMIT, client_order_id="a", post_only=True)
    order_id = placed["order_id"]
    amended = await exchange.amend_order(symbol, order_id=order_id, quantity=3)
    assert (amended["quantity"], amended["status"]) == ("3", "open")
    assert (await exchange.get_order(symbol, order_id=order_id))["post_only"] is True
    assert (await exchange.get_open_orders(symbol, account="alice"))["orders"][0]["quantity"] == "3"
    assert (await exchange.get_book(symbol, depth=1))["bids"] == [["10", "3"]]
    assert (await exchange.get_trades(symbol, limit=5))["trades"] == []
    assert (await exchange.get_instrument(symbol))["open_orders"] == 1
    assert (await exchange.publish_book(symbol))["published"] is True
    assert (await exchange.tick(symbol))["pending"] is False
    timer = await exchange.cancel_all_after(symbol, account="alice", timeout_ms=60_000)
    assert timer["cancel_time_ms"] == timer["timestamp_ms"] + 60_000
    instrument = await exchange.get_instrument(symbol)
    assert (await exchange.begin_epoch(symbol))["epoch"] == instrument["epoch"]
    assert (await exchange.set_stp_group(symbol, account="a", stp_group="g"))["stp_group"] == "g"
    assert (await exchange.get_stp_group(symbol, account="a"))["stp_group"] == "g"
    assert (await exchange.verify_book(symbol))["verified"] is True
    assert (await exchange.library_version())["library"] == "orderbook"
    canceled = await exchange.cancel_order(symbol, account="alice", client_order_id="a")
    assert canceled["status"] == "canceled"
    assert (await exchange.cancel_all_orders(symbol, account="alice"))["canceled_count"] == 0
    quotes = [{"side": "buy", "price": "9", "quantity": "1"}]
    quoted = await exchange.mass_quote(symbol, account="alice", quotes=quotes)
    order_id = quoted["placed"][0]["order_id"]
    replaced = await exchange.replace_order(symbol, **LIMIT, cancel_order_id=order_id)
    assert (replaced["canceled"]["quote"], replaced["placed"]["status"]) == (True, "open")
    closed = await exchange.get_closed_orders(symbol, account="alice", limit=1)
    assert (closed["orders"][0]["reason"], closed["more"]) == ("replaced", True)
    assert (await exchange.get_own_trades(symbol, account="alice"))["trades"] == []


async def test_orders_of_several_books_are_canceled_segment_by_segment(
    exchange: Engine, symbol: str
) -> None:
    symbols = [symbol, *(new_symbol() for _ in range(3))]
    for name, segment in zip(symbols[1:], ("main", "a", "a"), strict=True):
        await exchange.define_instrument(name, segment=segment, **RULES)
    for name in symbols:
        await exchange.place_order(name, **LIMIT)
    reply = await exchange.cancel_all_orders(symbols, account="alice", side="buy")
    assert [book["symbol"] for book in reply["books"]] == symbols
    assert (reply["canceled_count"], reply["remaining_count"]) == (4, 0)


async def test_a_symbol_that_is_not_there_keeps_all_orders_of_a_cancel_where_they_are(
    exchange: Engine, symbol: str
) -> None:
    other = new_symbol()
    await exchange.define_instrument(other, segment="a", **RULES)
    await exchange.place_order(other, **LIMIT)
    refused = await exchange.cancel_all_orders([other, symbol, "NOWHERE"], account="alice")
    assert refused["code"] == "UNKNOWN_SYMBOL"
    assert "NOWHERE" in refused["message"]
    assert len((await exchange.get_open_orders(other, account="alice"))["orders"]) == 1


async def test_more_books_of_a_segment_than_one_call_takes_keep_all_orders_where_they_are(
    exchange: Engine, symbol: str
) -> None:
    await exchange.place_order(symbol, **LIMIT)
    many = [new_symbol() for _ in range(KEYS_PER_CALL_MAX + 1)]
    for name in many:
        await exchange.define_instrument(name, segment="many", **RULES)
    with pytest.raises(ValueError, match="100 books"):
        await exchange.cancel_all_orders([symbol, *many], account="alice")
    assert len((await exchange.get_open_orders(symbol, account="alice"))["orders"]) == 1


async def test_books_of_a_segment_that_fails_are_told_apart_from_those_done(
    exchange: Engine, symbol: str
) -> None:
    other = new_symbol()
    await exchange.define_instrument(other, segment="b", **RULES)
    for name in (symbol, other):
        await exchange.place_order(name, **LIMIT)
    (client,) = exchange.primaries()
    await client.xadd(f"{exchange.book_key(other)}:events", {"by": "hand"}, id="99-0")
    error = await failure(exchange.cancel_all_orders([symbol, other], account="alice"))
    assert error.code == "OUTCOME_UNKNOWN"
    assert "other segments are done" in str(error)
    assert (await exchange.get_open_orders(symbol, account="alice"))["orders"] == []


async def test_a_refusal_is_a_reply_and_no_exception(exchange: Engine, symbol: str) -> None:
    reply = await exchange.place_order(symbol, **(LIMIT | {"price": "10.001"}))
    assert (reply["status"], reply["code"]) == ("rejected", "PRICE_OFF_TICK")
    assert (await exchange.get_book("NOWHERE"))["code"] == "UNKNOWN_SYMBOL"


async def test_execute_answers_each_command_in_order(exchange: Engine, symbol: str) -> None:
    commands = [place(), place(price="x"), command("nonsense"), place(side="sell")]
    replies = [json.loads(reply) for reply in await exchange.execute(symbol, commands)]
    assert [r.get("code") for r in replies] == [None, "INVALID_NUMBER", "UNKNOWN_METHOD", None]
    assert replies[0]["sequence"] == replies[3]["sequence"]


async def test_a_batch_that_is_refused_as_a_whole_answers_each_command(exchange: Engine) -> None:
    replies = await exchange.execute("NOWHERE", [place(), place()])
    assert [json.loads(reply)["code"] for reply in replies] == ["UNKNOWN_SYMBOL"] * 2


async def test_instruments_are_found_by_every_client(exchange: Engine, valkey: Server) -> None:
    symbol = new_symbol()
    await exchange.define_instrument(symbol, segment="other", **RULES)
    async with connected(valkey.url) as another:
        assert (await another.instruments())[symbol] == "other"
        assert another.book_key(symbol) == f"orderbook:{{other}}:{symbol}"


async def test_a_symbol_has_one_segment(exchange: Engine, symbol: str) -> None:
    reply = await exchange.define_instrument(symbol, segment="other", **RULES)
    assert reply["code"] == "SYMBOL_IN_OTHER_SEGMENT"
    assert exchange.segment(symbol) == "main"


async def test_defining_an_instrument_twice_changes_nothing(exchange: Engine, symbol: str) -> None:
    before = await exchange.get_instrument(symbol)
    assert await exchange.define_instrument(symbol, **RULES) == before


# ---- servers in trouble


async def test_no_server_means_unavailable() -> None:
    error = await failure(Engine.connect(f"redis://127.0.0.1:{free_port()}"))
    assert error.code == "UNAVAILABLE"


@pytest.mark.parametrize("url", ["", "http://127.0.0.1", "redis+sentinel://127.0.0.1"])
async def test_what_is_no_address_is_a_value_error(url: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        await Engine.connect(url)


@needs_redis7
async def test_a_unix_socket_is_an_address_like_others(tmp_path: Path) -> None:
    path = tmp_path / "server.sock"
    error = await failure(Engine.connect(f"unix://{path}"))
    assert error.code == "UNAVAILABLE"
    with running("redis7", {"unixsocket": str(path)}) as server:
        load_library(server.client, "redis7")
        async with connected(f"unix://{path}") as engine:
            await engine.define_instrument("X", **RULES)
            assert (await engine.place_order("X", **LIMIT))["status"] == "open"


async def test_a_server_that_is_no_cluster_is_unavailable(valkey: Server) -> None:
    for port in (valkey.port, free_port()):
        error = await failure(Engine.connect(f"redis+cluster://127.0.0.1:{port}"))
        assert error.code == "UNAVAILABLE"


async def test_a_server_that_went_away_is_unavailable() -> None:
    async with own_server() as (server, engine):
        server.process.stop()
        await _until_noticed(engine)
        error = await failure(engine.place_order("X", **LIMIT))
        assert error.code == "UNAVAILABLE"


async def test_a_lost_reply_is_outcome_unknown_and_the_command_is_not_sent_again(
    exchange: Engine, symbol: str, valkey: Server
) -> None:
    async with Proxy(valkey.port) as proxy, connected(proxy.url) as distant:
        await distant.get_book(symbol)
        proxy.loses_replies = True
        error = await failure(distant.place_order(symbol, **LIMIT))
        assert error.code == "OUTCOME_UNKNOWN"
        proxy.loses_replies = False
        assert (await distant.get_instrument(symbol))["open_orders"] == 1
    assert (await exchange.get_open_orders(symbol, account="alice"))["more"] is False


async def test_a_command_that_was_not_sent_is_unavailable(
    exchange: Engine, symbol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wire_of_node = Node.wire

    async def wire_that_ends(node: Node) -> Wire:
        wire = await wire_of_node(node)
        wire.close()
        return wire

    monkeypatch.setattr(Node, "wire", wire_that_ends)
    assert (await failure(exchange.place_order(symbol, **LIMIT))).code == "UNAVAILABLE"
    monkeypatch.undo()
    assert (await exchange.get_open_orders(symbol, account="alice"))["orders"] == []


async def test_a_lost_reply_of_a_query_is_unavailable(symbol: str, valkey: Server) -> None:
    async with Proxy(valkey.port) as proxy, connected(proxy.url) as distant:
        proxy.loses_replies = True
        assert (await failure(distant.get_book(symbol))).code == "UNAVAILABLE"


async def test_when_memory_is_full_cancels_of_a_batch_still_run() -> None:
    async with own_server() as (server, engine):
        await engine.execute("X", [place(), place(quantity="3"), place()])
        server.client.config_set("maxmemory", 1)
        batch = [
            place(),
            command("cancel_order", account="alice", order_id="1"),
            command("amend_order", account="alice", order_id="2", quantity="9"),
            command("amend_order", account="alice", order_id="2", quantity="1"),
            command("mass_quote", account="alice", quotes="[]"),
            command("cancel_all_after", account="alice", timeout_ms="60000"),
            command("cancel_all_orders", account="alice"),
        ]
        replies = [json.loads(reply) for reply in await engine.execute("X", batch)]
        codes = [reply.get("code") for reply in replies]
        assert codes == ["OUT_OF_MEMORY", None, "OUT_OF_MEMORY", None, None, None, None]
        assert replies[6]["canceled_order_ids"] == ["2", "3"]
        assert (await failure(engine.place_order("X", **LIMIT))).code == "OUT_OF_MEMORY"
        server.client.config_set("maxmemory", 0)
        assert (await engine.place_order("X", **LIMIT))["status"] == "open"


async def test_a_flushed_library_is_loaded_again() -> None:
    async with own_server() as (server, engine):
        server.client.function_flush()
        assert (await engine.place_order("X", **LIMIT))["status"] == "open"
        server.client.function_flush()
        assert (await engine.get_book("X"))["bids"] == [["10", "1"]]


async def test_a_newer_library_that_lacks_a_function_is_left_alone() -> None:
    newer = (
        "#!lua name=orderbook\n"
        "redis.register_function{function_name='library_version', flags={'no-writes'}, "
        "callback=function() return "
        '\'{"library":"orderbook","version":"99.0.0","digest":"x"}\' end}'
    )
    async with own_server() as (server, engine):
        server.client.function_load(newer, replace=True)
        error = await failure(engine.place_order("X", **LIMIT))
        assert error.code == "UNAVAILABLE"
        assert "99.0.0" in str(error)


async def test_a_server_that_became_a_replica_is_unavailable_until_it_is_not() -> None:
    async with own_server() as (server, engine):
        server.client.replicaof("127.0.0.1", free_port())
        assert (await failure(engine.place_order("X", **LIMIT))).code == "UNAVAILABLE"
        server.client.replicaof("NO", "ONE")
        assert (await engine.place_order("X", **LIMIT))["status"] == "open"


async def test_a_damaged_book_is_unavailable_with_the_reason() -> None:
    async with own_server() as (server, engine):
        server.client.xadd("orderbook:{main}:X:events", {"trades": "x"}, id="99-0")
        error = await failure(engine.place_order("X", **LIMIT))
        assert error.code == "UNAVAILABLE"
        assert "verify_book" in str(error)


async def test_a_user_without_a_right_is_told_so_in_our_words() -> None:
    async with own_server() as (server, _):
        rights = ["+@all", "-zadd"]
        server.client.acl_setuser(
            "clerk", enabled=True, nopass=True, commands=rights, keys=["*"], channels=["*"]
        )
        async with connected(server.url.replace("redis://", "redis://clerk:any@")) as engine:
            error = await failure(engine.place_order("X", **LIMIT))
            assert error.code == "UNAVAILABLE"
            assert error.message == "the server does not grant the rights that are needed"
            assert "ZADD" in str(error)
            assert (await engine.get_book("X"))["bids"] == []


# ---- epochs


async def test_a_restarted_server_gets_a_new_epoch_before_the_next_command() -> None:
    async with own_server({"appendonly": "yes", "appendfsync": "always"}) as (server, engine):
        await engine.begin_epochs()
        before = await engine.get_instrument("X")
        _restart(server)
        reply = await _until_available(engine)
        after = await engine.get_instrument("X")
        assert after["epoch"] > before["epoch"]
        # First the epoch, then the order.
        assert reply["sequence"] == before["sequence"] + 2


async def test_clients_that_only_look_begin_no_epoch(exchange: Engine, symbol: str) -> None:
    before = await exchange.get_instrument(symbol)
    await exchange.get_book(symbol)
    await exchange.place_order(symbol, **LIMIT)
    assert (await exchange.get_instrument(symbol))["epoch"] == before["epoch"]


async def test_a_damaged_book_keeps_no_other_from_its_epoch() -> None:
    async with own_server() as (server, engine):
        before = {}
        for symbol in ("A", "X", "Z"):
            before[symbol] = (await engine.define_instrument(symbol, **RULES))["epoch"]
            overwrite(server.client, f"orderbook:{{main}}:{symbol}", run_id="another")
        server.client.xadd("orderbook:{main}:X:events", {"trades": "x"}, id="99-0")
        assert (await engine.begin_epochs()).keys() == {"A", "X", "Z"}
        assert (await engine.get_instrument("A"))["epoch"] > before["A"]
        assert (await engine.get_instrument("X"))["epoch"] == before["X"]
        assert (await engine.get_instrument("Z"))["epoch"] > before["Z"]


async def test_reporting_the_same_server_again_changes_nothing(
    exchange: Engine, symbol: str
) -> None:
    await exchange.begin_epochs()
    before = await exchange.get_instrument(symbol)
    await exchange.begin_epochs()
    await exchange.begin_epoch(symbol)
    assert await exchange.get_instrument(symbol) == before


def _restart(server: Server) -> None:
    """The same data on the same port in a new process."""
    server.process.stop()
    binary = BINARIES[server.engine]()
    options = f"--bind 127.0.0.1 --port {server.port} --dir {server.directory} --appendonly yes"
    with (server.directory / "log").open("ab") as log:
        surroundings = Surroundings(stdout=log, directory=server.directory)
        server.process = ChildProcess([str(binary), *options.split()], surroundings)


async def _until_noticed(engine: Engine) -> None:
    """A command may still go out to a server that has just died; the next one will not."""
    with contextlib.suppress(EngineError):
        await engine.place_order("X", **LIMIT)


async def _until_available(exchange: Engine) -> dict[str, Any]:
    async with asyncio.timeout(20):
        while True:
            try:
                return await exchange.place_order("X", **LIMIT)
            except EngineError:
                await asyncio.sleep(0.02)


# ---- clusters and Sentinel


async def test_segments_of_a_cluster_lie_on_their_own_nodes() -> None:
    with running_cluster("valkey") as servers:
        for server in servers:
            load_library(server.client, "valkey")
        async with connected(f"redis+cluster://127.0.0.1:{servers[0].port}") as engine:
            assert len(engine.primaries()) == 3
            for number in range(6):
                symbol = f"S{number}"
                reply = await engine.define_instrument(symbol, segment=f"s{number}", **RULES)
                assert reply["segment"] == f"s{number}"
                assert (await engine.place_order(symbol, **LIMIT))["status"] == "open"
            holders = [len(server.client.keys("orderbook:{*}:S?")) for server in servers]
            assert sum(holders) == 6
            assert sum(count > 0 for count in holders) > 1
            assert len(await engine.instruments()) == 6
            await engine.begin_epochs()


@contextlib.asynccontextmanager
async def sentinel(primary: Server, directory: Path) -> AsyncIterator[int]:
    """A Sentinel that watches one primary as the service "books"."""
    port = free_port()
    config = directory / "sentinel.conf"
    config.write_text(
        f"port {port}\nbind 127.0.0.1\ndir {directory}\n"
        f"sentinel monitor books 127.0.0.1 {primary.port} 1\n"
        "sentinel down-after-milliseconds books 500\n"
    )
    with (directory / "sentinel.log").open("wb") as log:
        binary = str(BINARIES["redis7"]())
        process = ChildProcess([binary, str(config), "--sentinel"], Surroundings(stdout=log))
    try:
        yield port
    finally:
        process.stop()


@needs_redis7
async def test_a_failover_by_sentinel_is_followed(tmp_path: Path) -> None:
    with running("redis7") as primary, running("redis7") as replica:
        load_library(primary.client, "redis7")
        replica.client.replicaof("127.0.0.1", primary.port)
        async with sentinel(primary, tmp_path) as port:
            watcher = connect(port)
            await eventually(
                lambda: replica.client.info("replication")["master_link_status"] == "up",
                "the replica follows",
            )

            def is_watched() -> bool:
                try:
                    replicas = watcher.execute_command("SENTINEL", "REPLICAS", "books")
                except Exception:  # noqa: BLE001 - it is still starting
                    return False
                return any(b"slave" in state[state.index(b"flags") + 1] for state in replicas)

            await eventually(is_watched, "Sentinel knows the replica")
            async with connected(f"redis+sentinel://127.0.0.1:{port}/books") as engine:
                defined = await engine.define_instrument("X", **RULES)
                await engine.begin_epochs()
                assert (await engine.place_order("X", **LIMIT))["status"] == "open"
                assert primary.client.wait(1, 5000) == 1
                primary.process.stop()
                await eventually(lambda: _role(replica) == "master", "the replica took over")
                # Ids that the old primary may have given out are never given again.
                assert (await _until_available(engine))["order_id"] == "1000000002"
                assert (await engine.get_instrument("X"))["epoch"] > defined["epoch"]
            watcher.close()


@needs_redis7
async def test_a_replica_that_sentinel_names_is_not_asked(tmp_path: Path) -> None:
    """It may be empty: a host that asked it for the instruments would find none."""
    with running("redis7") as primary, running("redis7") as replica:
        load_library(primary.client, "redis7")
        replica.client.replicaof("127.0.0.1", primary.port)
        async with sentinel(replica, tmp_path) as port:
            url = f"redis+sentinel://127.0.0.1:{port}/books"
            with connect(port) as watcher:
                await eventually(lambda: _is_named(watcher, replica), "Sentinel names the replica")
            with pytest.raises(EngineError, match="is a replica") as refused:
                await Engine.connect(url)
            assert refused.value.code == "UNAVAILABLE"
            replica.client.replicaof("NO", "ONE")
            async with connected(url) as engine:
                assert "epoch" in await engine.define_instrument("X", **RULES)


def _is_named(watcher: Any, server: Server) -> bool:
    with contextlib.suppress(RedisError):
        named = watcher.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "books")
        return bool(named is not None and int(named[1]) == server.port)
    return False


def _role(server: Server) -> str:
    """Its role, or nothing while it hangs up on everybody, as a server does that is promoted."""
    try:
        return str(server.client.info("replication")["role"])
    except RedisConnectionError:
        return ""


# ---- the batcher


async def test_what_arrives_while_a_call_is_in_flight_goes_into_the_next(
    exchange: Engine, symbol: str
) -> None:
    batcher = Batcher(exchange, symbol)
    replies: list[dict[str, Any]] = []
    count = 3 * BATCH_LENGTH_MAX
    for _ in range(count):
        batcher.submit(place(), lambda reply: replies.append(json.loads(reply)))
    await batcher.drained()
    assert [reply["order_id"] for reply in replies] == [str(n + 1) for n in range(count)]
    # As large as allowed, but for calls that took too long on a busy machine.
    assert 3 <= len({reply["sequence"] for reply in replies}) <= count // 16


async def test_quotes_of_many_clients_fit_into_calls_that_the_engine_takes(
    exchange: Engine, symbol: str
) -> None:
    batcher = Batcher(exchange, symbol)
    quotes = json.dumps([{"side": "buy", "price": "1", "quantity": "1"}] * 100)
    replies: list[dict[str, Any]] = []
    for number in range(40):
        text = command("mass_quote", account=f"maker{number}", quotes=quotes)
        batcher.submit(text, lambda reply: replies.append(json.loads(reply)))
    await batcher.drained()
    assert [len(reply["placed"]) for reply in replies] == [100] * 40


async def test_a_full_queue_says_so_at_once(exchange: Engine, symbol: str) -> None:
    batcher = Batcher(exchange, symbol, queue_length_max=2)
    replies: list[dict[str, Any]] = []
    for _ in range(3):
        batcher.submit(place(), lambda reply: replies.append(json.loads(reply)))
    assert [reply["code"] for reply in replies] == ["SYSTEM_BUSY"]
    await batcher.drained()
    assert [reply.get("code") for reply in replies] == ["SYSTEM_BUSY", None, None]


async def test_every_command_is_answered_when_the_server_is_away() -> None:
    with running("valkey") as server:
        load_library(server.client, "valkey")
        async with connected(server.url) as engine:
            server.process.stop()
            await _until_noticed(engine)
            batcher = Batcher(engine, "X")
            replies: list[dict[str, Any]] = []
            for _ in range(2 * BATCH_LENGTH_MAX):
                batcher.submit(place(), lambda reply: replies.append(json.loads(reply)))
            await batcher.drained()
            assert [reply["code"] for reply in replies] == ["UNAVAILABLE"] * len(replies)
            assert len(replies) == 2 * BATCH_LENGTH_MAX


async def _orders_beside_refusals(engine: Engine, refused: str) -> None:
    """No order of another book may lose its reply while `refused` cannot be called."""
    symbol = new_symbol()
    await engine.define_instrument(symbol, **RULES)
    batcher = Batcher(engine, symbol)
    replies: list[bytes] = []

    async def call_what_is_refused() -> None:
        while len(replies) < 6_000:
            refusal = await failure(engine.place_order(refused, **LIMIT))
            assert refusal.code == "UNAVAILABLE"
            await asyncio.sleep(0.001)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(4):
            tasks.create_task(call_what_is_refused())
        # Few enough that the new connections do not use up the ports of the machine.
        for _ in range(3_000):
            batcher.submit(place(), replies.append)
            batcher.submit(place(), replies.append)
            await asyncio.sleep(0)
        await batcher.drained()
    assert {json.loads(reply)["status"] for reply in replies} == {"open"}


async def test_a_damaged_book_costs_other_books_no_reply() -> None:
    async with own_server() as (server, engine):
        server.client.xadd("orderbook:{main}:X:events", {"trades": "x"}, id="99-0")
        await _orders_beside_refusals(engine, "X")


async def test_a_forbidden_book_costs_other_books_no_reply() -> None:
    """This refusal makes the client connect anew, for its rights may have changed."""
    async with own_server() as (server, _):
        server.client.acl_setuser(
            "clerk",
            enabled=True,
            nopass=True,
            commands=["+@all"],
            keys=["orderbook:{main}:H*", "orderbook:instruments"],
        )
        async with connected(server.url.replace("redis://", "redis://clerk:any@")) as engine:
            await _orders_beside_refusals(engine, "X")


async def test_a_failing_callback_costs_the_others_nothing(exchange: Engine, symbol: str) -> None:
    batcher = Batcher(exchange, symbol)
    replies: list[bytes] = []

    def fail(_: bytes) -> None:
        raise ValueError("a client's trouble")

    batcher.submit(place(), fail)
    batcher.submit(place(), replies.append)
    await batcher.drained()
    batcher.submit(place(), replies.append)
    await batcher.drained()
    assert len(replies) == 2
