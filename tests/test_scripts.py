"""The drivers in scripts/, run as users run them: real servers, a few hundred messages."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from audit import OrderLedger, TradeTape, Violations
from client import Frame
from rig import Fill, Reply
from servers import free_port

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("ORDERBOOK_DATA") or ROOT.parent / "shared" / "data")
TIMEOUT_S = 120
GOOG = (
    "--script=GOOG_10.script.jsonl.xz",
    "--orderbook=GOOG_2012-06-21_34200000_57600000_orderbook_10.csv.xz",
)

needs_challenge = pytest.mark.skipif(
    not (DATA / "challenge").is_dir(), reason=f"no challenge workloads in {DATA}"
)
needs_lobster = pytest.mark.skipif(
    not (DATA / "lobster").is_dir(), reason=f"no trading day in {DATA}"
)


def start(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / script), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False, env=environment
    )


def run(script: str, *arguments: str) -> dict[str, Any]:
    """The object that a driver prints with --json; it must end with exit code 0."""
    ended = start(script, *arguments, "--json")
    assert ended.returncode == 0, f"{ended.stdout}\n{ended.stderr}"
    return msgspec.json.decode(ended.stdout, type=dict[str, Any])


@needs_challenge
def test_the_challenge_prints_the_hash_of_the_report_stream() -> None:
    ended = start("challenge.py", "small-swing-25.bin.xz")
    known = msgspec.json.decode((DATA / "challenge" / "small.json").read_bytes())
    assert ended.stdout.splitlines()[-1] == known["small-swing-25.bin"], ended.stderr


@needs_challenge
def test_the_challenge_reports_the_same_through_single_calls_and_batches() -> None:
    single = run("challenge.py", "small-normal.bin.xz", "--messages=900", "--batch=1")
    batched = run("challenge.py", "small-normal.bin.xz", "--messages=900", "--batch=100")
    assert single["hash"] == batched["hash"]
    assert single["messages"] == batched["messages"] == 900


def test_a_missing_workload_is_named() -> None:
    ended = start("challenge.py", "nowhere.bin.xz")
    assert ended.returncode == 1
    assert "nowhere.bin.xz" in ended.stderr


@needs_lobster
def test_the_trading_day_gives_the_exchanges_book_after_every_message() -> None:
    result = run("lobster.py", *GOOG, "--rows=400")
    assert result["rows"] == result["rows_equal"] == 400
    assert result["executions"] == result["makers_equal"] > 0
    assert result["verified"] is True


@needs_lobster
def test_two_hosts_show_the_same_trades_of_the_day_in_the_same_order() -> None:
    result = run("lobster.py", *GOOG, "--rows=400", "--hosts=2")
    first, second = result["subscribers"]
    assert first == second
    assert first["trades"] == result["executions"] > 0
    assert result["rows_equal"] == 400
    assert result["verified"] is True


def test_the_benchmark_prints_noop_floor_and_engine_with_ratios() -> None:
    report = run("bench.py", "--data=synthetic", "--messages=640", "--rounds=2", "--profile")
    lines = {line["name"]: line for line in report["lines"]}
    assert len(lines) == 6
    assert lines["floor, batches of 64"]["ratio"] == 1.0
    assert lines["engine, batches of 64"]["ratio"] > 0
    assert lines["engine, batches of 64"]["pass"] in {True, False}
    assert [profile["kind"] for profile in report["profiles"]] == ["single", "batch"]
    for profile in report["profiles"]:
        assert any(use["command"] == "xadd" for use in profile["calls"])
        assert min(profile[f"{what}_bytes"] for what in ("command", "reply", "event")) > 0


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="another revision needs a repository")
def test_the_benchmark_puts_another_revision_beside_todays_engine() -> None:
    report = run("bench.py", "--data=synthetic", "--messages=640", "--rounds=1", "--against=HEAD")
    named = {line["name"]: line for line in report["lines"]}
    assert named["engine to before, batches of 64"]["target"] == 1.15
    assert named["engine before, single FCALLs"]["figure"] > 0
    ended = start("bench.py", "--data=synthetic", "--against=no-such-revision")
    assert ended.returncode == 2


# What each part of the benchmark has a line about.
LINES = {
    "book": ("a message with", "memory per order", "get_book of 10", "sweep of", "get_book full"),
    "host": ("orders acknowledged", "host CPU", "p99 from send", "p99 from order", "burst of"),
    "fan-out": ("deliveries to", "memory per idle", "deliveries beside a stalled"),
    "hosts": ("engine CPU per order with 2 hosts", "engine CPU per order with 5 books"),
    "start": ("orderbook --help", "orderbook demo"),
}


# These take twenty seconds each: `make test-long` runs them, too.
LONG_PARTS = () if os.environ.get("HYPOTHESIS_PROFILE") == "long" else ("hosts", "fan-out")


@pytest.mark.parametrize("part", [part for part in LINES if part not in LONG_PARTS])
def test_a_part_of_the_benchmark_prints_its_lines(part: str, tmp_path: Path) -> None:
    ended = start("bench.py", part, "--quick", "--json", f"--plot={tmp_path}")
    assert ended.returncode == 0, f"{ended.stdout}\n{ended.stderr}"
    lines = msgspec.json.decode(ended.stdout, type=list[dict[str, Any]])
    for beginning in LINES[part]:
        assert any(line["name"].startswith(beginning) for line in lines), beginning
    for line in lines:
        assert set(line) == {"name", "figure", "unit", "ratio", "target", "pass"}
        # Of what was lost there must be nothing, however slow the machine.
        assert (line["figure"] == 0) == line["name"].endswith("doubled"), line
        assert line["pass"] in {None, True, False}
    drawn = {path.name for path in tmp_path.iterdir()}
    plots = {"book": {"orders.svg", "levels.svg"}, "hosts": {"hosts.svg", "books.svg"}}
    assert drawn == plots.get(part, set())


def test_a_benchmark_of_somebodys_server_asks_before_it_erases() -> None:
    ended = start("bench.py", "--redis-url=redis://127.0.0.1:1", "--data=synthetic")
    assert ended.returncode == 2
    assert "--erase" in ended.stderr


def test_a_load_at_a_rate_is_answered_and_plotted(tmp_path: Path) -> None:
    plot = tmp_path / "latency.png"
    summary = run("load.py", "--rate=200", "--duration=1", "--connections=4", f"--plot={plot}")
    assert summary["sent"] == pytest.approx(200, abs=4)
    assert summary["acknowledged"] + sum(summary["rejected"].values()) == summary["sent"]
    assert summary["trades"] > 0
    assert summary["verified"] is True
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_a_load_on_hosts_that_run_already_finds_their_instruments() -> None:
    port = free_port()
    served = [sys.executable, "-m", "orderbook", "serve", f"--port={port}"]
    host = subprocess.Popen(served, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert host.stdout is not None
        redis_url = host.stdout.readline().split()[-1]
        arguments = (f"--url=ws://127.0.0.1:{port}/ws", "--rate=100", "--duration=1")
        ended = start("load.py", *arguments)
        assert "there are no instruments" in ended.stderr
        seeded = [sys.executable, "-m", "orderbook", "seed", "--redis-url", redis_url]
        subprocess.run(seeded, check=True, capture_output=True, cwd=ROOT)
        summary = run("load.py", *arguments)
        assert summary["verified"] is True
        assert summary["acknowledged"] + sum(summary["rejected"].values()) == summary["sent"]
    finally:
        host.terminate()
        host.communicate(timeout=TIMEOUT_S)


def test_a_killed_host_loses_no_order_and_doubles_no_trade() -> None:
    summary = run("load.py", "--hosts=2", "--kill-after=0.7", "--duration=2", "--connections=6")
    assert summary["hosts_killed"] == 1
    # Half of the traders and one subscriber were on the killed host.
    assert summary["reconnects"] >= 4
    assert summary["books_verified"] == 5
    assert summary["verified"] is True


def trades(sequence: int, *trade_ids: int) -> Frame:
    listed = [
        {"trade_id": str(trade_id), "price": "1", "quantity": "1"}
        | {"maker_order_id": "1", "taker_order_id": "2"}
        for trade_id in trade_ids
    ]
    frame = {"channel": "trades", "symbol": "X", "type": "update", "trades": listed}
    return msgspec.convert(frame | {"sequence": sequence}, Frame)


def test_a_tape_notices_a_missed_a_doubled_and_an_untold_trade() -> None:
    violations = Violations()
    tape = TradeTape("X", violations)
    tape.take(trades(1, 1, 2))
    tape.take(trades(2, 3))
    assert violations.sentences == []
    tape.take(trades(3, 5))
    tape.take(trades(4, 5))
    tape.take(trades(4, 6))
    tape.take(Frame(channel="trades", symbol="X", type="gap", sequence=9))
    assert violations.sentences == [
        "trades X: trade 5 after 3",
        "trades X: trade 5 after 5",
        "trades X: sequence 4 after 4",
        "trades X: a gap before sequence 9",
    ]


def reports(sequence: int, *listed: dict[str, str]) -> Frame:
    frame = {"channel": "orders", "symbol": "X", "type": "update", "orders": list(listed)}
    return msgspec.convert(frame | {"sequence": sequence}, Frame)


ACCEPTED = {"event": "accepted", "order_id": "7", "quantity": "5"}
TRADED = {"event": "trade", "order_id": "7", "trade_id": "3", "remaining_quantity": "4"}


def test_a_ledger_agrees_with_a_book_that_kept_every_order() -> None:
    violations = Violations()
    ledger = OrderLedger("a", violations)
    ledger.acknowledge(
        Reply(status="partially_filled", order_id="7", fills=[Fill("3", "1", "1", "2")])
    )
    ledger.take(reports(1, ACCEPTED, TRADED))
    assert ledger.differences({"7": "4"}) == []
    assert violations.count == 0


def test_a_ledger_notices_a_lost_order_a_lost_trade_and_a_doubled_report() -> None:
    violations = Violations()
    ledger = OrderLedger("a", violations)
    ledger.acknowledge(
        Reply(status="partially_filled", order_id="8", fills=[Fill("9", "1", "1", "2")])
    )
    ledger.take(reports(1, ACCEPTED, TRADED))
    ledger.take(reports(2, TRADED))
    assert violations.sentences == ["a: trade 3 reported twice"]
    assert ledger.differences({"7": "5"}) == [
        "a: order 8 was acknowledged and never reported",
        "a: trade 9 was acknowledged and never reported",
        "a: 7 with 4 open is in the reports or the book alone",
        "a: 7 with 5 open is in the reports or the book alone",
    ]
