"""What a host process takes in: orders a second, how long they wait, and a burst.

The idea: a bare aiohttp server that echoes is the most any aiohttp host could do. So the same
frames, from the same connections with the same number unanswered, go to it and to a host by turns.
At half of what the host then takes, by the clock, latency counts from when an order
should have been sent. Client, host and server share the machine, two cores where this was written:
a figure of several processes at once is one of that machine, which the ratio does not heal.
"""

import selectors
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from hdrh.histogram import HdrHistogram

from figures import Figure, at_least, at_most, median_ratio
from frames import FrameSocket, masked_frame, pump
from hosts import BareHost, Host, cpu_s, start_hosts
from rig import Command, open_book, open_server

SYMBOL = "BENCH"
CONNECTIONS = 8
IN_FLIGHT = 64
ECHO_TARGET = 0.5
ACKNOWLEDGED_TARGET_MS = 10.0
TRADED_TARGET_MS = 15.0
BURST_TARGET_S = 3.0
AGE_TARGET_S = 1.0
PERCENTILE = 99.0
LATENCY_US_MAX = 60_000_000
SETTLE_TIMEOUT_S = 20.0
# How long the schedule sleeps at least: sends that are due together go out together.
STEP_S = 0.0005


@dataclass(frozen=True)
class Scale:
    """How much is measured."""

    frames: int
    rounds: int
    latency_s: float
    burst: int


FULL = Scale(40_000, 5, 10.0, 50_000)
QUICK = Scale(4_000, 1, 1.0, 5_000)


class Fill(msgspec.Struct):
    maker_order_id: str


class Placed(msgspec.Struct):
    order_id: str = ""
    fills: list[Fill] = []


class Refusal(msgspec.Struct):
    code: str


class Answer(msgspec.Struct):
    """What is looked at in an answer."""

    req_id: int
    success: bool
    result: Placed = msgspec.field(default_factory=Placed)
    error: Refusal | None = None


class Trade(msgspec.Struct):
    taker_order_id: str
    timestamp_ms: int


class Trades(msgspec.Struct):
    channel: str = ""
    trades: list[Trade] = []


_decode_answer = msgspec.json.Decoder(Answer).decode
_decode_trades = msgspec.json.Decoder(Trades).decode


def market(prefix: str, first: int, count: int) -> Iterator[Command]:
    """The commands of a small market, without account: of four, one rests, the next cancels it, and
    the last two trade with each other."""
    for number in range(first, first + count):
        name, step = f"{prefix}-{number // 4}", number % 4
        if step == 1:
            yield {"method": "cancel_order", "client_order_id": name}
            continue
        side, price = (("buy", "90"), ("", ""), ("sell", "100"), ("buy", "100"))[step]
        order = {"method": "place_order", "side": side, "order_type": "limit", "price": price}
        yield order | {"quantity": "1"} | ({"client_order_id": name} if step == 0 else {})


def market_frames(prefix: str, first: int, count: int) -> Iterator[bytes]:
    """The same as packed requests, numbered from `first` on."""
    for number, command in enumerate(market(prefix, first, count), first):
        method = command.pop("method")
        request = {"method": method, "req_id": number, "params": {"symbol": SYMBOL} | command}
        yield masked_frame(msgspec.json.encode(request))


@dataclass
class Crowd:
    """The connections of one server, and how many frames each was given."""

    sockets: list[FrameSocket]
    sent: int = 0
    refused: list[str] = field(default_factory=list)

    def pump(self, count: int, run_name: str) -> float:
        """Sends so many frames and waits for the answers: frames a second."""
        each = count // len(self.sockets)
        frames = [
            list(market_frames(f"{run_name}{index}", self.sent, each))
            for index in range(len(self.sockets))
        ]
        self.sent += each
        started = time.perf_counter()
        pump(self.sockets, frames, IN_FLIGHT, self._look)
        return each * len(self.sockets) / (time.perf_counter() - started)

    def close(self) -> None:
        for one in self.sockets:
            one.close()

    def _look(self, payload: bytes) -> None:
        if b'"success":false' in payload:
            self.refused.append(payload.decode())


def _crowd(url: str, accounts: bool) -> Crowd:
    names = [f"?account=a{index}" if accounts else "" for index in range(CONNECTIONS)]
    return Crowd([FrameSocket(url + name) for name in names])


