"""Breaks real servers and hosts under load, round after round, and judges what clients were told.

    PYTHONPATH=.:scripts:tests python -m campaign --rounds 5 --seed 1

One line a kind of fault; exit code 1 where anything was violated. README.md tells what the columns
mean.
"""

import asyncio
import contextlib
import logging
import math
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from statistics import median

import click

from campaign import failovers, faults
from campaign.setups import Plan, Setup, judge, proxied
from orderbook.engine.errors import EngineError
from orderbook.feed.replay import ReplayError

# After so many rounds everything is started afresh: the history of a book stays short.
ROUNDS_PER_SETUP = 10
RESHARD = "reshard"
RESHARD_SHARE = 0.2
CALM_AFTER_S = 0.2
VIOLATIONS_SHOWN_MAX = 20

Open = Callable[[Plan], contextlib.AbstractAsyncContextManager[Setup]]
Strike = Callable[[Setup], Awaitable[None]]


@dataclass(frozen=True)
class Kind:
    """A kind of fault. A full campaign (--rounds 100) has 100 times `share` rounds of it."""

    name: str
    share: float
    open: Open
    strike: Strike
    # Whether even what only memory promised must survive.
    memory_is_safe: bool = True
    durabilities: tuple[str, ...] = ("memory",)
    # How long everybody trades before the fault.
    calm_s: tuple[float, float] = (0.3, 0.8)


FSYNC = ("memory", "fsync", "fsync")
REPLICA = ("memory", "replica", "replica")
# Longer than a flush of everysec takes.
UNTIL_FLUSHED_S = (0.5, 2.5)

KINDS = (
    Kind("redis-kill-always", 1, faults.flushing_always, faults.kill_redis, durabilities=FSYNC),
    Kind(
        *("redis-kill-everysec", 1, faults.flushing_every_second, faults.kill_redis),
        memory_is_safe=False,
        durabilities=FSYNC,
    ),
    Kind("power-cut-always", 0.5, faults.powered_always, faults.cut_power, durabilities=FSYNC),
    Kind(
        *("power-cut-everysec", 0.5, faults.powered_every_second, faults.cut_power),
        memory_is_safe=False,
        durabilities=FSYNC,
        calm_s=UNTIL_FLUSHED_S,
    ),
    Kind("host-kill", 2, faults.unflushed, faults.kill_host),
    Kind("network-cut", 0.2, proxied, faults.cut_network),
    Kind("network-stall", 0.2, proxied, faults.stall_network),
    Kind("client-kill-storm", 0.2, faults.unflushed, faults.kill_clients),
    Kind("memory-full", 0.2, faults.unflushed, faults.fill_memory),
    Kind("flood", 0.1, faults.unflushed, faults.flood),
    Kind(
        *("sentinel-failover", 0.25, failovers.watched_by_sentinel, failovers.fail_over),
        memory_is_safe=False,
        durabilities=REPLICA,
    ),
    Kind(
        *("cluster-failover", 0.25, failovers.clustered, failovers.fail_over),
        memory_is_safe=False,
        durabilities=REPLICA,
    ),
    Kind("clock-jump", 0.2, faults.shifted, faults.jump_clock),
)

NAMES = (*(kind.name for kind in KINDS), RESHARD)


@dataclass
class Result:
    """What came of all rounds of a kind."""

    name: str
    rounds: int = 0
    acknowledged: int = 0
    unanswered: int = 0
    lost: int = 0
    doubled: int = 0
    gaps: int = 0
    violations: list[str] = field(default_factory=list)
    times_s: list[float] = field(default_factory=list)

    def line(self) -> str:
        times = [f"{1000 * figure(self.times_s):.0f}" for figure in (median, max)]
        return (
            f"{self.name:20} {self.rounds:6} {self.acknowledged:12} {self.unanswered:10} "
            f"{self.lost:6} {self.doubled:7} {self.gaps:6} {len(self.violations):10} "
            f"{times[0]:>9} {times[1]:>6}"
        )


