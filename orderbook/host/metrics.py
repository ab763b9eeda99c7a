"""The host's numbers for Prometheus, in a registry of their own.

What is counted with every command is counted in plain numbers and told when somebody asks: a
counter of the library takes a lock each time, for threads that a host does not have.

Labels are methods, codes and channels: sets that we fix. Never an account, an order or anything
else that a client chooses, or one client could fill the memory of everybody's monitoring.
"""

from bisect import bisect_left
from collections import Counter as Tally
from collections.abc import Iterator
from enum import StrEnum
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from orderbook.messages import REJECTED_PREFIX, RejectCode

LATENCY_BUCKETS_S = (
    *(0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05),
    *(0.1, 0.2, 0.5, 1.0, 2.0, 5.0),
)
_CODES = frozenset(RejectCode)
_CODE_AT = len(REJECTED_PREFIX + b'"code":"')


class Latencies:
    """A histogram of seconds, in LATENCY_BUCKETS_S."""

    def __init__(self, name: str, documentation: str) -> None:
        self._name = name
        self._documentation = documentation
        self._counts = [0] * (len(LATENCY_BUCKETS_S) + 1)
        self._sum_s = 0.0

    def observe(self, seconds: float) -> None:
        self._counts[bisect_left(LATENCY_BUCKETS_S, seconds)] += 1
        self._sum_s += seconds

    def told(self) -> Metric:
        """As Prometheus has it: each bucket counts those before it, too."""
        bounds = [*map(str, LATENCY_BUCKETS_S), "+Inf"]
        buckets = list(zip(bounds, accumulate(self._counts), strict=True))
        return HistogramMetricFamily(
            self._name, self._documentation, buckets=buckets, sum_value=self._sum_s
        )


class Limited(StrEnum):
    """Which limit held a client back."""

    REQUESTS = "requests"
    QUERIES = "queries"
    ADDRESS_QUERIES = "address_queries"
    ADDRESS_CONNECTIONS = "address_connections"
    CONNECTIONS = "connections"
    HANDSHAKE_TIMEOUT = "handshake_timeout"
    HANDSHAKES = "handshakes"
    FRAGMENTS = "fragments"
    ALLOWED_HOSTS = "allowed_hosts"


class Metrics(Collector):
    """What one host process counts and measures."""

    def __init__(self) -> None:
        registry = CollectorRegistry()
        self._registry = registry
        self.connections = Gauge(
            "orderbook_connections", "Open websocket connections.", registry=registry
        )
        self.call_seconds = Latencies(
            "orderbook_call_seconds", "Time of one execute call to Redis."
        )
        self.acknowledgement_seconds = Latencies(
            "orderbook_acknowledgement_seconds", "Time from a command's arrival to its answer."
        )
        self.confirmation_seconds = Latencies(
            "orderbook_confirmation_seconds",
            "Time for which answers waited until their change was on disk or on a replica.",
        )
        self._durable: Tally[str] = Tally()
        self._commands: Tally[str] = Tally()
        self._rejects: Tally[str] = Tally()
        self._messages_sent: Tally[str] = Tally()
        self._limited: Tally[str] = Tally()
        self.books_conflated = Counter(
            "orderbook_books_conflated",
            "Books left out because the client had not read an earlier one.",
            registry=registry,
        )
        self.slow_clients_closed = Counter(
            "orderbook_slow_clients_closed",
            "Connections closed because the client did not keep up.",
            registry=registry,
        )
        self.stream_lag_seconds = Gauge(
            "orderbook_stream_lag_seconds",
            "For how long the oldest stream entry not yet read has been waiting.",
            registry=registry,
        )
        self.troubled_books = Gauge(
            "orderbook_troubled_books",
            "Books in which what is due could not be done, that cannot be read or that are gone.",
            registry=registry,
        )
        self.unreadable_books = Gauge(
            "orderbook_unreadable_books",
            "Books whose streams the server refuses to read.",
            registry=registry,
        )
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """What is counted in plain numbers, as Prometheus asks for it."""
        yield _family("orderbook_commands", "Commands answered.", "method", self._commands)
        yield _family("orderbook_rejects", "Requests refused, by code.", "code", self._rejects)
        sent = "Messages given to subscribers, by channel."
        yield _family("orderbook_messages_sent", sent, "channel", self._messages_sent)
        durable = "Commands answered that asked for more than memory, by what they were told."
        yield _family("orderbook_durable_commands", durable, "durability", self._durable)
        held = "Times that a limit held a client back, by limit."
        yield _family("orderbook_limited", held, "limit", self._limited)
        yield self.confirmation_seconds.told()
        yield self.call_seconds.told()
        yield self.acknowledgement_seconds.told()

    def count_sent(self, channel: str, count: int) -> None:
        """Counts messages given to subscribers."""
        self._messages_sent[channel] += count

    def count_durable(self, told: str) -> None:
        """Counts an answer that has waited until its change was safe, or was not confirmed."""
        self._durable[told] += 1

    def count_limited(self, limit: Limited) -> None:
        """Counts a client that was delayed, refused or closed because of a limit."""
        self._limited[limit] += 1

    def count_reply(self, method: str, reply: bytes) -> None:
        """Counts a command's answer, and its code when it was refused."""
        self._commands[method] += 1
        if reply.startswith(REJECTED_PREFIX):
            end = reply.find(b'"', _CODE_AT)
            self.count_reject(reply[_CODE_AT:end].decode())

    def count_reject(self, code: str) -> None:
        """Counts a refusal. A code that is not ours would come from a newer library."""
        self._rejects[code if code in _CODES else "OTHER"] += 1

    def text(self) -> bytes:
        """Everything in the Prometheus text format."""
        return generate_latest(self._registry)


def _family(name: str, documentation: str, label: str, tally: Tally[str]) -> Metric:
    family = CounterMetricFamily(name, documentation, labels=[label])
    for value, count in tally.items():
        family.add_metric([value], count)
    return family
