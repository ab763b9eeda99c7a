"""Books rebuilt from their event streams: by the mirror alone, and by `orderbook replay`."""

import json
import random
import re
from collections.abc import Iterator

import pytest
from click.testing import Result
from redis import Redis

from books import Book
from conftest import ROOT, NewBook
from flow import RULES, random_batches
from orderbook.cli import shared
from orderbook.demo.market import MARKETS, seed_commands
from orderbook.feed.mirror import NUMBER_FLAGS, TEXT_FLAGS
from orderbook.processes.embedded_server import EmbeddedServer
from servers import load_library
from test_cli import Orderbook

pytestmark = pytest.mark.exhaustive

SYMBOL = "BTC-USDT"


@pytest.mark.parametrize("seed", range(3))
def test_a_book_after_random_flow_is_what_its_stream_tells(new_book: NewBook, seed: int) -> None:
    book = new_book()
    book.define(**RULES)
    for batch in random_batches(random.Random(seed), 120):
        book.execute(*batch)
    assert book.mirrored().book.orders
    book.assert_is_what_its_stream_tells()


def test_more_orders_than_one_chunk_of_the_hash(book: Book) -> None:
    """verify_book folds 500 orders of a side at a time."""
    order = {"method": "place_order", "account": "alice", "order_type": "limit", "quantity": "1"}
    for side, price in (("buy", "10"), ("sell", "20")):
        orders = [order | {"side": side, "price": price}] * 251
        for _ in range(2):
            book.execute(*orders)
    book.assert_is_what_its_stream_tells()


def test_flags_are_those_of_the_record() -> None:
    """A flag that is new in the engine must be known to the mirror too, at its place."""
    text = (ROOT / "lua" / "records" / "order_record.lua").read_text("utf-8")
    for name, known in (("number_flags", NUMBER_FLAGS), ("text_flags", TEXT_FLAGS)):
        found = re.search(rf"local {name} = {{(.*?)}}", text, re.DOTALL)
        assert found is not None
        assert tuple(re.findall(r'"(\w+)"', found[1])) == known


# ---- the command


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedServer]:
    with EmbeddedServer() as running:
        yield running


@pytest.fixture
def redis(server: EmbeddedServer) -> Iterator[Redis]:
    with Redis.from_url(server.url) as client:
        client.flushall()
        load_library(client, "valkey")
        yield client


@pytest.fixture
def stored(redis: Redis) -> Book:
    """A seeded book with some trades."""
    market = MARKETS[0]
    book = Book(redis, SYMBOL)
    book.define(**market.rules)
    book.execute(*seed_commands(market, 20, 1))
    for side, price in (("buy", "97300"), ("sell", "97200")):
        book.limit("dave", side, "1", price, client_order_id=side)
    book.ask("begin_epoch", run_id="b" * 40)
    return book


@pytest.fixture
def orderbook(server: EmbeddedServer) -> Orderbook:
    return Orderbook(server.url)


def replayed(orderbook: Orderbook, *options: str) -> Result:
    return orderbook("replay", SYMBOL, "--json", *options)


def test_a_replayed_book_is_the_stored_one(orderbook: Orderbook, stored: Book) -> None:
    verdict = stored.read("verify_book")
    summary = orderbook.json("replay", SYMBOL, "--depth", "3")
    assert summary.pop("bids") == stored.read("get_book", depth="3")["bids"]
    assert summary.pop("asks") == stored.read("get_book", depth="3")["asks"]
    assert summary == {
        "symbol": SYMBOL,
        "orders": verdict["orders"],
        "levels": verdict["levels"],
        "sequence": verdict["sequence"],
        "epoch": stored.read("get_instrument")["epoch"],
        "state_hash": verdict["state_hash"],
        "stored_sequence": verdict["sequence"],
        "stored_state_hash": verdict["state_hash"],
        "stored_verified": True,
        "equal": True,
    }
    shown = orderbook("replay", SYMBOL, "--depth", "1").stdout
    assert verdict["state_hash"] in shown
    assert f"{SYMBOL} sequence {verdict['sequence']}" in shown