def measure(scale: Scale, _: Path | None) -> list[Figure]:
    """Every line of the part."""
    with open_server(None) as url, start_hosts(url, 1) as (host,), BareHost() as bare:
        with open_book(url, SYMBOL) as book:
            book.define(tick_size="1", lot_size="1")
        rate_per_s, figures = _throughput(host, bare, scale)
        figures += _latency(host, rate_per_s / 2, scale.latency_s)
        figures += _burst(host, scale.burst)
        with open_book(url, SYMBOL) as book:
            assert book.read("verify_book")["verified"] is True, "the book is damaged"
    return figures


# ---- orders a second


def _throughput(host: Host, bare: BareHost, scale: Scale) -> tuple[float, list[Figure]]:
    """Acknowledged orders a second, and the lines about them."""
    ours = _crowd(host.url, accounts=True)
    echoes = _crowd(f"ws://{bare.address}/echo", accounts=False)
    taken, echoed, costs_us = [], [], []
    for number in range(scale.rounds + 1):
        echoed.append(echoes.pump(scale.frames, f"e{number}-"))
        before_s = cpu_s(host.pid)
        taken.append(ours.pump(scale.frames, f"r{number}-"))
        costs_us.append((cpu_s(host.pid) - before_s) * 1e6 / scale.frames)
    assert not ours.refused, ours.refused[:3]
    ours.close()
    echoes.close()
    # The first round has warmed both up.
    taken, echoed, costs_us = taken[1:], echoed[1:], costs_us[1:]
    figure = Figure(
        "orders acknowledged by one host, to a bare echo of the same frames",
        statistics.median(taken),
        "1/s",
        median_ratio(taken, echoed),
    )
    cost = Figure("host CPU per order", statistics.median(costs_us), "us")
    return figure.figure, [at_least(figure, ECHO_TARGET), cost]


# ---- latency


class Clockwork:
    """Orders by the clock, and when their answers and trades were there."""

    def __init__(self, url: str, rate_per_s: float) -> None:
        self.acknowledged = HdrHistogram(1, LATENCY_US_MAX, 3)
        self.traded = HdrHistogram(1, LATENCY_US_MAX, 3)
        self._crowd = _crowd(url, accounts=True)
        self._reader = FrameSocket(url + "?account=reader")
        self._reader.ask(_subscription())
        self._interval_s = 1 / rate_per_s
        # By taker: when it should have been sent, and when its trade was told.
        self._due_s: dict[str, float] = {}
        self._told_s: dict[str, float] = {}
        self._unanswered = 0

    def run(self, duration_s: float) -> None:
        """Sends for so long, then waits for what is still to come."""
        selector = selectors.DefaultSelector()
        for index, one in enumerate(self._crowd.sockets):
            selector.register(one, selectors.EVENT_READ, index)
        selector.register(self._reader, selectors.EVENT_READ, None)
        count = int(duration_s / self._interval_s)
        each = count // CONNECTIONS + 4
        waiting = [market_frames(f"l{index}", 0, each) for index in range(CONNECTIONS)]
        started = time.perf_counter()
        sent = 0
        while sent < count or self._unanswered:
            now = time.perf_counter()
            due = min(count, int((now - started) / self._interval_s) + 1)
            for index, one in enumerate(self._crowd.sockets):
                # A client writes at once what it has to send on a connection.
                numbers = range(sent + (index - sent) % CONNECTIONS, due, CONNECTIONS)
                if numbers:
                    one.send(b"".join(next(waiting[index]) for _ in numbers))
            self._unanswered += due - sent
            sent = due
            for key, _ in selector.select(STEP_S):
                if key.data is None:
                    self._hear(time.perf_counter())
                else:
                    self._learn(key.data, started)
        self._settle(selector)

    def _learn(self, index: int, started: float) -> None:
        for payload in self._crowd.sockets[index].receive():
            now = time.perf_counter()
            answer = _decode_answer(payload)
            assert answer.error is None, answer.error
            self._unanswered -= 1
            due = started + (answer.req_id * CONNECTIONS + index) * self._interval_s
            self.acknowledged.record_value(max(1, round((now - due) * 1e6)))
            if answer.result.fills:
                self._due_s[answer.result.order_id] = due

    def _hear(self, now: float) -> None:
        for payload in self._reader.receive():
            for trade in _decode_trades(payload).trades:
                self._told_s[trade.taker_order_id] = now

    def _settle(self, selector: selectors.BaseSelector) -> None:
        deadline = time.perf_counter() + SETTLE_TIMEOUT_S
        while not self._due_s.keys() <= self._told_s.keys():
            assert time.perf_counter() < deadline, "a trade was never told"
            for key, _ in selector.select(STEP_S):
                if key.data is None:
                    self._hear(time.perf_counter())
        for order_id, due in self._due_s.items():
            self.traded.record_value(max(1, round((self._told_s[order_id] - due) * 1e6)))
        self._crowd.close()
        self._reader.close()


