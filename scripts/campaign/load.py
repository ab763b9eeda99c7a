"""The load of a campaign: several accounts that trade at a steady rate, whatever happens.

The idea: a trader sends on its own clock and does not wait for answers, so that there are always
commands under way when a fault strikes, and new ones when it is over. What is not answered, or
refused for now, the client sends again under the same name; so in the end each command has one
answer.
"""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from random import Random

import msgspec

from campaign.ledger import Acknowledgement, Ids, Ledger, Reply, Tape, Violations
from client import Client, ClientError, Frame, Params, wait_until

SYMBOLS = ("CAMPAIGN-1", "CAMPAIGN-2")
RULES = {"tick_size": "1", "lot_size": "1", "events_length_max": "10000000"}
TRADERS = 6
# A trader sends a command so often.
INTERVAL_S = 0.04
# While nothing is answered it stops at so many.
UNANSWERED_MAX = 200
OPEN_ORDERS_MAX = 40
MIDDLE_PRICE = 1000
PRICE_REACH = 6
ACTIONS = {"limit": 55, "market": 10, "cancel": 20, "amend": 15}
# So many commands of each trader are under way at once when a fault strikes.
BURST = 25
BURST_S_MAX = 0.004
RETRY_DELAY_S = 0.1
RECOVER_TIMEOUT_S = 45.0
SETTLE_TIMEOUT_S = 30.0

EVENTS = {"place_order": "accepted", "cancel_order": "canceled", "amend_order": "amended"}
# Nothing has happened, and it may later: asked again until it does.
CODES_FOR_NOW = frozenset({"OUT_OF_MEMORY", "SYSTEM_BUSY", "RATE_LIMITED"})
# The order was filled, or lost, meanwhile.
CODES_EXPECTED = {
    "cancel_order": frozenset({"UNKNOWN_ORDER"}),
    "amend_order": frozenset({"UNKNOWN_ORDER"}),
}

_decode_reply = msgspec.json.Decoder(Reply).decode


class Flow:
    """The commands of one trader, drawn from its dice."""

    def __init__(self, account: str, symbol: str, dice: Random) -> None:
        self._account = account
        self._symbol = symbol
        self._dice = dice
        self._open_ids: list[str] = []
        self._numbers = itertools.count(1)

    def next_command(self) -> tuple[str, Params]:
        """A method and its params; `client_order_id` is its name."""
        action = self._dice.choices(list(ACTIONS), list(ACTIONS.values()))[0]
        if len(self._open_ids) >= OPEN_ORDERS_MAX:
            action = "cancel"
        if action not in {"cancel", "amend"} or not self._open_ids:
            return self.next_order("market" if action == "market" else "limit")
        params = self._named()
        params["order_id"] = self._open_ids.pop(self._dice.randrange(len(self._open_ids)))
        if action == "cancel":
            return "cancel_order", params
        return "amend_order", params | {"price": self._price(), "quantity": self._quantity()}

    def next_order(self, order_type: str) -> tuple[str, Params]:
        """The same, an order."""
        params = self._named() | {"order_type": order_type, "quantity": self._quantity()}
        params["side"] = self._dice.choice(("buy", "sell"))
        if order_type == "limit":
            params["price"] = self._price()
        return "place_order", params

    def _named(self) -> Params:
        name = f"{self._account}-{next(self._numbers)}"
        return {"symbol": self._symbol, "client_order_id": name}

    def learn(self, order_id: str) -> None:
        """An order that may be open: it can be canceled and amended."""
        self._open_ids.append(order_id)

    def _price(self) -> str:
        return str(MIDDLE_PRICE + self._dice.randint(-PRICE_REACH, PRICE_REACH))

    def _quantity(self) -> str:
        return str(self._dice.randint(1, 9))


class Trader:
    """One account on one connection, and the time it needed after the last fault."""

    def __init__(self, client: Client, flow: Flow, ledger: Ledger, durability: str) -> None:
        self.client = client
        self.durability = durability
        self.recovered_s: float | None = None
        self._flow = flow
        self._ledger = ledger
        self._fault_s = float("inf")
        self._order_is_due = False
        self._reconnects = 0
        self._retries: set[asyncio.Task[None]] = set()
        self._retried: dict[str, tuple[str, Params]] = {}

    @property
    def unanswered(self) -> int:
        return self.client.pending_count + len(self._retried)

    @property
    def has_reconnected(self) -> bool:
        """Whether its connection was lost since the fault."""
        return self.client.reconnects > self._reconnects

    def mark_fault(self) -> None:
        """From here on the first order that is sent and acknowledged counts."""
        self._fault_s = asyncio.get_running_loop().time()
        self._reconnects = self.client.reconnects
        self.recovered_s = None
        self._order_is_due = True

    async def trade(self, running: asyncio.Event) -> None:
        """Sends for ever, while `running` is set. Raises ClientError."""
        while True:
            await running.wait()
            if self.unanswered < UNANSWERED_MAX:
                await self.send_next()
            await asyncio.sleep(INTERVAL_S)

    async def send_next(self) -> None:
        if self._order_is_due:
            self._order_is_due = False
            await self._send(*self._flow.next_order("limit"))
        else:
            await self._send(*self._flow.next_command())

    async def _send(self, method: str, params: Params) -> None:
        sent_s = asyncio.get_running_loop().time()
        await self.client.submit(method, params, partial(self._answered, method, params, sent_s))

    def _answered(self, method: str, params: Params, sent_s: float, answer: Frame) -> None:
        name = params["client_order_id"]
        if answer.error is not None:
            self._refused(method, params, answer.error.code)
            return
        reply = _decode_reply(answer.result)
        # An amend to what is filled already is told as the cancel that it is.
        is_ended = method == "amend_order" and reply.status == "canceled"
        event = "canceled" if is_ended else EVENTS[method]
        self._ledger.acknowledge(Acknowledgement(name, event, reply))
        if method != "cancel_order" and params.get("order_type") != "market":
            self._flow.learn(reply.order_id)
        if method == "place_order" and sent_s >= self._fault_s and self.recovered_s is None:
            self.recovered_s = asyncio.get_running_loop().time() - self._fault_s

    def _refused(self, method: str, params: Params, code: str) -> None:
        name = params["client_order_id"]
        if code in CODES_FOR_NOW:
            self._retried[name] = method, params
            task = asyncio.create_task(self._retry(name))
            self._retries.add(task)
            task.add_done_callback(self._retries.discard)
            return
        self._ledger.refuse(name, code)
        if code not in CODES_EXPECTED.get(method, ()):
            self._ledger.violations.add(f"{self._ledger.symbol}: {name} was refused: {code}")

    async def _retry(self, name: str) -> None:
        await asyncio.sleep(RETRY_DELAY_S)
        with contextlib.suppress(ClientError):
            await self._send(*self._retried.pop(name))


