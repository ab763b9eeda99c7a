"""What clients may do and cost on one host: limits, and allowances that fill up with time, of a
connection and of an address."""

import ipaddress
import time
from collections.abc import Callable
from dataclasses import dataclass

# For how long what a client does not use is saved up for it.
REQUESTS_SAVED_S_MAX = 2.0
QUERIES_SAVED_S_MAX = 20.0
# The most that one query weighs: see queries.py.
WEIGHT_MAX = 20
# The prefix of an IPv6 network that one customer has.
IPV6_PREFIX_BITS = 64

Clock = Callable[[], float]


class Allowance:
    """So much a second, saved up to a maximum; 0 a second is no limit at all."""

    __slots__ = ("_clock", "_left", "_per_s", "_told_at", "saved_max")

    def __init__(self, per_s: float, saved_max: float, clock: Clock) -> None:
        self._per_s = per_s
        self._clock = clock
        self.saved_max = saved_max
        self._left = saved_max
        self._told_at = clock()

    @property
    def is_full(self) -> bool:
        """Whether nothing has been taken for long."""
        self._fill_up()
        return self._left >= self.saved_max

    def wait_s(self, amount: float) -> float:
        """In how many seconds so much can be taken; 0 where it is there."""
        if not self._per_s:
            return 0.0
        self._fill_up()
        return max(0.0, (amount - self._left) / self._per_s)

    def take(self, amount: float) -> None:
        """Takes it also where it is not there: the debt is at most what can be saved."""
        if self._per_s:
            self._fill_up()
            self._left = max(self._left - amount, -self.saved_max)

    def _fill_up(self) -> None:
        now = self._clock()
        self._left = min(self.saved_max, self._left + (now - self._told_at) * self._per_s)
        self._told_at = now


class Address:
    """What the connections of one address share."""

    def __init__(self, requests: Allowance, queries: Allowance) -> None:
        self.connections_count = 0
        self.requests = requests
        self.queries = queries


class Addresses:
    """The addresses that are connected, or have been until their allowances are full again."""

    def __init__(self, make: Callable[[], Address]) -> None:
        self._make = make
        self._addresses: dict[str, Address] = {}

    def __len__(self) -> int:
        return len(self._addresses)

    def find(self, text: str) -> Address:
        """The address of a client."""
        name = network(text)
        address = self._addresses.get(name)
        if address is None:
            address = self._addresses[name] = self._make()
        return address

    def forget(self) -> None:
        """Forgets those of which nothing need be known."""
        gone = [
            name
            for name, address in self._addresses.items()
            if not address.connections_count
            and address.requests.is_full
            and address.queries.is_full
        ]
        for name in gone:
            del self._addresses[name]


def network(text: str) -> str:
    """Who an address stands for: itself, or of IPv6 the network, of which one customer has all."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return text
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((int(address), IPV6_PREFIX_BITS), strict=False))


@dataclass(frozen=True)
class Limits:
    """What one host allows. Bytes are bytes that the client has not read yet; 0 a second, and 0
    connections of an address, is no limit."""

    connections_max: int = 10_000
    connections_per_address_max: int = 0
    subscriptions_per_connection_max: int = 1_000
    # Commands that have not run yet, and those that have and wait until they are safe.
    in_flight_per_connection_max: int = 256
    unconfirmed_per_connection_max: int = 4_096
    queries_per_connection_max: int = 32
    # Frames that the host itself answers: pings, subscriptions, what is refused.
    requests_per_s_max: float = 200.0
    requests_per_address_per_s_max: float = 2_000.0
    # Weight of expensive queries: see queries.py.
    query_weight_per_s_max: float = 10.0
    query_weight_per_address_per_s_max: float = 50.0
    frame_bytes_max: int = 16 * 1024
    book_buffer_bytes_max: int = 64 * 1024
    stream_buffer_bytes_max: int = 1024 * 1024
    # A client may send a long burst before it reads the first answer: some may hold this much.
    answer_buffer_bytes_max: int = 64 * 1024 * 1024
    large_answer_buffers_max: int = 16
    # Sockets that are no websockets yet: for how long, and how many of them.
    handshake_timeout_s: float = 10.0
    handshakes_max: int = 1_000
    stalled_s_max: float = 30.0
    idle_s_max: float = 600.0

    def requests(self) -> Allowance:
        """Of one connection."""
        return _requests(self.requests_per_s_max)

    def queries(self) -> Allowance:
        """Of one connection."""
        return _queries(self.query_weight_per_s_max)

    def address(self) -> Address:
        """What the connections of one address share."""
        return Address(
            _requests(self.requests_per_address_per_s_max),
            _queries(self.query_weight_per_address_per_s_max),
        )


def _requests(per_s: float) -> Allowance:
    return Allowance(per_s, max(1.0, per_s * REQUESTS_SAVED_S_MAX), time.monotonic)


def _queries(per_s: float) -> Allowance:
    return Allowance(per_s, max(WEIGHT_MAX, per_s * QUERIES_SAVED_S_MAX), time.monotonic)
