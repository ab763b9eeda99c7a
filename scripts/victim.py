"""What one client has to wait beside others that want everything for themselves.

Starts a server, one host and, in processes of their own, clients that flood it; beside them one
ordinary client, the victim, places and cancels an order every few milliseconds, one at a time. It
also keeps an order that is bound by cancel_on_disconnect with the shortest timeout there is: none
of its orders may be canceled by anybody else. Prints its latencies in each case; exit status 1
where the median is above the limit, or where an order of it was canceled.
"""

import asyncio
import contextlib
import json
import multiprocessing
import time
from collections.abc import Callable, Iterator
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import click

from frames import FrameSocket, masked_frame
from hosts import start_hosts
from rig import Book, open_book, open_server

SYMBOL = "BTC-USD"
VICTIM = "victim"
TIMEOUT_MS = 1000
# A breath between two orders of the victim: it is no flooder itself.
PAUSE_S = 0.005
WARM_UP_S = 2.0
# What flooders have sent before they went is carried out before the next case begins.
SETTLE_S = 5.0
SECONDS_DEFAULT = 10
P50_MS_MAX = 10.0
FLOODER_PROCESSES_MAX = 2
RECEIVE_BYTES = 1 << 18
# Orders a side that are there before: full depth has something to read.
ORDERS_COUNT = 10_000
ORDERS_PER_CALL = 100

Flood = Callable[[str, int, Event], None]


class Case(NamedTuple):
    """Clients that flood: how many, and with what."""

    name: str
    clients_count: int
    frames: tuple[bytes, ...]


def _order(price: str, **more: str) -> bytes:
    params = {"symbol": SYMBOL, "side": "buy", "order_type": "limit", "price": price}
    return _request("place_order", **params, quantity="1", **more)


def _request(method: str, **params: Any) -> bytes:
    return masked_frame(json.dumps({"method": method, "params": params}).encode())


_CANCEL = _request("cancel_all_orders", symbol=SYMBOL)
# What the victim is told where its orders have been canceled, or its timer has run out.
_GONE = frozenset({"UNKNOWN_ORDER", "SESSION_NOT_ARMED"})
_PING = b"\x89\x80\0\0\0\0"

CASES = (
    Case("nobody", 0, ()),
    # Their orders are canceled in between, or the book would only grow.
    Case("50 placers", 50, (*[_order("50")] * 99, _CANCEL)),
    Case("2 with all the IOC orders they may", 2, (_order("50", time_in_force="ioc"),)),
    Case("5 that ask for full level3", 5, (_request("get_level3", symbol=SYMBOL, depth="full"),)),
    Case("10 that ping", 10, (_PING,)),
    Case("10 that send the method ping", 10, (_request("ping"),)),
    Case("10 that ask for the ticker", 10, (_request("get_ticker", symbol=SYMBOL),)),
    Case("10 that subscribe to level3", 10, (_request(
        "subscribe", channel="level3", symbols=[SYMBOL]),)),
)  # fmt: skip


