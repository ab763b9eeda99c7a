"""The host's numbers for Prometheus, in a registry of their own.

Labels are methods, codes and channels: sets that we fix. Never an account, an order or anything
else that a client chooses, or one client could fill the memory of everybody's monitoring.
"""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from orderbook.messages import RejectCode

LATENCY_BUCKETS_S = (
    *(0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05),
    *(0.1, 0.2, 0.5, 1.0, 2.0, 5.0),
)
_CODES = frozenset(RejectCode)
_REJECTED_CODE_AT = len(b'{"status":"rejected","code":"')


class Metrics:
    """What one host process counts and measures."""

    def __init__(self) -> None:
        registry = CollectorRegistry()
        self._registry = registry
        self.connections = Gauge(
            "orderbook_connections", "Open websocket connections.", registry=registry
        )
        self.commands = Counter(
            "orderbook_commands", "Commands answered.", ["method"], registry=registry
        )
        self.rejects = Counter(
            "orderbook_rejects", "Requests refused, by code.", ["code"], registry=registry
        )
        self.call_seconds = Histogram(
            "orderbook_call_seconds",
            "Time of one execute call to Redis.",
            buckets=LATENCY_BUCKETS_S,
            registry=registry,
        )
        self.acknowledgement_seconds = Histogram(
            "orderbook_acknowledgement_seconds",
            "Time from a command's arrival to its answer.",
            buckets=LATENCY_BUCKETS_S,
            registry=registry,
        )
        self.messages_sent = Counter(
            "orderbook_messages_sent",
            "Messages given to subscribers, by channel.",
            ["channel"],
            registry=registry,
        )
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

    def count_sent(self, channel: str, count: int) -> None:
        """Counts messages given to subscribers."""
        self.messages_sent.labels(channel).inc(count)

    def count_reply(self, method: str, reply: bytes) -> None:
        """Counts a command's answer, and its code when it was refused."""
        self.commands.labels(method).inc()
        if reply.startswith(b'{"status":"rejected"'):
            end = reply.find(b'"', _REJECTED_CODE_AT)
            self.count_reject(reply[_REJECTED_CODE_AT:end].decode())

    def count_reject(self, code: str) -> None:
        """Counts a refusal. A code that is not ours would come from a newer library."""
        self.rejects.labels(code if code in _CODES else "OTHER").inc()

    def text(self) -> bytes:
        """Everything in the Prometheus text format."""
        return generate_latest(self._registry)
