"""The demo, whole: run as a user runs it, and what its parts promise."""

import json
import os
import pty
import signal
import subprocess
import sys
import time
from random import Random
from typing import Any

import pytest

from orderbook.demo.demo import MarketView
from orderbook.demo.market import MAKER_ORDERS_MAX, MARKETS, FairPrice, Maker, seed_commands
from processes import children, is_alive, read_terminal, wait_until

DEADLINE_S = 60.0
# A book is published at most this often.
PUBLISH_INTERVAL_S = 0.5
DEMO = [sys.executable, "-m", "orderbook", "demo"]


def run_demo(*arguments: str) -> tuple[dict[str, Any], str]:
    completed = subprocess.run(
        [*DEMO, "--json", *arguments],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert completed.returncode == 0, completed.stderr
    summary: dict[str, Any] = json.loads(completed.stdout)
    return summary, completed.stderr


def test_demo_ends_by_itself_with_every_book_verified() -> None:
    started = time.monotonic()
    summary, errors = run_demo("--duration", "3")
    elapsed_s = time.monotonic() - started
    assert errors == ""
    assert summary["verified"] is True
    assert set(summary["symbols"]) == {market.symbol for market in MARKETS}
    for symbol, report in summary["symbols"].items():
        assert report["verified"] is True, symbol
        assert report["violations"] == []
        assert report["trades_missed"] == report["trades_out_of_order"] == 0
        assert report["book_relayed_is_stored_book"] is True
        # At once on subscribing, and then at most twice a second: never every change.
        assert 1 <= report["books_relayed"] <= 2 + elapsed_s / PUBLISH_INTERVAL_S, symbol
    assert summary["orders"] >= 100
    assert summary["trades"] == sum(each["trades"] for each in summary["symbols"].values()) > 10
    latencies = summary["latency_ms"]
    assert 0 < latencies["p50"] <= latencies["p90"] <= latencies["p99"] <= latencies["max"]
    # A trader's cancel may come too late; anything else would be the demo's own mistake.
    assert set(summary["rejects"]) <= {"UNKNOWN_ORDER", "POST_ONLY_WOULD_CROSS"}


def test_killed_demo_leaves_no_process_behind() -> None:
    process = subprocess.Popen([*DEMO, "--json"], stdout=subprocess.DEVNULL)
    try:
        wait_until(lambda: bool(children(process.pid, "--as-worker")), "the demo has a host")
        started = children(process.pid)
    finally:
        process.kill()
        process.wait()
    assert len(started) >= 2
    wait_until(lambda: not any(is_alive(pid) for pid in started), "its processes have ended")


def test_interrupted_demo_on_a_terminal_has_drawn_ladders_and_sums_up() -> None:
    terminal, child_side = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "160", "LINES": "50"}
    with subprocess.Popen(DEMO, stdout=child_side, env=environment) as process:
        os.close(child_side)
        picture = read_terminal(terminal, until="█")
        process.send_signal(signal.SIGINT)
        rest = read_terminal(terminal)
    os.close(terminal)
    assert process.returncode == 0
    assert "spread" in picture + rest
    # After the live picture has left the terminal, the summary stays.
    assert "every book verified" in rest.rpartition("\x1b[?1049l")[2]


def test_viewer_notices_missing_and_repeated_trades() -> None:
    view = MarketView(MARKETS[0])
    for trade_id in ("1", "2", "4", "4"):
        view.add_trade({"trade_id": trade_id})
    assert (view.trade_count, view.trades_out_of_order) == (4, 2)


@pytest.mark.parametrize("market", MARKETS, ids=lambda market: market.symbol)
def test_seeded_orders_are_on_the_grid_do_not_cross_and_repeat(market: Any) -> None:
    commands = list(seed_commands(market, 25, random_seed=7))
    assert commands == list(seed_commands(market, 25, random_seed=7))
    assert commands != list(seed_commands(market, 25, random_seed=8))
    names = [(command["account"], command["client_order_id"]) for command in commands]
    assert len(set(names)) == len(names)
    start = float(market.price_start)
    for command in commands:
        assert (float(command["price"]) < start) == (command["side"] == "buy")
        assert "e" not in (command["price"] + command["quantity"]).lower()


def test_maker_keeps_a_bounded_number_of_orders() -> None:
    dice = Random(1)
    maker = Maker(MARKETS[0], FairPrice(MARKETS[0], dice), dice)
    for number in range(1000):
        method, params = maker.next_command()
        order_id = params.get("order_id", str(number))
        status = "canceled" if method == "cancel_order" else "open"
        maker.learn(method, params, {"status": status, "order_id": order_id})
        assert len(maker.order_ids) <= MAKER_ORDERS_MAX


def test_maker_forgets_orders_that_were_filled() -> None:
    dice = Random(1)
    maker = Maker(MARKETS[0], FairPrice(MARKETS[0], dice), dice, order_ids=["5"])
    maker.learn("cancel_order", {"order_id": "5"}, {"status": "rejected", "code": "UNKNOWN_ORDER"})
    assert maker.order_ids == []
