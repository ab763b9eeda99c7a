"""The command line against a real server: what it prints, what it returns, how it fails."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from redis import Redis

from orderbook.cli import main as cli
from orderbook.cli import shared
from orderbook.demo.market import MARKETS
from orderbook.engine.library import bundle
from orderbook.processes.embedded_server import EmbeddedServer
from processes import DEADLINE_S, children, is_alive, read_terminal, wait_until
from servers import free_port

UNREACHABLE = "redis://127.0.0.1:1"
SYMBOL = "BTC-USDT"
# Far in the future.
LATER_MS = "4000000000000"


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedServer]:
    with EmbeddedServer() as running:
        yield running


@pytest.fixture
def redis(server: EmbeddedServer) -> Iterator[Redis]:
    with Redis.from_url(server.url) as client:
        client.flushall()
        client.function_flush("SYNC")
        yield client


@pytest.fixture
def orderbook(server: EmbeddedServer, redis: Redis) -> "Orderbook":  # noqa: ARG001
    return Orderbook(server.url)


class Orderbook:
    """Runs commands in this process against one server."""

    def __init__(self, redis_url: str) -> None:
        self._environment = {"ORDERBOOK_REDIS_URL": redis_url}

    def __call__(self, *arguments: str, **environment: str) -> Result:
        return CliRunner().invoke(
            cli.cli, arguments, env={**self._environment, **environment}, catch_exceptions=False
        )

    def json(self, *arguments: str) -> Any:
        result = self(*arguments, "--json")
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)


def environment_with(redis_url: str) -> dict[str, str]:
    return {**os.environ, "ORDERBOOK_REDIS_URL": redis_url}


def place(side: str, price: str, quantity: str) -> tuple[str, ...]:
    terms = ("--side", side, "--price", price, "--quantity", quantity)
    return ("order", "place", SYMBOL, "--account", "alice", *terms)


def define(orderbook: Orderbook, *options: str) -> None:
    rules = ("--tick-size", "0.01", "--lot-size", "0.001")
    orderbook.json("instrument", "define", SYMBOL, *rules, *options)


# Help and usage


def test_help_of_every_command_names_its_environment_variables() -> None:
    def walk(command: Any, path: tuple[str, ...]) -> Iterator[tuple[Any, tuple[str, ...]]]:
        for name, child in getattr(command, "commands", {}).items():
            yield from walk(child, (*path, name))
        if not getattr(command, "commands", {}):
            yield command, path

    commands = list(walk(cli.cli, ()))
    assert len(commands) == 32
    for command, path in commands:
        # Wide enough for the longest name; in a narrow terminal it is folded.
        result = CliRunner().invoke(
            cli.cli, [*path, "--help"], auto_envvar_prefix="ORDERBOOK", terminal_width=100
        )
        assert result.exit_code == 0, result.output
        text = " ".join(result.output.split())
        for parameter in command.params:
            if parameter.param_type_name == "option" and not parameter.hidden:
                derived = "_".join(["ORDERBOOK", *path, parameter.name]).upper().replace("-", "_")
                named = parameter.envvar or derived
                assert named in text, f"{' '.join(path)}: {named} is not in its help"


def test_help_lists_every_exit_code() -> None:
    text = CliRunner().invoke(cli.cli, ["--help"]).output
    codes = {value for name, value in vars(cli).items() if name.startswith("EXIT_")}
    for code in codes - {shared.EXIT_INTERRUPTED}:
        assert re.search(rf"^  +{code}  \S", text, re.MULTILINE), f"exit code {code}"


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys\n"
        "from orderbook.cli.main import cli\n"
        "cli.main(['--help'], standalone_mode=False)\n"
        "print(*sorted({'aiohttp', 'redis', 'rich', 'msgspec'} & sys.modules.keys()))"
    )
    output = subprocess.check_output([sys.executable, "-c", script], text=True)
    assert output.splitlines()[-1] == ""


def test_unknown_option_is_wrong_usage(orderbook: Orderbook) -> None:
    assert orderbook("book", SYMBOL, "--dept", "3").exit_code == shared.EXIT_USAGE


def test_url_of_no_known_kind_is_wrong_usage() -> None:
    result = CliRunner().invoke(cli.cli, ["verify", "--redis-url", "http://127.0.0.1"])
    assert result.exit_code == shared.EXIT_USAGE


def test_embedded_server_options_are_refused_beside_a_redis_url(tmp_path: Path) -> None:
    arguments = ["serve", "--redis-url", UNREACHABLE, "--data-dir", str(tmp_path)]
    assert CliRunner().invoke(cli.cli, arguments).exit_code == shared.EXIT_USAGE


# Failures of the server


@pytest.mark.parametrize(
    "arguments",
    [
        ("functions", "load"),
        ("functions", "check"),
        ("instrument", "list"),
        ("seed",),
        place("buy", "1", "1"),
        ("tick",),
        ("book", SYMBOL),
        ("book", SYMBOL, "--watch"),
        ("trades", SYMBOL),
        ("verify",),
    ],
    ids=" ".join,
)
def test_unreachable_redis_has_its_own_exit_code(arguments: tuple[str, ...]) -> None:
    result = CliRunner().invoke(cli.cli, [*arguments, "--redis-url", UNREACHABLE])
    assert result.exit_code == shared.EXIT_UNREACHABLE, result.output
    assert "127.0.0.1:1" in result.stderr
    assert not result.stdout


def test_password_is_not_shown_in_errors() -> None:
    url = "redis://user:secret@127.0.0.1:1"
    result = CliRunner().invoke(cli.cli, ["verify", "--redis-url", url])
    assert result.exit_code == shared.EXIT_UNREACHABLE
    assert "secret" not in result.output


def test_full_memory_has_its_own_exit_code(orderbook: Orderbook, redis: Redis) -> None:
    define(orderbook)
    orderbook.json(*place("buy", "1", "1"))
    redis.config_set("maxmemory", "1")
    try:
        assert orderbook(*place("buy", "1", "1")).exit_code == shared.EXIT_SERVER
        canceled = orderbook.json("order", "cancel-all", SYMBOL, "--account", "alice")
        assert canceled["canceled_count"] == 1
    finally:
        redis.config_set("maxmemory", "0")


# The library


def test_every_process_makes_the_same_library() -> None:
    command = "from orderbook.engine.library import bundle; print(bundle().digest)"
    digests = {
        subprocess.run(
            [sys.executable, "-c", command],
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=True,
        ).stdout
        for seed in range(6)
    }
    assert len(digests) == 1


def test_check_fails_until_the_library_is_loaded(orderbook: Orderbook) -> None:
    before = orderbook("functions", "check", "--json")
    assert before.exit_code == shared.EXIT_LIBRARY
    assert json.loads(before.stdout)[0]["found_version"] is None
    assert orderbook.json("functions", "load")[0]["action"] == "loaded"
    assert orderbook.json("functions", "load")[0]["action"] == "kept"
    assert orderbook.json("functions", "check")[0]["up_to_date"] is True


def test_newer_library_is_never_replaced(orderbook: Orderbook, redis: Redis) -> None:
    newer = bundle().text.replace(f'version = "{bundle().version}"', 'version = "99.0.0"')
    assert newer != bundle().text
    redis.function_load(newer)
    for arguments in (("functions", "load"), ("functions", "check")):
        result = orderbook(*arguments)
        assert result.exit_code == shared.EXIT_LIBRARY, result.output
    installed = json.loads(str(redis.fcall_ro("library_version", 0), "utf-8"))
    assert installed["version"] == "99.0.0"


# Instruments, seeding, orders


def test_instrument_can_be_defined_changed_listed_and_shown(orderbook: Orderbook) -> None:
    define(orderbook)
    changed = orderbook.json("instrument", "define", SYMBOL, "--status", "halted")
    assert (changed["tick_size"], changed["status"]) == ("0.01", "halted")
    assert orderbook.json("instrument", "show", SYMBOL) == changed
    assert orderbook.json("instrument", "list") == [changed]
    assert "halted" in orderbook("instrument", "list").stdout


def test_seeding_fills_all_books_and_repeating_it_changes_nothing(orderbook: Orderbook) -> None:
    first = orderbook.json("seed")
    assert [row["symbol"] for row in first] == [market.symbol for market in MARKETS]
    assert all(row["orders_open"] >= 50 and not row["rejects"] for row in first)
    hashes = [row["state_hash"] for row in orderbook.json("verify")]
    second = orderbook.json("seed")
    assert second == first
    assert [row["state_hash"] for row in orderbook.json("verify")] == hashes


def test_seeding_one_book_leaves_the_others_undefined(orderbook: Orderbook) -> None:
    orderbook.json("seed", "ETH-USDT", "--levels", "3")
    assert [row["symbol"] for row in orderbook.json("instrument", "list")] == ["ETH-USDT"]
    assert orderbook("seed", "DOGE-USDT").exit_code == shared.EXIT_USAGE


def test_rules_of_a_book_are_changed_in_whichever_segment_it_is(orderbook: Orderbook) -> None:
    define(orderbook, "--segment", "east")
    halted = orderbook.json("instrument", "define", SYMBOL, "--status", "halted")
    assert (halted["segment"], halted["status"]) == ("east", "halted")
    moved = orderbook("instrument", "define", SYMBOL, "--segment", "west")
    assert moved.exit_code == shared.EXIT_REJECTED
    assert "east" in moved.stderr


def test_open_orders_are_listed_and_shown(orderbook: Orderbook) -> None:
    define(orderbook)
    placed = [orderbook.json(*place("buy", price, "1")) for price in ("1", "2")]
    listed = orderbook.json("order", "open", SYMBOL, "--account", "alice")["orders"]
    assert [one["order_id"] for one in listed] == [one["order_id"] for one in placed]
    assert orderbook("order", "open", SYMBOL, "--account", "alice").stdout.count("\n") >= 2
    shown = orderbook.json("order", "show", SYMBOL, "--order-id", placed[1]["order_id"])
    assert shown["price"] == "2"
    missing = orderbook("order", "show", SYMBOL, "--order-id", "99")
    assert missing.exit_code == shared.EXIT_REJECTED


def test_order_goes_from_placed_over_amended_to_canceled(orderbook: Orderbook) -> None:
    define(orderbook)
    placed = orderbook.json(*place("buy", "100.25", "3"), "--client-order-id", "a1")
    assert (placed["status"], placed["client_order_id"]) == ("open", "a1")
    amended = orderbook.json("order", "amend", SYMBOL, "--order-id", "1", "--quantity", "2")
    assert amended["remaining_quantity"] == "2"
    by_name = ("--account", "alice", "--client-order-id", "a1")
    assert orderbook.json("order", "cancel", SYMBOL, *by_name)["status"] == "canceled"


def test_trade_is_listed_and_the_book_shows_the_rest(orderbook: Orderbook) -> None:
    define(orderbook)
    orderbook.json(*place("sell", "100.5", "3"))
    market = ("--order-type", "market", "--side", "buy", "--quantity", "1")
    taken = orderbook.json("order", "place", SYMBOL, "--account", "bob", *market)
    assert taken["status"] == "filled"
    assert orderbook.json("trades", SYMBOL)["trades"][0]["price"] == "100.5"
    assert orderbook.json("book", SYMBOL)["asks"] == [["100.5", "2"]]
    assert "100.5" in orderbook("trades", SYMBOL).stdout


def test_piped_book_is_plain_text(orderbook: Orderbook) -> None:
    define(orderbook)
    orderbook.json(*place("sell", "100.5", "3"))
    orderbook.json(*place("buy", "100", "2"))
    assert orderbook("book", SYMBOL).stdout == f"{SYMBOL} sequence 3\nsell 100.5 3\nbuy 100 2\n"


def test_post_only_and_time_in_force_reach_the_engine(orderbook: Orderbook) -> None:
    define(orderbook)
    orderbook.json(*place("sell", "100", "1"))
    crossing = orderbook(*place("buy", "100", "1"), "--post-only", "--json")
    assert crossing.exit_code == shared.EXIT_REJECTED
    assert json.loads(crossing.stdout)["code"] == "POST_ONLY_WOULD_CROSS"
    ioc = orderbook.json(*place("buy", "99", "1"), "--time-in-force", "ioc")
    assert ioc["status"] == "canceled"


def test_every_option_of_an_order_reaches_the_engine(orderbook: Orderbook) -> None:
    define(orderbook)
    orderbook.json("set-stp-group", SYMBOL, "--account", "alice", "--stp-group", "desk")
    account = ("order", "place", SYMBOL, "--account", "alice", "--side", "buy")
    common = ("--self-trade-prevention", "decrement", "--stp-group", "desk")
    iceberg = orderbook.json(
        *place("buy", "100", "9"),
        *("--display-quantity", "2", "--time-in-force", "gtd", "--expire-time-ms", LATER_MS),
        *("--valid-until-ms", LATER_MS, *common),
    )
    assert iceberg["display_quantity"] == "2"
    assert (iceberg["time_in_force"], iceberg["expire_time_ms"]) == ("gtd", int(LATER_MS))
    assert (iceberg["self_trade_prevention"], iceberg["stp_group"]) == ("decrement", "desk")
    money = ("--order-type", "market", "--quote-quantity", "500", "--protection", "2.5")
    bought = orderbook.json(*account, *money)
    assert (bought["quote_quantity"], bought["protection"]) == ("500", "2.5")
    valid = orderbook.json(*place("sell", "100", "4"), "--validate-only")
    assert (valid["status"], valid["fill_quantity"]) == ("valid", "2")
    assert orderbook.json("book", SYMBOL)["bids"] == [["100", "2"]]


def test_an_order_list_is_placed_from_its_json(orderbook: Orderbook) -> None:
    define(orderbook)
    oco = [
        {"side": "sell", "order_type": "limit", "price": "105", "quantity": "2"},
        {"side": "sell", "order_type": "stop", "stop_price": "95", "quantity": "2"},
    ]
    listed = ("order", "place-list", SYMBOL, "--account", "alice", "--list-type", "oco")
    placed = orderbook.json(*listed, json.dumps(oco))
    assert [order["order_list_id"] for order in placed["orders"]] == [placed["order_list_id"]] * 2
    assert "INVALID_ORDER_LIST" in orderbook(*listed, "[]", "--json").output


def test_orders_that_wait_for_a_price_are_placed_and_amended(orderbook: Orderbook) -> None:
    define(orderbook)
    orderbook.json(*place("sell", "100", "1"))
    orderbook.json(*place("buy", "100", "1"))
    stop = orderbook.json(
        *place("sell", "94", "1"), "--order-type", "stop_limit", "--stop-price", "95"
    )
    assert (stop["stop_price"], stop["price"], stop["status"]) == ("95", "94", "open")
    named = ("--order-id", stop["order_id"], "--valid-until-ms", LATER_MS)
    moved = orderbook.json("order", "amend", SYMBOL, *named, "--stop-price", "96")
    assert moved["stop_price"] == "96"
    trailing = ("--side", "sell", "--quantity", "1", "--order-type", "trailing_stop")
    account = ("order", "place", SYMBOL, "--account", "alice")
    placed = orderbook.json(*account, *trailing, "--trailing-offset", "2.5%")
    assert placed["trailing_offset"] == "2.5%"
    assert orderbook.json("order", "cancel", SYMBOL, *named)["status"] == "canceled"


def test_commands_that_come_too_late_are_rejected(orderbook: Orderbook) -> None:
    define(orderbook)
    orderbook.json(*place("buy", "1", "1"))
    late = ("--valid-until-ms", "1", "--json")
    for arguments in (
        place("buy", "1", "1"),
        ("order", "amend", SYMBOL, "--order-id", "1", "--price", "2"),
        ("order", "cancel", SYMBOL, "--order-id", "1"),
        ("order", "cancel-all", SYMBOL, "--account", "alice"),
    ):
        result = orderbook(*arguments, *late)
        assert result.exit_code == shared.EXIT_REJECTED
        assert json.loads(result.stdout)["code"] == "TOO_LATE"


def test_an_order_without_any_quantity_is_wrong_usage(orderbook: Orderbook) -> None:
    arguments = ("order", "place", SYMBOL, "--account", "a", "--side", "buy", "--price", "1")
    result = orderbook(*arguments)
    assert result.exit_code == shared.EXIT_USAGE
    assert "--quote-quantity" in result.stderr


def test_rules_of_an_instrument_are_set_and_shown(orderbook: Orderbook) -> None:
    define(orderbook)
    rules = {
        "self_trade_prevention": "cancel_both",
        "protection": "5",
        "price_band": "12.5",
        "min_notional": "10",
        "limit_percent": "5",
        "breaker_status": "auction",
        "open_orders_max": "7",
        "iceberg_parts_max": "50",
    }
    options = [word for name, text in rules.items() for word in (_option(name), text)]
    changed = orderbook.json("instrument", "define", SYMBOL, *options)
    counts = {name: int(rules.pop(name)) for name in ("open_orders_max", "iceberg_parts_max")}
    assert {name: changed.get(name) for name in rules} == rules
    assert {name: changed.get(name) for name in counts} == counts


def test_ticker_and_candles_are_shown(orderbook: Orderbook) -> None:
    define(orderbook)
    orderbook.json(*place("sell", "100", "1"))
    orderbook.json(*place("buy", "100", "1"))
    assert orderbook.json("ticker", SYMBOL)["volume_24h"] == "1"
    (candle,) = orderbook.json("candles", SYMBOL, "--interval", "1h")["candles"]
    assert (candle["open"], candle["trades"]) == ("100", 1)
    assert "100" in orderbook("candles", SYMBOL).output


def test_an_auction_is_shown(orderbook: Orderbook) -> None:
    define(orderbook)
    assert "NO_AUCTION" in orderbook("auction", SYMBOL, "--json").output
    orderbook.json("instrument", "define", SYMBOL, "--status", "auction")
    orderbook.json(*place("sell", "100", "1"))
    orderbook.json(*place("buy", "101", "2"))
    shown = orderbook.json("auction", SYMBOL)
    assert (shown["indicative_price"], shown["indicative_quantity"]) == ("101", "1")
    orderbook.json("instrument", "define", SYMBOL, "--status", "trading")
    assert "auction" in orderbook("trades", SYMBOL).stdout


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def test_tick_does_what_is_due_in_every_book(orderbook: Orderbook) -> None:
    define(orderbook)
    soon_ms = str(time.time_ns() // 1_000_000 + 200)
    gtd = ("--time-in-force", "gtd", "--expire-time-ms", soon_ms)
    orderbook.json(*place("buy", "1", "1"), *gtd)
    wait_until(lambda: orderbook.json("tick")[0]["expired_count"] == 1, "the order has expired")
    (row,) = orderbook.json("tick", SYMBOL)
    assert (row["symbol"], row["expired_count"], row["pending"]) == (SYMBOL, 0, False)
    assert "expired_count" in orderbook("tick").stdout
    assert orderbook("tick", "NONE").exit_code == shared.EXIT_REJECTED


def test_timers_are_set_and_stopped(orderbook: Orderbook) -> None:
    define(orderbook)
    timer = ("order", "cancel-all-after", SYMBOL, "--account", "alice")
    assert "cancel_time_ms" in orderbook.json(*timer, "--timeout-ms", "60000")
    assert "cancel_time_ms" not in orderbook.json(*timer, "--timeout-ms", "0")
    session = ("--session", "s1")
    assert orderbook.json(*timer, "--timeout-ms", "1000", *session)["session"] == "s1"
    assert orderbook.json(*place("buy", "1", "1"), *session)["session"] == "s1"
    orderbook.json(*place("buy", "1", "1"))
    wait_until(lambda: orderbook.json("tick")[0]["canceled_count"] == 1, "the timer has run out")
    assert orderbook(*timer, "--timeout-ms", "1").exit_code == shared.EXIT_REJECTED
    cancel_all = ("order", "cancel-all", SYMBOL, "--account", "alice")
    assert orderbook.json(*cancel_all, *session)["canceled_count"] == 0
    assert orderbook.json(*cancel_all)["canceled_count"] == 1


def test_rejected_command_says_why_and_returns_one(orderbook: Orderbook) -> None:
    define(orderbook)
    result = orderbook(*place("buy", "100.001", "1"))
    assert result.exit_code == shared.EXIT_REJECTED
    assert "PRICE_OFF_TICK" in result.stderr
    assert not result.stdout
    for arguments in (("book", "NONE"), ("trades", "NONE"), ("verify", "NONE")):
        assert orderbook(*arguments).exit_code == shared.EXIT_REJECTED


def test_cancel_all_cancels_more_orders_than_one_call_may(
    orderbook: Orderbook, redis: Redis
) -> None:
    define(orderbook)
    command = {"method": "place_order", "account": "alice", "side": "buy", "order_type": "limit"}
    text = json.dumps({**command, "price": "1", "quantity": "1"})
    for _ in range(5):
        redis.fcall("execute", 1, f"orderbook:{{main}}:{SYMBOL}", *[text] * 250)
    reply = orderbook.json("order", "cancel-all", SYMBOL, "--account", "alice")
    assert reply["canceled_count"] == len(set(reply["canceled_order_ids"])) == 1250
    assert reply["remaining_count"] == 0


def test_cancel_all_of_several_books_goes_on_until_all_is_done(
    orderbook: Orderbook, redis: Redis
) -> None:
    define(orderbook)
    orderbook("instrument", "define", "OTHER", "--tick-size", "1", "--lot-size", "1")
    command = {"method": "place_order", "account": "alice", "side": "buy", "order_type": "limit"}
    text = json.dumps({**command, "price": "1", "quantity": "1"})
    for symbol in (SYMBOL, "OTHER"):
        for _ in range(3):
            redis.fcall("execute", 1, f"orderbook:{{main}}:{symbol}", *[text] * 200)
    arguments = ("order", "cancel-all", SYMBOL, "OTHER", "--account", "alice", "--side", "buy")
    reply = orderbook.json(*arguments)
    assert (reply["canceled_count"], reply["remaining_count"]) == (1200, 0)
    assert [len(set(book["canceled_order_ids"])) for book in reply["books"]] == [600, 600]
    assert orderbook(*arguments).exit_code == 0


def test_orders_are_replaced_and_quoted_and_looked_back_at(orderbook: Orderbook) -> None:
    define(orderbook)
    orderbook(*place("buy", "100", "1"))
    terms = ("--side", "buy", "--price", "101", "--quantity", "2", "--account", "alice")
    arguments = ("order", "replace", SYMBOL, *terms, "--cancel-order-id", "1")
    replaced = orderbook.json(*arguments, "--on-failure", "stop", "--display-quantity", "1")
    assert (replaced["canceled"]["order_id"], replaced["placed"]["order_id"]) == ("1", "2")
    assert orderbook(*arguments).exit_code == shared.EXIT_REJECTED
    quotes = '[{"side":"sell","price":"101","quantity":"2"}]'
    quoting = ("order", "mass-quote", SYMBOL, "--account", "bob", "--quotes")
    assert orderbook.json(*quoting, quotes)["placed"][0]["status"] == "filled"
    assert orderbook.json(*quoting, "[]")["canceled_order_ids"] == []
    assert orderbook(*quoting, "x").exit_code == shared.EXIT_REJECTED
    back = (SYMBOL, "--account", "alice")
    closed = orderbook.json("order", "closed", *back)
    assert [order["order_id"] for order in closed["orders"]] == ["2", "1"]
    trades = orderbook.json("order", "trades", *back, "--limit", "5000")["trades"]
    assert [trade["role"] for trade in trades] == ["maker"]
    before = str(closed["sequence"])
    assert len(orderbook.json("order", "closed", *back, "--before", before)["orders"]) == 1
    assert "replaced" in orderbook("order", "closed", *back).output
    assert orderbook("order", "trades", *back).exit_code == 0
    missing = orderbook("order", "closed", "NONE", "--account", "alice")
    assert missing.exit_code == shared.EXIT_REJECTED


def test_verify_finds_damage_and_names_it(orderbook: Orderbook, redis: Redis) -> None:
    define(orderbook)
    orderbook.json(*place("buy", "1", "1"))
    assert orderbook("verify").exit_code == shared.EXIT_OK
    redis.hset(f"orderbook:{{main}}:{SYMBOL}:bids:levels", "100", "77")
    result = orderbook("verify", "--json")
    assert result.exit_code == shared.EXIT_VIOLATION
    violations = json.loads(result.stdout)[0]["violations"]
    assert [violation["name"] for violation in violations] == ["LEVEL_QUANTITY_MISMATCH"]


def test_every_option_can_come_from_the_environment(orderbook: Orderbook) -> None:
    define(orderbook)
    result = orderbook(
        "order",
        "place",
        SYMBOL,
        ORDERBOOK_ACCOUNT="carol",
        ORDERBOOK_ORDER_PLACE_SIDE="sell",
        ORDERBOOK_ORDER_PLACE_PRICE="7",
        ORDERBOOK_ORDER_PLACE_QUANTITY="2",
        ORDERBOOK_JSON="1",
    )
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["price"] == "7"


# Watching, on pipes and on terminals


def test_watched_book_prints_every_change_until_interrupted(
    orderbook: Orderbook, server: EmbeddedServer
) -> None:
    define(orderbook)
    watcher = subprocess.Popen(
        [sys.executable, "-m", "orderbook", "book", SYMBOL, "--watch", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment_with(server.url),
        text=True,
    )
    assert watcher.stdout is not None
    assert json.loads(watcher.stdout.readline())["bids"] == []
    orderbook.json(*place("buy", "1", "1"))
    assert json.loads(watcher.stdout.readline())["bids"] == [["1", "1"]]
    watcher.send_signal(signal.SIGINT)
    output, errors = watcher.communicate(timeout=DEADLINE_S)
    assert (watcher.returncode, output, errors) == (0, "", "")


def test_terminal_gets_a_coloured_ladder(orderbook: Orderbook, server: EmbeddedServer) -> None:
    define(orderbook)
    orderbook.json(*place("sell", "100.5", "3"))
    terminal, child_side = pty.openpty()
    command = [sys.executable, "-m", "orderbook", "book", SYMBOL]
    environment = {**environment_with(server.url), "TERM": "xterm-256color"}
    with subprocess.Popen(command, stdout=child_side, env=environment) as process:
        os.close(child_side)
        output = read_terminal(terminal)
    os.close(terminal)
    assert process.returncode == 0
    assert "█" in output
    assert "\x1b[" in output
    assert "100.5" in output


# Serving


def start_serving(*arguments: str) -> tuple[subprocess.Popen[str], dict[str, str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "orderbook", "serve", "--port", "0", "--json", *arguments],
        stdout=subprocess.PIPE,
        env={name: text for name, text in os.environ.items() if not name.startswith("ORDERBOOK_")},
        text=True,
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, f"no ready line, exit status {process.wait()}"
    return process, json.loads(line)


def stop_serving(process: subprocess.Popen[str]) -> int:
    process.send_signal(signal.SIGTERM)
    try:
        process.communicate(timeout=DEADLINE_S)
    finally:
        process.kill()
    return process.returncode


def status_of(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=DEADLINE_S) as response:  # noqa: S310
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_serve_starts_an_embedded_server_and_keeps_its_data(tmp_path: Path) -> None:
    arguments = ("--redis-port", "0", "--data-dir", str(tmp_path))
    process, urls = start_serving(*arguments)
    try:
        assert urls["websocket"].startswith("ws://127.0.0.1:")
        assert status_of(urls["ready"]) == 200
        assert status_of(urls["metrics"]) == 200
        seeded = Orderbook(urls["redis"]).json("seed")
    finally:
        assert stop_serving(process) == 0
    process, urls = start_serving(*arguments)
    try:
        state = Orderbook(urls["redis"]).json("instrument", "show", seeded[0]["symbol"])
        assert state["open_orders"] == seeded[0]["orders_open"]
    finally:
        assert stop_serving(process) == 0


def test_each_worker_has_a_port_of_its_own_for_health_checks(server: EmbeddedServer) -> None:
    base = free_port(2)
    arguments = ("--redis-url", server.url, "--workers", "2", "--admin-port", str(base))
    process, urls = start_serving(*arguments)
    try:
        assert urls["ready"] == f"http://127.0.0.1:{base}/readyz"
        assert status_of(urls["ready"]) == 200
        assert status_of(f"http://127.0.0.1:{base + 1}/metrics") == 200
        assert status_of(urls["websocket"].replace("ws:", "http:").replace("/ws", "/readyz")) == 404
    finally:
        assert stop_serving(process) == 0


def test_an_admin_port_must_leave_one_for_each_worker(orderbook: Orderbook) -> None:
    for port in ("0", "65535"):
        result = orderbook("serve", "--workers", "2", "--admin-port", port)
        assert result.exit_code == 2, result.output
        assert "--admin-port" in result.output


def test_workers_share_one_port_and_a_killed_one_is_replaced(server: EmbeddedServer) -> None:
    process, urls = start_serving("--redis-url", server.url, "--workers", "2")
    try:
        first = children(process.pid, "--as-worker")
        assert len(first) == 2
        os.kill(first[0], signal.SIGKILL)
        wait_until(
            lambda: first[0] not in (now := children(process.pid, "--as-worker")) and len(now) == 2,
            "the worker is replaced",
        )
        workers = children(process.pid)
        assert status_of(urls["ready"]) == 200
    finally:
        assert stop_serving(process) == 0
    wait_until(lambda: not any(is_alive(pid) for pid in workers), "all processes have ended")


def test_port_in_use_is_told(server: EmbeddedServer) -> None:
    process, urls = start_serving("--redis-url", server.url)
    try:
        port = urls["ready"].rpartition(":")[2].split("/")[0]
        for workers in ("1", "2"):
            second = subprocess.run(
                [sys.executable, "-m", "orderbook", "serve", "--port", port, "--workers", workers],
                env=environment_with(server.url),
                capture_output=True,
                text=True,
                timeout=DEADLINE_S,
                check=False,
            )
            assert second.returncode == shared.EXIT_USAGE, second.stderr
            assert port in second.stderr
            assert "Traceback" not in second.stderr
    finally:
        assert stop_serving(process) == 0


def test_serve_ends_with_its_embedded_server() -> None:
    process, urls = start_serving("--redis-port", "0")
    server = Redis.from_url(urls["redis"]).info("server")
    os.kill(server["process_id"], signal.SIGKILL)
    assert process.wait(DEADLINE_S) == shared.EXIT_UNREACHABLE


def test_serve_tells_an_address_that_is_none() -> None:
    for arguments in (("--redis-url", "foo://x"), ("--redis-url", UNREACHABLE, "--read-url", "y")):
        result = subprocess.run(
            [sys.executable, "-m", "orderbook", "serve", "--port", "0", *arguments],
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )
        assert result.returncode in {shared.EXIT_USAGE, shared.EXIT_UNREACHABLE}, result.stderr
        assert "Traceback" not in result.stderr


def test_serve_without_a_reachable_redis_fails_with_its_exit_code() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "orderbook", "serve", "--port", "0", "--redis-url", UNREACHABLE],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert result.returncode == shared.EXIT_UNREACHABLE, result.stderr
    assert "Traceback" not in result.stderr


# ---- durability


def test_durability_is_asked_for_and_told(orderbook: Orderbook, redis: Redis) -> None:
    orderbook("functions", "load")
    orderbook("instrument", "define", SYMBOL, "--tick-size", "1", "--lot-size", "1")
    terms = ("--account", "alice", "--side", "buy", "--price", "9", "--quantity", "1")
    order = ("order", "place", SYMBOL, *terms, "--durability", "fsync")
    refused = orderbook(*order, "--json")
    assert refused.exit_code == shared.EXIT_REJECTED
    assert json.loads(refused.stdout)["code"] == "DURABILITY_UNAVAILABLE"
    redis.config_set("appendonly", "yes")
    redis.config_set("appendfsync", "always")
    try:
        assert orderbook.json(*order)["durability"] == "fsync"
    finally:
        redis.config_set("appendonly", "no")


def test_serve_refuses_a_minimum_that_the_server_cannot_confirm(orderbook: Orderbook) -> None:
    refused = orderbook("serve", "--port", "0", "--durability", "fsync")
    assert refused.exit_code == shared.EXIT_SERVER
    assert "no append-only file" in refused.stderr
