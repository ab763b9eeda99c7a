"""Epochs: no two histories of a book have one, and no id of a lost history is given again."""

from collections.abc import Iterator

import pytest

from books import Book
from processes import wait_until
from servers import Server, load_library, running


@pytest.fixture
def server(engine: str) -> Iterator[Server]:
    if engine == "fakeredis":
        pytest.skip("fakeredis does not restart and has no replicas")
    with running(engine, {"repl-diskless-sync-delay": "0"}) as found:
        load_library(found.client, engine)
        yield found


def epoch_of(book: Book) -> int:
    return int(book.read("get_instrument")["epoch"])


def test_book_that_is_defined_again_has_another_epoch(server: Server) -> None:
    book = Book(server.client, "AGAIN")
    epochs = set()
    for _ in range(5):
        epochs.add(book.define()["epoch"])
        server.client.flushdb()
    assert len(epochs) == 5


def test_replica_that_takes_over_begins_an_epoch_in_its_first_change(
    server: Server, engine: str
) -> None:
    """Also where nobody reports the server, and while the old primary goes on."""
    book = Book(server.client, "PROMOTED")
    book.define()
    placed = book.limit("alice", "buy", "1", "99")
    first = epoch_of(book)
    with running(engine, {"replicaof": f"127.0.0.1 {server.port}"}) as replica:
        client = replica.client
        wait_until(
            lambda: client.info("replication")["master_link_status"] == "up", "the link is up"
        )
        server.client.wait(1, 5000)
        client.execute_command("REPLICAOF", "NO", "ONE")
        copy = Book(client, book.symbol)
        lost = book.limit("bob", "buy", "1", "98")
        told = copy.limit("carol", "buy", "1", "97")
        assert told["sequence"] == lost["sequence"] == placed["sequence"] + 1
        assert told["order_id"] != lost["order_id"]
        assert int(told["order_id"]) > 1_000_000_000
        assert epoch_of(book) == first < epoch_of(copy)
        ((_, topics),) = copy.entries("events", placed["sequence"])
        assert topics["epoch"]["epoch"] == epoch_of(copy)
        assert topics["orders:carol"]["epoch"] == epoch_of(copy)
        # The next change goes on in the same epoch.
        copy.limit("dave", "sell", "1", "97")
        assert epoch_of(copy) == topics["epoch"]["epoch"]
        copy.assert_is_what_its_stream_tells()


def test_tick_of_a_new_server_begins_an_epoch(server: Server, engine: str) -> None:
    book = Book(server.client, "TICKED")
    book.define()
    first = epoch_of(book)
    with running(engine, {"replicaof": f"127.0.0.1 {server.port}"}) as replica:
        client = replica.client
        wait_until(
            lambda: client.info("replication")["master_link_status"] == "up", "the link is up"
        )
        server.client.wait(1, 5000)
        client.execute_command("REPLICAOF", "NO", "ONE")
        copy = Book(client, book.symbol)
        assert copy.ask("tick")["sequence"] == 2
        assert epoch_of(copy) > first
        assert copy.ask("tick")["sequence"] == 2