def _subscription() -> bytes:
    params = {"channel": "trades", "symbols": [SYMBOL]}
    return msgspec.json.encode({"method": "subscribe", "params": params})


def _latency(host: Host, rate_per_s: float, duration_s: float) -> list[Figure]:
    clockwork = Clockwork(host.url, rate_per_s)
    clockwork.run(duration_s)
    acknowledged_ms = clockwork.acknowledged.get_value_at_percentile(PERCENTILE) / 1e3
    traded_ms = clockwork.traded.get_value_at_percentile(PERCENTILE) / 1e3
    at = f"at {rate_per_s:,.0f} orders/s"
    return [
        at_most(
            Figure(f"p99 from send to acknowledgement {at}", acknowledged_ms, "ms"),
            ACKNOWLEDGED_TARGET_MS,
        ),
        at_most(
            Figure(f"p99 from order to another's trade message {at}", traded_ms, "ms"),
            TRADED_TARGET_MS,
        ),
    ]


# ---- a burst


def _burst(host: Host, count: int) -> list[Figure]:
    """One connection sends all at once; another one reads the trades."""
    sender = FrameSocket(host.url + "?account=burst")
    reader = FrameSocket(host.url + "?account=reader")
    reader.ask(_subscription())
    packed = list(market_frames("b", 0, count))
    last_sent, last_answered, answers, ages_s = _send_all(sender, reader, packed)
    refused = [answer.error.code for answer in answers if answer.error is not None]
    lost = set(range(count)) - {answer.req_id for answer in answers}
    sender.close()
    reader.close()
    name = f"burst of {count:,} orders from one connection"
    return [
        at_most(
            Figure(f"{name}: lost, refused or doubled", _faults(answers, lost, refused), ""), 0
        ),
        at_most(
            Figure(f"{name}: last answer after last send", last_answered - last_sent, "s"),
            BURST_TARGET_S,
        ),
        at_most(Figure(f"{name}: oldest trade told", max(ages_s), "s"), AGE_TARGET_S),
    ]


def _faults(answers: Sequence[Answer], lost: set[int], refused: Sequence[str]) -> int:
    doubled = len(answers) - len({answer.req_id for answer in answers})
    return len(lost) + len(refused) + doubled


def _send_all(
    sender: FrameSocket, reader: FrameSocket, packed: Sequence[bytes]
) -> tuple[float, float, list[Answer], list[float]]:
    """When the last frame was taken by the network and when the last was answered, all answers,
    and how old each trade was when it was told."""
    rest = memoryview(b"".join(packed))
    traded = len(packed) // 4
    answers: list[Answer] = []
    ages_s: list[float] = []
    last_sent = last_answered = time.perf_counter()
    sender.socket.setblocking(False)
    selector = selectors.DefaultSelector()
    selector.register(sender, selectors.EVENT_READ | selectors.EVENT_WRITE, sender)
    selector.register(reader, selectors.EVENT_READ, reader)
    deadline = time.perf_counter() + SETTLE_TIMEOUT_S + len(packed) / 1000
    while len(answers) < len(packed) or len(ages_s) < traded:
        assert time.perf_counter() < deadline, f"{len(answers)} answers, {len(ages_s)} trades"
        for key, events in selector.select(STEP_S):
            if key.data is reader:
                now_ms = time.time() * 1000
                told = [trade for one in reader.receive() for trade in _decode_trades(one).trades]
                ages_s += [(now_ms - trade.timestamp_ms) / 1000 for trade in told]
                continue
            if events & selectors.EVENT_READ:
                answers += map(_decode_answer, sender.receive())
                last_answered = time.perf_counter()
            if events & selectors.EVENT_WRITE and rest:
                rest = rest[sender.socket.send(rest[: 1 << 18]) :]
                last_sent = time.perf_counter()
                if not rest:
                    selector.modify(sender, selectors.EVENT_READ, sender)
    selector.close()
    return last_sent, last_answered, answers, ages_s