def flood(url: str, case: Case, numbers: range, stopping: Event) -> None:
    """Sends as fast as the host takes it, on some connections, until told to stop."""
    block = b"".join(case.frames) * max(1, 4096 // len(b"".join(case.frames)))
    sockets, unsent = [], {}
    for number in numbers:
        sockets.append(FrameSocket(f"{url}?account=flood{number}").socket)
        sockets[-1].setblocking(False)
        unsent[sockets[-1]] = b""
    while not stopping.is_set() and sockets:
        moved = False
        for one in list(sockets):
            try:
                moved = _push(one, unsent, block) or moved
            except OSError:
                sockets.remove(one)
        if not moved:
            time.sleep(0.001)


def _push(one: Any, unsent: dict[Any, bytes], block: bytes) -> bool:
    """Reads and drops what has come, writes what fits; whether anything moved."""
    moved = False
    with contextlib.suppress(BlockingIOError):
        moved = bool(one.recv(RECEIVE_BYTES))
        if not moved:
            raise ConnectionError("closed by the host")
    with contextlib.suppress(BlockingIOError):
        data = unsent[one] or block
        sent = one.send(data)
        unsent[one] = data[sent:]
        moved = True
    return moved


class Figures(NamedTuple):
    """What the victim has seen; latencies in milliseconds."""

    waits_count: int
    p50: float
    p99: float
    longest: float
    canceled_count: int


class Victim:
    """One client that waits for each answer before it sends the next request."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._answers: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._waits_ms: list[float] = []
        # Reports of cancellations that it did not ask for.
        self._canceled: list[dict[str, Any]] = []
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for message in self._socket:
            frame = json.loads(message.data)
            if "success" in frame:
                self._answers.put_nowait(frame)
            for report in frame.get("orders", ()) if frame.get("type") == "update" else ():
                if report["event"] == "canceled" and report["reason"] != "requested":
                    self._canceled.append(report)

    async def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """Sends a request and waits for its result."""
        await self._socket.send_str(json.dumps({"method": method, "params": params}))
        answer = await self._answers.get()
        if answer["success"]:
            result: dict[str, Any] = answer["result"]
            return result
        if answer["error"]["code"] not in _GONE:
            raise click.ClickException(f"the victim was refused: {answer['error']}")
        # It has been told why in a report, which is what counts.
        return {}

    async def trade_for(self, seconds: float) -> None:
        """Places and cancels, and remembers how long each took."""
        terms = {"symbol": SYMBOL, "side": "buy", "order_type": "limit", "price": "40"}
        deadline = time.perf_counter() + seconds
        while time.perf_counter() < deadline:
            placed = await self._timed("place_order", **terms, quantity="1")
            await asyncio.sleep(PAUSE_S)
            order_id = placed.get("order_id", "1")
            await self._timed("cancel_order", symbol=SYMBOL, order_id=order_id)
            await asyncio.sleep(PAUSE_S)

    async def _timed(self, method: str, **params: Any) -> dict[str, Any]:
        started = time.perf_counter()
        result = await self.ask(method, **params)
        self._waits_ms.append((time.perf_counter() - started) * 1000)
        return result

    def forget_waits(self) -> None:
        self._waits_ms.clear()

    def figures(self) -> Figures:
        waits = sorted(self._waits_ms)
        p50, p99 = waits[len(waits) // 2], waits[len(waits) * 99 // 100]
        return Figures(len(waits), p50, p99, waits[-1], len(self._canceled))


async def _suffer(url: str, seconds: float) -> Figures:
    """The victim's part in one case."""
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(url, params={"account": VICTIM}, max_msg_size=0) as socket,
    ):
        victim = Victim(socket)
        await victim.ask("subscribe", channel="orders", symbols=[SYMBOL])
        await victim.ask("cancel_on_disconnect", timeout_ms=TIMEOUT_MS)
        terms = {"symbol": SYMBOL, "side": "buy", "order_type": "limit", "price": "39"}
        await victim.ask("place_order", **terms, quantity="1")
        await victim.trade_for(WARM_UP_S)
        victim.forget_waits()
        await victim.trade_for(seconds)
        figures = victim.figures()
        # Its orders are gone before the next case begins.
        await victim.ask("cancel_all_orders", symbol=SYMBOL)
        return figures


@contextlib.contextmanager
def _flooding(url: str, case: Case) -> Iterator[None]:
    context = multiprocessing.get_context("spawn")
    stopping = context.Event()
    processes = []
    for number in range(min(FLOODER_PROCESSES_MAX, case.clients_count)):
        mine = range(number, case.clients_count, FLOODER_PROCESSES_MAX)
        processes.append(context.Process(target=flood, args=(url, case, mine, stopping)))
        processes[-1].start()
    try:
        yield
    finally:
        stopping.set()
        for process in processes:
            process.join()


def _fill(book: Book) -> None:
    """Orders at many prices on both sides."""
    book.define(tick_size="0.01", lot_size="1")
    for start in range(0, ORDERS_COUNT, ORDERS_PER_CALL):
        commands = []
        for number in range(start, start + ORDERS_PER_CALL):
            for side, base in (("buy", 20), ("sell", 90)):
                price = f"{base + number % 1000 / 100:.2f}"
                terms = {"side": side, "order_type": "limit", "price": price, "quantity": "1"}
                account = f"maker{number % 50}"
                commands.append({"method": "place_order", "account": account, **terms})
        book.send(commands)
        book.receive()


@click.command()
@click.option("--seconds", default=SECONDS_DEFAULT, show_default=True, help="Per case.")
@click.option("--case", "wanted", default="", help="Only cases with this in their name.")
@click.option("--p50-ms-max", default=P50_MS_MAX, show_default=True)
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the figures.")
def main(seconds: int, wanted: str, p50_ms_max: float, json_path: Path | None) -> None:
    """Measure one client's latency beside clients that flood."""
    told = {}
    with open_server(None) as redis_url:
        with open_book(redis_url, SYMBOL) as book:
            _fill(book)
        with start_hosts(redis_url, 1) as (host,):
            for case in (case for case in CASES if wanted in case.name):
                with _flooding(host.url, case):
                    figures = asyncio.run(_suffer(host.url, seconds))
                told[case.name] = figures._asdict()
                time.sleep(SETTLE_S)
                click.echo(
                    f"beside {case.name}: p50 {figures.p50:.1f} ms, p99 {figures.p99:.1f} ms,"
                    f" longest {figures.longest:.0f} ms of {figures.waits_count};"
                    f" canceled by others {figures.canceled_count}"
                )
    if json_path is not None:
        json_path.write_text(json.dumps(told, indent=2) + "\n", "utf-8")
    bad = [
        name
        for name, figures in told.items()
        if figures["p50"] > p50_ms_max or figures["canceled_count"]
    ]
    if bad:
        raise click.ClickException("too slow, or orders were canceled, beside " + "; ".join(bad))


if __name__ == "__main__":
    main()
