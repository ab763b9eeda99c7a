"""What a host process gives out: a trade stream to thousands of subscribers.

The idea: whoever tells two thousand sockets the same must at least send to each of them. A bare
aiohttp server does that in a loop of sends, with the bytes of a trade message of the host; the host
does it from the stream. Both have the same number of listeners, who only count bytes; rounds take
turns. What an idle listener costs in memory is told by both servers' private memory before and
after they came. In a last pair of rounds one more listener never reads.
"""

import resource
import selectors
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import click
import msgspec

from figures import Figure, at_least, at_most, median_ratio
from frames import PING_FRAME, FrameSocket, masked_frame
from hosts import BareHost, Host, memory_bytes, start_hosts
from rig import Book, Command, open_book, open_server, pack_commands

SYMBOL = "BENCH"
ACCOUNT = "maker"
DELIVERED_TARGET = 0.8
MEMORY_TARGET = 1.3
STALLED_TARGET = 0.95
QUIET_S = 2.0
RECEIVE_BYTES = 1 << 16
TIMEOUT_S = 120.0
SOCKETS_SPARE = 200


@dataclass(frozen=True)
class Scale:
    """How many listeners, and how many messages each of them gets a round."""

    listeners: int
    messages: int
    rounds: int


FULL = Scale(2_000, 200, 5)
QUICK = Scale(200, 40, 1)


class Audience:
    """Listeners of one server, who count what they are sent."""

    def __init__(self, url: str, count: int, request: bytes | None) -> None:
        self.sockets = []
        for _ in range(count):
            one = FrameSocket(url)
            if request is not None:
                one.ask(request)
            self.sockets.append(one)
        self.drain()

    def drain(self) -> None:
        """Reads what has come already: snapshots."""
        self.receive(len(self.sockets), 0)

    def receive(self, listeners: int, bytes_each: int) -> float:
        """Reads until so many listeners have so many bytes, or with 0 until nothing comes for a
        while; returns when the last of them came."""
        selector = selectors.DefaultSelector()
        for one in self.sockets[:listeners]:
            selector.register(one, selectors.EVENT_READ, one)
        left = listeners * bytes_each
        last = time.perf_counter()
        deadline = last + TIMEOUT_S
        while left > 0 or not bytes_each:
            ready = selector.select(TIMEOUT_S if bytes_each else QUIET_S)
            if not ready and not bytes_each:
                break
            for key, _ in ready:
                left -= _told_bytes(key.data)
            last = time.perf_counter()
            if last > deadline:
                raise click.ClickException(f"{left:,} bytes never came")
        selector.close()
        return last

    def close(self) -> None:
        for one in self.sockets:
            one.close()


def _told_bytes(one: FrameSocket) -> int:
    """How many bytes have come but for pings, which are answered: text has none of their bytes."""
    received = one.socket.recv(RECEIVE_BYTES)
    while received.endswith(PING_FRAME[:1]):
        # Half a ping: the other half is on its way.
        received += one.socket.recv(1)
    pings = received.count(PING_FRAME)
    for _ in range(pings):
        one.pong()
    return len(received) - pings * len(PING_FRAME)


def _subscription() -> bytes:
    params = {"channel": "trades", "symbols": [SYMBOL]}
    return msgspec.json.encode({"method": "subscribe", "params": params})


def _trade() -> list[Command]:
    """Two orders, one trade: one stream entry."""
    order = {
        "method": "place_order",
        "account": ACCOUNT,
        "order_type": "limit",
        "price": "100",
        "quantity": "1",
    }
    return [order | {"side": "sell"}, order | {"side": "buy"}]


class Stage:
    """The host's side: trades are made, and told by the host."""

    def __init__(self, book: Book, host: Host) -> None:
        self._book = book
        self._host = host
        self._packed = pack_commands(book.key, _trade())
        self._witness = FrameSocket(host.url)
        self._witness.ask(_subscription())

    def audience(self, count: int) -> Audience:
        return Audience(self._host.url, count, _subscription())

    def play(self, audience: Audience, listeners: int, messages: int) -> tuple[float, bytes]:
        """Deliveries a second, and one message as it was told."""
        started = time.perf_counter()
        self._book.connection.send(self._packed * messages)
        # Who witnesses is told the same, and says how many bytes that is.
        told: list[bytes] = []
        for _ in range(messages):
            self._book.connection.receive()
        while len(told) < messages:
            told += [one for one in self._witness.receive() if b'"update"' in one]
        bytes_each = sum(len(one) + _header_length(one) for one in told)
        seconds = audience.receive(listeners, bytes_each) - started
        return listeners * messages / seconds, told[-1]

    def close(self) -> None:
        self._witness.close()