@dataclass
class Load:
    """All traders and subscribers of a setup, and what they were told."""

    urls: list[str]
    durabilities: Sequence[str]
    seed: str
    violations: Violations = field(default_factory=Violations)
    ledgers: dict[str, Ledger] = field(default_factory=dict)
    tapes: dict[str, list[Tape]] = field(default_factory=dict)
    traders: list[Trader] = field(default_factory=list)
    # How many commands had no answer when a fault struck.
    unanswered: int = 0
    running: asyncio.Event = field(default_factory=asyncio.Event)

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Connects everybody; they trade while `running` is set."""
        async with contextlib.AsyncExitStack() as cleanup:
            for symbol in SYMBOLS:
                ids = Ids(symbol, self.violations)
                self.ledgers[symbol] = Ledger(symbol, self.violations, ids)
                self.tapes[symbol] = []
            for number, symbol in zip(range(TRADERS), itertools.cycle(SYMBOLS), strict=False):
                await self._seat(cleanup, number, symbol)
            tasks = [asyncio.create_task(t.trade(self.running)) for t in self.traders]
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()
                for outcome in await asyncio.gather(*tasks, return_exceptions=True):
                    if not isinstance(outcome, asyncio.CancelledError):
                        self.violations.add(f"a trader ended: {outcome}")

    async def _seat(self, cleanup: contextlib.AsyncExitStack, number: int, symbol: str) -> None:
        account, ledger = f"trader{number}", self.ledgers[symbol]
        tapes = {"orders": Tape(f"orders:{account}", ledger.ids, self.violations)}
        # One in each book subscribes to everybody's trades, too.
        if number < len(SYMBOLS):
            tapes["trades"] = Tape("trades", ledger.ids, self.violations)
        first = number % len(self.urls)
        # Both books have traders of each durability.
        durability = self.durabilities[number // len(SYMBOLS) % len(self.durabilities)]
        urls = [f"{url}?durability={durability}" for url in self.urls]
        client = Client(
            urls[first:] + urls[:first], account, lambda frame: tapes[frame.channel].take(frame)
        )
        await cleanup.enter_async_context(client)
        for channel in tapes:
            await client.subscribe(channel, symbol)
        await client.subscribe("heartbeat")
        flow = Flow(account, symbol, Random(f"{self.seed} {number}"))
        self.traders.append(Trader(client, flow, ledger, durability))
        self.tapes[symbol] += tapes.values()

    @property
    def acknowledged(self) -> int:
        return sum(len(ledger.acknowledged) for ledger in self.ledgers.values())

    @property
    def gaps(self) -> int:
        return sum(tape.gaps for tapes in self.tapes.values() for tape in tapes)

    async def burst(self, dice: Random) -> None:
        """Many commands at once; returns when some of them are answered, or none, or all."""
        for _ in range(BURST):
            for trader in self.traders:
                await trader.send_next()
        await asyncio.sleep(dice.uniform(0.0, BURST_S_MAX))

    def mark_fault(self) -> None:
        """The fault has struck now: times count from here."""
        self.unanswered += sum(trader.unanswered for trader in self.traders)
        self.mark_end()

    def mark_end(self) -> None:
        """A fault of a chosen length ends now: times count from here."""
        for trader in self.traders:
            trader.mark_fault()

    async def recovery_times_s(self) -> list[float]:
        """Waits until all have had an order acknowledged after the fault; how long it took those
        whose connections it broke, else all, but for those who wait for a disk or a replica."""
        recovered = await wait_until(
            lambda: all(trader.recovered_s is not None for trader in self.traders),
            RECOVER_TIMEOUT_S,
        )
        if not recovered:
            self.violations.add(f"no order was acknowledged {RECOVER_TIMEOUT_S} s after the fault")
        quick = [trader for trader in self.traders if trader.durability == "memory"]
        touched = [trader for trader in quick if trader.has_reconnected] or quick
        return [trader.recovered_s for trader in touched if trader.recovered_s is not None]

    async def settle(self) -> None:
        """Stops trading and waits until everything is answered."""
        self.running.clear()
        if not await wait_until(self._is_answered, SETTLE_TIMEOUT_S):
            count = sum(trader.unanswered for trader in self.traders)
            self.violations.add(f"{count} commands were never answered")

    def _is_answered(self) -> bool:
        return not any(trader.unanswered for trader in self.traders)
