"""A book that an earlier library stored: each rule and each counter in a field of its own."""

import pytest
from redis import Redis
from redis.exceptions import ResponseError

from books import Book, overwrite, stored_fields


def age(book: Book) -> None:
    """Stores the book's own hash as earlier libraries did."""
    fields = stored_fields(book.client, book.key)
    book.client.delete(book.key)
    book.client.hset(book.key, mapping=fields)


def furnish(book: Book) -> None:
    book.limit("alice", "sell", "5", "101")
    book.limit("bob", "buy", "2", "101")
    terms = {"side": "buy", "order_type": "stop", "stop_price": "120", "quantity": "2"}
    book.ask("place_order", account="carol", **terms)


def test_a_book_of_the_old_layout_is_read_as_it_is(book: Book) -> None:
    furnish(book)
    asked = ("get_instrument", "get_book", "get_level3", "verify_book")
    before = [book.read(function) for function in asked]
    age(book)
    assert [book.read(function) for function in asked] == before
    assert not book.client.hexists(book.key, "state")


def test_the_first_change_stores_it_anew_and_goes_on(book: Book) -> None:
    furnish(book)
    age(book)
    reply = book.limit("dave", "buy", "1", "101", client_order_id="d1")
    assert [fill["maker_order_id"] for fill in reply["fills"]] == ["1"]
    assert (reply["order_id"], reply["fills"][0]["trade_id"]) == ("4", "2")
    names = set(book.client.hkeys(book.key))
    assert {b"rules", b"state", b"extended"} <= names
    assert not names & {b"tick_size", b"sequence", b"last_price", b"epoch"}
    book.assert_is_what_its_stream_tells()


def test_rules_of_the_old_layout_can_be_changed(book: Book) -> None:
    furnish(book)
    age(book)
    told = book.ask("define_instrument", status="cancel_only", min_quantity="2")
    assert (told["status"], told["min_quantity"]) == ("cancel_only", "2")
    assert told == {**book.read("get_instrument")}
    book.assert_is_what_its_stream_tells()


def test_a_trigger_queue_of_an_earlier_library_is_gone_on_with(book: Book) -> None:
    """`price@order_id@bound`: the order waits in its queue, and the price is shown to it again."""
    furnish(book)
    book.limit("alice", "sell", "9", "120")
    overwrite(book.client, book.key, agenda="12000@3@")
    assert book.ask("tick")["triggered_count"] == 1
    book.assert_is_what_its_stream_tells()


def test_a_retry_finds_a_reply_in_a_previous_generation_of_an_earlier_library(book: Book) -> None:
    """When the current one began was stored alone, whether there was one before or not."""
    first = book.limit("dave", "buy", "1", "90", client_order_id="d1")
    current = f"{book.key}:stored_replies:dave"
    book.client.rename(current, f"{current}:previous")
    book.client.hset(current, "generation start_ms", str(first["timestamp_ms"]))
    assert book.limit("dave", "buy", "1", "90", client_order_id="d1") == first
    command = {"method": "place_order", "account": "dave", "side": "buy", "order_type": "limit"}
    terms = {"quantity": "1", "price": "90", "client_order_id": "d1"}
    assert book.execute({**command, **terms}) == [first]


def test_a_user_who_may_not_take_the_old_fields_away_changes_nothing(book: Book) -> None:
    if "fakeredis" in str(type(book.client)):
        pytest.skip("fakeredis has no users")
    furnish(book)
    age(book)
    rights = ("reset", "on", ">p", "~*", "&*", "+@all", "-hdel")
    book.client.execute_command("ACL", "SETUSER", "migrant", *rights)
    options = book.client.connection_pool.connection_kwargs
    address = f"{options['host']}:{options['port']}/{options.get('db', 0)}"
    limited = Redis.from_url(f"redis://migrant:p@{address}", protocol=2)
    before = stored_fields(book.client, book.key)
    with pytest.raises(ResponseError, match="HDEL"):
        Book(limited, book.symbol).limit("dave", "buy", "1", "90")
    limited.close()
    assert stored_fields(book.client, book.key) == before


def test_timers_alone_leave_the_old_layout_as_it_is(book: Book) -> None:
    furnish(book)
    age(book)
    book.ask("cancel_all_after", account="alice", timeout_ms="60000")
    assert book.client.hget(book.key, "timers") == b"1"
    assert book.read("get_instrument")["sequence"] == 4
    book.limit("alice", "sell", "1", "102")
    book.assert_is_what_its_stream_tells()
