"""A hash slot that is being moved to another node: every call is refused before it begins.

While a slot moves, some keys of a book are on the source and some on the target. A key that is
missing on one of them may be on the other, so neither can tell what the book is. Each function is
called on both nodes, at each stage of a move, by a client that declares the book's key only.
"""

from collections.abc import Iterator
from typing import Any

import pytest
from redis.exceptions import RedisError, TryAgainError

from books import Book
from servers import HOST, Server, load_library, running_cluster
from test_cluster import owner
from test_faults import (
    CASES,
    Case,
    a_minute_later,
    arm_timers,
    break_soon,
    due_to_expire,
    has_broken,
    let_run_out,
    let_run_out_in_vain,
    nothing,
    populate_at_noon,
    three_books,
    three_books_due_to_expire,
)

pytestmark = pytest.mark.exhaustive

# These need a clock that tests move, which a cluster's library cannot read.
NEEDS_CLOCK = {
    arm_timers, due_to_expire, nothing, let_run_out, let_run_out_in_vain, populate_at_noon,
    a_minute_later, break_soon, has_broken, three_books, three_books_due_to_expire,
}  # fmt: skip
SYMBOL = "MOVED"


@pytest.fixture(scope="module")
def cluster(engine: str) -> Iterator[list[Server]]:
    if engine == "fakeredis":
        pytest.skip("fakeredis is no cluster")
    with running_cluster(engine) as servers:
        for server in servers:
            load_library(server.client, engine)
        yield servers


class AskingClient:
    """A client that was sent to the target of a move: ASKING goes before each call."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def execute_command(self, *words: Any) -> Any:
        asking = self._client.pipeline(transaction=False)
        asking.execute_command("ASKING")
        asking.execute_command(*words)
        return asking.execute()[-1]


class Move:
    """The move of a book's slot to another node, as redis-cli would do it, step by step."""

    def __init__(self, cluster: list[Server]) -> None:
        self.source = owner(cluster, "main")
        self.target = next(server for server in cluster if server is not self.source)
        self.book = Book(self.source.client, SYMBOL)
        self.slot = self._ask(self.source, "CLUSTER", "KEYSLOT", self.book.key)

    def _ask(self, server: Server, *words: Any) -> Any:
        return server.client.execute_command(*words)

    def begin(self) -> None:
        ids = [self._ask(node, "CLUSTER", "MYID") for node in (self.source, self.target)]
        self._ask(self.target, "CLUSTER", "SETSLOT", self.slot, "IMPORTING", ids[0])
        self._ask(self.source, "CLUSTER", "SETSLOT", self.slot, "MIGRATING", ids[1])

    def carry(self, keys: list[bytes]) -> None:
        for key in keys:
            self._ask(self.source, "MIGRATE", HOST, self.target.port, key, 0, 5000)

    def give_up(self) -> None:
        """The slot stays where it was, and what was carried is forgotten."""
        for node in (self.source, self.target):
            self._ask(node, "CLUSTER", "SETSLOT", self.slot, "STABLE")

    def contents(self) -> list[bytes]:
        return [self._ask(node, "DEBUG", "DIGEST") for node in (self.source, self.target)]

    def refuses(self, case: Case, client: Any) -> None:
        """A call on one of the nodes is refused, and neither has changed."""
        before = self.contents()
        with pytest.raises(TryAgainError):
            case.run(Book(client, SYMBOL))
        assert self.contents() == before


@pytest.fixture
def move(cluster: list[Server]) -> Iterator[Move]:
    for server in cluster:
        server.client.flushall()
    found = Move(cluster)
    yield found
    found.give_up()


@pytest.mark.parametrize("name", [n for n in CASES if CASES[n].prepare not in NEEDS_CLOCK])
def test_call_is_refused_whole_while_the_slot_moves(move: Move, name: str) -> None:
    case = CASES[name]
    case.prepare(move.book)
    move.begin()
    move.refuses(case, move.source.client)
    keys = move.book.stored_keys()
    halves = [key for key in keys if key != move.book.key.encode()][::2]
    move.carry(halves)
    move.refuses(case, move.source.client)
    move.carry([move.book.key.encode()])
    move.refuses(case, AskingClient(move.target.client))
    with pytest.raises(RedisError):
        case.run(move.book)


def test_book_goes_on_when_its_slot_has_moved(move: Move, cluster: list[Server]) -> None:
    CASES["place"].prepare(move.book)
    before = move.book.state_hash()
    move.begin()
    move.carry(move.book.stored_keys())
    target_id = move.target.client.execute_command("CLUSTER", "MYID")
    for node in (move.target, move.source, *cluster):
        node.client.execute_command("CLUSTER", "SETSLOT", move.slot, "NODE", target_id)
    moved = Book(move.target.client, SYMBOL)
    assert moved.state_hash() == before
    assert moved.limit("erin", "buy", "3", "98.5")["status"] == "open"
    assert moved.limit("erin", "buy", "12", "102")["fills"]
    moved.state_hash()