def test_a_book_is_shown_as_it_was(orderbook: Orderbook, stored: Book) -> None:
    before = {name: stored.read("get_book", depth="full")[name] for name in ("bids", "asks")}
    at = stored.sequence()
    state_hash = stored.state_hash()
    stored.limit("dave", "buy", "9", "99999")
    summary = orderbook.json("replay", SYMBOL, "--to", str(at), "--depth", "1000")
    assert {name: summary[name] for name in ("bids", "asks")} == before
    assert (summary["sequence"], summary["state_hash"]) == (at, state_hash)
    assert summary["equal"] is None
    too_far = orderbook("replay", SYMBOL, "--to", "100000")
    assert too_far.exit_code == shared.EXIT_SERVER
    assert f"stands at {stored.sequence()}" in too_far.stderr


def test_a_book_that_is_not_what_its_stream_tells_is_found(
    orderbook: Orderbook, stored: Book
) -> None:
    """An order's record is changed by hand, so that the book is whole in itself all the same."""
    order_id = stored.read("get_level3", depth="full")["bids"][-1][2]
    record = stored.client.hget(f"{stored.key}:orders", order_id).decode()
    quantity = record.split()[2]
    changed = record.replace(f" {quantity} ", f" {int(quantity) + 1} ", 1)
    stored.client.hset(f"{stored.key}:orders", order_id, changed)
    assert stored.read("verify_book")["verified"] is True
    result = replayed(orderbook)
    assert result.exit_code == 1
    assert json.loads(result.stdout)["equal"] is False


def test_a_damaged_book_is_not_equal(orderbook: Orderbook, stored: Book) -> None:
    stored.client.hset(f"{stored.key}:bids:levels", "1", "77")
    result = replayed(orderbook)
    assert result.exit_code == 1
    summary = json.loads(result.stdout)
    assert (summary["equal"], summary["stored_verified"]) == (False, False)


def test_a_stream_that_was_trimmed_says_what_to_do(orderbook: Orderbook, stored: Book) -> None:
    stored.client.xtrim(stored.stream_key("events"), minid="3-0", approximate=False)
    result = orderbook("replay", SYMBOL)
    assert result.exit_code == shared.EXIT_SERVER
    assert "begins at sequence 3" in result.stderr
    assert "--events-length-max" in result.stderr


def test_a_stream_with_a_hole_is_told(orderbook: Orderbook, stored: Book) -> None:
    stored.client.xdel(stored.stream_key("events"), "2-0")
    assert "lacks sequence 2 (goes on with 3)" in orderbook("replay", SYMBOL).stderr
    last = stored.sequence()
    stored.client.xadd(stored.stream_key("events"), {"x": "y"}, id=f"{last + 1}-0")
    stored.client.delete(stored.stream_key("events"))
    assert "lacks sequence 1 (ends before it)" in orderbook("replay", SYMBOL).stderr


def test_an_unknown_book_cannot_be_replayed(orderbook: Orderbook, redis: Redis) -> None:
    assert redis.dbsize() == 0
    assert replayed(orderbook).exit_code == shared.EXIT_REJECTED


def test_the_book_is_shown_order_by_order(orderbook: Orderbook, stored: Book) -> None:
    level3 = stored.read("get_level3", depth="2")
    assert orderbook.json("book", SYMBOL, "--orders", "--depth", "2") == level3
    lines = orderbook("book", SYMBOL, "--orders", "--depth", "2").stdout.splitlines()
    price, quantity, order_id, priority = level3["bids"][0]
    assert f"buy {price} {quantity} {order_id} {priority}" in lines
    assert orderbook("book", SYMBOL, "--orders", "--watch").exit_code == shared.EXIT_USAGE