def _header_length(payload: bytes) -> int:
    return 2 if len(payload) <= 125 else 4 if len(payload) <= 0xFFFF else 10


class BareStage:
    """The bare server's side: it is told what to tell."""

    def __init__(self, bare: BareHost) -> None:
        self._url = f"ws://{bare.address}/fan-out"
        self._teller = FrameSocket(f"ws://{bare.address}/tell")

    def audience(self, count: int) -> Audience:
        return Audience(self._url, count, None)

    def play(self, audience: Audience, payload: bytes, messages: int) -> float:
        """Deliveries a second of a loop of sends."""
        listeners = len(audience.sockets)
        started = time.perf_counter()
        self._teller.send(masked_frame(b"%d\n%b" % (messages, payload)))
        bytes_each = messages * (len(payload) + _header_length(payload))
        return listeners * messages / (audience.receive(listeners, bytes_each) - started)

    def close(self) -> None:
        self._teller.close()


def measure(scale: Scale, _: Path | None) -> list[Figure]:
    """Every line of the part."""
    _make_room(2 * scale.listeners + SOCKETS_SPARE)
    with (
        open_server(None) as url,
        start_hosts(url, 1) as (host,),
        BareHost() as bare,
        open_book(url, SYMBOL) as book,
    ):
        book.define(tick_size="1", lot_size="1")
        stage, bare_stage = Stage(book, host), BareStage(bare)
        ours, our_bytes = _seat(host.pid, stage, scale.listeners)
        theirs, their_bytes = _seat(bare.pid, bare_stage, scale.listeners)
        delivered = _delivered(stage, bare_stage, (ours, theirs), scale)
        stalled = _stalled(stage, ours, scale)
    memory = Figure(
        f"memory per idle subscriber of {scale.listeners:,}, to a bare websocket's",
        our_bytes,
        "bytes",
        our_bytes / their_bytes,
    )
    return [delivered, at_most(memory, MEMORY_TARGET), stalled]


def _make_room(sockets: int) -> None:
    """Both ends of each socket need a file descriptor; children inherit the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < sockets:
        raise click.ClickException(f"{sockets} open files are needed, the limit is {hard}")
    if soft != resource.RLIM_INFINITY and soft < sockets:
        resource.setrlimit(resource.RLIMIT_NOFILE, (sockets, hard))


def _seat(pid: int, stage: Stage | BareStage, count: int) -> tuple[Audience, float]:
    """Listeners, and how much memory each of them costs the server."""
    # What the first ones bring is not the listeners'.
    stage.audience(count // 10).close()
    time.sleep(QUIET_S)
    before = memory_bytes(pid)
    audience = stage.audience(count)
    return audience, (memory_bytes(pid) - before) / count


def _delivered(
    stage: Stage, bare_stage: BareStage, audiences: tuple[Audience, Audience], scale: Scale
) -> Figure:
    ours, theirs = audiences
    told, bare = [], []
    for _ in range(scale.rounds + 1):
        deliveries, payload = stage.play(ours, scale.listeners, scale.messages)
        told.append(deliveries)
        bare.append(bare_stage.play(theirs, payload, scale.messages))
    figure = Figure(
        f"deliveries to {scale.listeners:,} subscribers, to a bare loop of sends",
        statistics.median(told[1:]),
        "1/s",
        median_ratio(told[1:], bare[1:]),
    )
    return at_least(figure, DELIVERED_TARGET)


def _stalled(stage: Stage, audience: Audience, scale: Scale) -> Figure:
    """The same with one more subscriber, who reads nothing: before, beside and after it."""
    without, beside = [], []
    for _ in range(2 * scale.rounds):
        before = stage.play(audience, scale.listeners, scale.messages)[0]
        sleeper = stage.audience(1)
        beside.append(stage.play(audience, scale.listeners, scale.messages)[0])
        sleeper.close()
        after = stage.play(audience, scale.listeners, scale.messages)[0]
        without.append((before + after) / 2)
    figure = Figure(
        "deliveries beside a stalled subscriber, to without it",
        statistics.median(beside),
        "1/s",
        median_ratio(beside, without),
    )
    return at_least(figure, STALLED_TARGET)
