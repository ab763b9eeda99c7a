"""The ACL lines that `orderbook functions acl` prints: enough for each role, and no more."""

import json
from collections.abc import Iterator

import pytest
from click.testing import CliRunner

from clients import connected, eventually
from orderbook.cli import main as cli
from orderbook.engine import library
from orderbook.engine.access import Role, Setting, acl_line, function_commands, rights
from orderbook.engine.engine import Engine
from orderbook.feed.replay import replay
from orderbook.host.host import Host, HostConfig
from orderbook.messages import Durability
from servers import HOST, Server, load_library, running, running_cluster
from test_readiness import becomes_ready

RULES = {"tick_size": "0.01", "lot_size": "1"}
# Granted, and used only while a slot moves.
WHILE_MOVING = {"asking"}


@pytest.fixture
def server(engine: str) -> Iterator[Server]:
    if engine == "fakeredis":
        pytest.skip("fakeredis has no users")
    with running(engine, {"appendonly": "yes", "appendfsync": "always"}) as server:
        yield server


def grant(server: Server, role: Role, setting: Setting) -> str:
    """Makes the user of a role as the command says; its address."""
    server.client.execute_command(*acl_line(role, setting).split())
    return f"redis://orderbook-{role}:PASSWORD@{HOST}:{server.port}"


def used_commands(server: Server) -> set[str]:
    return {name.removeprefix("cmdstat_") for name in server.client.info("commandstats")}


def check_nothing_is_granted_in_vain(servers: list[Server], role: Role, setting: Setting) -> None:
    """Each command was used, or is one of those that the functions run."""
    used = set().union(*map(used_commands, servers))
    in_functions = function_commands("reads", "writes", "keyless")
    _, granted = rights(role, setting)
    assert granted - used - in_functions - WHILE_MOVING == set()


async def trade(host: Host) -> None:
    """What hosts do for clients, and by themselves."""
    await becomes_ready(host)
    async with connected(host.port) as client, connected(host.port, "bob") as other:
        for channel in ("trades", "level2", "level3", "orders", "book", "ticker"):
            await client.subscribe(channel, "X")
        await client.ask("cancel_on_disconnect", timeout_ms=1000)
        await client.limit("X", "sell", "5", "10", client_order_id="a")
        await other.limit("X", "buy", "2", "10")
        await client.ask("amend_order", symbol="X", client_order_id="a", quantity="4")
        await client.wait_for("trades", 2)
        await client.wait_for("level3", 3)
        sequence = client.of("trades")[0]["sequence"]
        epoch = client.of("trades")[0]["epoch"]
        await client.subscribe("trades", "X", after=sequence - 1, epoch=epoch)
    assert await host.engine.define_instrument("Y", **RULES)
    await eventually(lambda: "Y" in host.feed.books_in_order(), "the new book is read")
    await eventually(lambda: not host.feed.troubled_books(), "all is well")


async def test_a_loader_may_load_the_library_and_nothing_else(server: Server) -> None:
    url = grant(server, Role.LOADER, Setting())
    server.client.config_resetstat()
    engine = await Engine.connect(url)
    assert [report.action for report in await library.load(engine)] == ["loaded"]
    assert [report.action for report in await library.load(engine)] == ["kept"]
    await engine.close()
    check_nothing_is_granted_in_vain([server], Role.LOADER, Setting())


def durabilities(server: Server) -> list[Durability]:
    # Redis 7.0 has no WAITAOF, nor a right to it.
    if server.engine == "redis7":
        return [Durability.MEMORY, Durability.REPLICA]
    return [Durability.MEMORY, Durability.FSYNC]


async def test_a_host_may_do_all_that_hosts_do(server: Server) -> None:
    load_library(server.client, server.engine)
    for durability in durabilities(server):
        setting = Setting(durability=durability)
        url = grant(server, Role.HOST, setting)
        server.client.config_resetstat()
        async with Host(HostConfig(url, port=0, durability=durability)) as host:
            await host.engine.define_instrument("X", **RULES)
            host.engine.durability = durability
            reply = await host.engine.place_order(
                "X", account="zoe", side="buy", order_type="limit", price="1", quantity="1"
            )
            assert reply["status"] == "open"
            if durability is Durability.FSYNC:
                assert reply["durability"] == "fsync"
            if durability is Durability.MEMORY:
                await trade(host)
        if durability is Durability.MEMORY:
            check_nothing_is_granted_in_vain([server], Role.HOST, setting)
        else:
            _, granted = rights(Role.HOST, setting)
            _, without = rights(Role.HOST, Setting())
            soundness = {"config|get", "time"}
            assert granted - without - used_commands(server) - soundness == set()


async def test_a_reader_may_read_streams_and_look(server: Server) -> None:
    load_library(server.client, server.engine)
    url = grant(server, Role.READER, Setting())
    async with Host(HostConfig(server.url, port=0, read_url=url)) as host:
        await host.engine.define_instrument("X", **RULES)
        await trade(host)
    server.client.config_resetstat()
    engine = await Engine.connect(url)
    assert (await engine.verify_book("X"))["verified"] is True
    assert (await replay(engine, "X")).is_equal is True
    for function in ("get_book", "get_level3", "get_trades", "get_ticker", "get_instrument"):
        assert (await getattr(engine, function)("X"))["symbol"] == "X"
    for function in ("get_open_orders", "get_closed_orders", "get_own_trades"):
        assert (await getattr(engine, function)("X", account="alice"))["symbol"] == "X"
    with pytest.raises(Exception, match="rights"):
        await engine.tick("X")
    await engine.close()


async def test_the_roles_are_enough_on_a_cluster() -> None:
    setting = Setting(is_cluster=True)
    with running_cluster("valkey") as servers:
        for role in Role:
            for server in servers:
                grant(server, role, setting)
                server.client.config_resetstat()
            url = f"redis+cluster://orderbook-{role}:PASSWORD@{HOST}:{servers[0].port}"
            if role is Role.LOADER:
                engine = await Engine.connect(url)
                await library.load(engine)
                await engine.close()
                check_nothing_is_granted_in_vain(servers, role, setting)
            elif role is Role.HOST:
                async with Host(HostConfig(url, port=0)) as host:
                    await host.engine.define_instrument("X", **RULES)
                    await trade(host)
                check_nothing_is_granted_in_vain(servers, role, setting)
            else:
                engine = await Engine.connect(url)
                assert (await replay(engine, "X")).is_equal is True
                await engine.close()


def test_the_command_prints_what_was_tried() -> None:
    printed = CliRunner().invoke(cli.cli, ["functions", "acl"])
    assert printed.stdout.splitlines() == [acl_line(role, Setting()) for role in Role]
    arguments = ["functions", "acl", "--role", "host", "--cluster", "--durability", "fsync"]
    printed = CliRunner().invoke(cli.cli, [*arguments, "--json"])
    setting = Setting(is_cluster=True, durability=Durability.FSYNC)
    assert json.loads(printed.stdout) == {"host": acl_line(Role.HOST, setting)}