HEAD = (
    "fault                rounds acknowledged unanswered   lost doubled   gaps violations "
    "median_ms max_ms"
)


async def run_kind(kind: Kind, rounds: int, seed: int, engine: str) -> Result:
    """All rounds of a kind, on as many setups as they need."""
    result = Result(kind.name)
    for number in range(math.ceil(rounds / ROUNDS_PER_SETUP)):
        count = min(ROUNDS_PER_SETUP, rounds - number * ROUNDS_PER_SETUP)
        plan = Plan(f"{seed} {kind.name} {number}", kind.durabilities, engine)
        try:
            async with kind.open(plan) as setup:
                await _run_setup(kind, setup, count, result)
        except (click.ClickException, EngineError, ReplayError) as error:
            # The next setup may come further; this one has not shown what it had to.
            result.violations.append(f"setup {plan.seed!r} was given up: {error}")
    return result


async def _run_setup(kind: Kind, setup: Setup, rounds: int, result: Result) -> None:
    load = setup.load
    try:
        await judge(setup, setup.redis_url, memory_is_safe=True)
        for _ in range(rounds):
            await _run_round(kind, setup, result)
    finally:
        result.acknowledged += load.acknowledged
        result.unanswered += load.unanswered
        result.gaps += load.gaps
        result.violations += [
            f"setup {load.seed!r}: {wrong}" for wrong in load.violations.sentences
        ]


async def _run_round(kind: Kind, setup: Setup, result: Result) -> None:
    setup.load.running.set()
    await asyncio.sleep(setup.dice.uniform(*kind.calm_s))
    await setup.load.burst(setup.dice)
    await kind.strike(setup)
    result.times_s += await setup.load.recovery_times_s()
    if setup.restore is not None:
        await setup.restore()
    await asyncio.sleep(CALM_AFTER_S)
    await setup.load.settle()
    lost, doubled = await judge(setup, setup.redis_url, memory_is_safe=kind.memory_is_safe)
    result.lost += lost
    result.doubled += doubled
    result.rounds += 1


async def run_reshard(rounds: int, seed: int, engine: str) -> Result:
    """A round moves slots there and back; its times are the longest waits in each move."""
    summary = await failovers.reshard_rounds(rounds, seed, engine)
    return Result(
        RESHARD,
        rounds,
        acknowledged=summary.orders,
        unanswered=summary.resent,
        gaps=summary.gaps,
        violations=summary.violations,
        times_s=summary.pauses_s,
    )


@click.command()
@click.option("--rounds", default=5, envvar="ROUNDS", show_default=True, type=click.IntRange(1))
@click.option("--seed", default=1, envvar="SEED", show_default=True)
@click.option("--kind", "names", multiple=True, type=click.Choice(NAMES), help="Only these.")
@click.option("--engine", default="valkey", show_default=True, help="valkey or redis8.")
def main(rounds: int, seed: int, names: tuple[str, ...], engine: str) -> None:
    """Break servers and hosts under load, and judge what clients were told."""
    # The host of RESHARD lives in this process, and tells of what is done to it.
    logging.disable(logging.WARNING)
    click.echo(HEAD)
    violated = False
    for name in names or NAMES:
        result = asyncio.run(_run(name, rounds, seed, engine))
        click.echo(result.line())
        for sentence in result.violations[:VIOLATIONS_SHOWN_MAX]:
            click.echo(f"  {sentence}")
        violated = violated or bool(result.violations)
    sys.exit(1 if violated else 0)


async def _run(name: str, rounds: int, seed: int, engine: str) -> Result:
    """The share of a kind in a campaign of so many rounds."""
    if name == RESHARD:
        return await run_reshard(max(1, round(rounds * RESHARD_SHARE)), seed, engine)
    kind = next(kind for kind in KINDS if kind.name == name)
    return await run_kind(kind, max(1, round(rounds * kind.share)), seed, engine)


if __name__ == "__main__":
    main()
