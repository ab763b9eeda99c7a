"""One client of the load test: sends a mix of orders on a schedule and keeps account.

The idea: an order is sent when the schedule says so, whether or not earlier ones were answered, and
its latency counts from that intended time. So a server that stalls is charged for every order that
had to wait, not only for the one it was busy with. Without a schedule (as fast as it goes) a fixed
number of orders is kept in flight and the latency counts from the sending.
"""

import asyncio
import collections
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from random import Random

import msgspec

from audit import OrderLedger
from client import POLL_INTERVAL_S, Client, ClientError, Frame, Params, wait_until
from orderbook.demo.market import Market
from rig import Reply

# A schedule may run ahead of the answers by so many orders; beyond it, sending waits.
IN_FLIGHT_MAX = 2_000
# Beyond so many open orders a trader cancels, whatever the mix says: the book must not just grow.
OPEN_ORDERS_MAX = 100
# How far from the middle of the book an order is priced, in parts of the price.
PRICE_REACH = 0.0006
ANSWER_TIMEOUT_S = 30.0
SETTLE_TIMEOUT_S = 10.0
PAGE_LENGTH = 1000

ACTIONS = ("limit", "ioc", "market", "cancel", "amend")
OPEN_STATUSES = frozenset({"open", "partially_filled"})

_decode_reply = msgspec.json.Decoder(Reply).decode


class OpenOrder(msgspec.Struct):
    """What is compared of get_open_orders."""

    order_id: str
    remaining_quantity: str


class OpenOrders(msgspec.Struct):
    """A page of get_open_orders."""

    orders: list[OpenOrder]
    more: bool


@dataclass
class Count:
    """What all traders together did."""

    record_latency: Callable[[int], object]
    sent: int = 0
    acknowledged: int = 0
    rejected: collections.Counter[str] = field(default_factory=collections.Counter)


@dataclass
class Schedule:
    """When one trader sends: every `interval_s` from `next_s` until `end_s`, by the loop's clock.

    With `interval_s` 0: as soon as fewer than `in_flight_max` orders are unanswered.
    """

    next_s: float
    interval_s: float
    end_s: float
    in_flight_max: int

    async def wait(self) -> float | None:
        """Returns the intended time of the next order once it has come, None at the end."""
        now_s = asyncio.get_running_loop().time()
        intended_s = self.next_s if self.interval_s else now_s
        if intended_s >= self.end_s:
            return None
        self.next_s += self.interval_s
        # Sleeps also when it is late: answers must be read meanwhile.
        await asyncio.sleep(max(0.0, intended_s - now_s))
        return intended_s


class Flow:
    """The commands of one trader, drawn from the mix."""

    def __init__(self, market: Market, mix: dict[str, float], dice: Random) -> None:
        self.symbol = market.symbol
        self._market = market
        self._dice = dice
        self._actions = list(mix)
        self._weights = list(mix.values())
        self._open_ids: collections.deque[str] = collections.deque()
        self._numbers = itertools.count(1)

    def next_command(self) -> tuple[str, Params]:
        """A websocket method and its params, with a client_order_id of its own."""
        action = self._dice.choices(self._actions, self._weights)[0]
        if len(self._open_ids) >= OPEN_ORDERS_MAX:
            action = "cancel"
        params: Params = {
            "symbol": self.symbol,
            "client_order_id": f"load-{next(self._numbers)}",
        }
        if action in {"cancel", "amend"} and self._open_ids:
            # Out of the list until the answer is here: an order is meant once at a time.
            params["order_id"] = self._open_ids.popleft()
            if action == "cancel":
                return "cancel_order", params
            return "amend_order", params | {"remaining_quantity": self._quantity()}
        return "place_order", params | self._order(action)

    def learn(self, reply: Reply) -> None:
        """Takes in the reply to an order or an amend."""
        if reply.status in OPEN_STATUSES:
            self._open_ids.append(reply.order_id)

    def _order(self, action: str) -> Params:
        side, toward_other_side = self._dice.choice((("buy", 1), ("sell", -1)))
        order: Params = {"side": side, "quantity": self._quantity()}
        if action == "market":
            return order | {"order_type": "market"}
        takes = action == "ioc"
        direction = toward_other_side if takes else -toward_other_side
        distance = self._dice.random() * PRICE_REACH * direction
        price = self._market.price(float(self._market.price_start) * (1 + distance))
        order |= {"order_type": "limit", "price": price}
        return order | {"time_in_force": "ioc"} if takes else order

    def _quantity(self) -> str:
        return self._market.quantity(self._dice)


class Trader:
    """One account on one connection, trading one market."""

    def __init__(self, client: Client, flow: Flow, ledger: OrderLedger, count: Count) -> None:
        self.client = client
        self._flow = flow
        self._ledger = ledger
        self._count = count
        self._slots = asyncio.Semaphore()

    async def trade(self, schedule: Schedule) -> None:
        """Sends on schedule to its end. Raises ClientError when no host takes us any more."""
        self._slots = asyncio.Semaphore(schedule.in_flight_max)
        while True:
            await self._slots.acquire()
            intended_s = await schedule.wait()
            if intended_s is None:
                return
            method, params = self._flow.next_command()
            self._count.sent += 1
            await self.client.submit(method, params, partial(self._answered, intended_s, method))

    def _answered(self, intended_s: float, method: str, answer: Frame) -> None:
        waited_s = asyncio.get_running_loop().time() - intended_s
        self._count.record_latency(max(1, round(waited_s * 1e6)))
        self._slots.release()
        if answer.error is not None:
            self._count.rejected[answer.error.code] += 1
            return
        self._count.acknowledged += 1
        if method != "cancel_order":
            reply = _decode_reply(answer.result)
            self._ledger.acknowledge(reply)
            self._flow.learn(reply)

    async def settle(self) -> list[str]:
        """Waits for the last answers and reports; returns what is wrong in the end."""
        if not await wait_until(lambda: not self.client.pending_count, ANSWER_TIMEOUT_S):
            return [f"{self.client.pending_count} commands were never answered"]
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + SETTLE_TIMEOUT_S
        while True:
            differences = self._ledger.differences(await self._open_orders())
            if not differences or loop.time() > deadline_s:
                return differences
            await asyncio.sleep(POLL_INTERVAL_S)

    async def _open_orders(self) -> dict[str, str]:
        """What the book says is open: order_id → remaining quantity."""
        found: dict[str, str] = {}
        params: Params = {"symbol": self._flow.symbol, "limit": str(PAGE_LENGTH)}
        while True:
            answer = await self.client.request("get_open_orders", params)
            if answer.error and answer.error.retry_after_ms:
                await asyncio.sleep(answer.error.retry_after_ms / 1000)
                continue
            if answer.error:
                raise ClientError(f"get_open_orders: {answer.error.message}")
            page = msgspec.json.decode(answer.result, type=OpenOrders)
            found |= {order.order_id: order.remaining_quantity for order in page.orders}
            if not page.more:
                return found
            params["after"] = page.orders[-1].order_id
