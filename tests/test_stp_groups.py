"""Groups of one trader: who may say which accounts belong to one, and for how many."""

import pytest
from redis.exceptions import ResponseError

from books import Book, assert_rejected
from conftest import NewBook
from servers import Server

GROUPS_KEY = "orderbook:{main}:stp_groups"
ACCOUNTS_MAX = 100_000


def test_group_is_set_changed_and_left(book: Book) -> None:
    whose = {"account": "grouped"}
    assert book.ask("get_stp_group", **whose) == {"account": "grouped", "segment": "main"}
    for group in ("desk1", "desk2"):
        expected = {**whose, "segment": "main", "stp_group": group}
        assert book.ask("set_stp_group", **whose, stp_group=group) == expected
        assert book.ask("get_stp_group", **whose) == expected
    assert book.ask("set_stp_group", **whose) == {"account": "grouped", "segment": "main"}
    assert book.client.hget(GROUPS_KEY, "grouped") is None


def test_group_counts_in_every_book_of_its_segment_and_in_no_other(new_book: NewBook) -> None:
    first, second = new_book(), new_book()
    first.define()
    second.define()
    first.ask("set_stp_group", account="everywhere", stp_group="desk1")
    order = {"side": "buy", "quantity": "1", "price": "9", "stp_group": "desk1"}
    assert second.ask("place_order", account="everywhere", order_type="limit", **order)["order_id"]
    elsewhere = Book(first.client, "ELSEWHERE", segment="west")
    elsewhere.define()
    refused = elsewhere.ask("place_order", account="everywhere", order_type="limit", **order)
    assert_rejected(refused, "NOT_IN_STP_GROUP")


def test_groups_are_bounded(valkey: Server) -> None:
    book = Book(valkey.client, "GROUPS")
    book.define()
    valkey.client.delete(GROUPS_KEY)
    try:
        valkey.client.hset(GROUPS_KEY, mapping={f"a{n}": "g" for n in range(ACCOUNTS_MAX)})
        refused = book.ask("set_stp_group", account="one-more", stp_group="g")
        assert_rejected(refused, "TOO_MANY_STP_GROUP_ACCOUNTS")
        assert book.ask("set_stp_group", account="a1", stp_group="h")["stp_group"] == "h"
        book.ask("set_stp_group", account="a1")
        assert book.ask("set_stp_group", account="one-more", stp_group="g")["stp_group"] == "g"
    finally:
        valkey.client.delete(GROUPS_KEY)


def test_user_without_the_right_sets_no_group(valkey: Server) -> None:
    book = Book(valkey.client, "GROUPS2")
    book.define()
    valkey.client.acl_setuser("grouper", enabled=True, nopass=True, keys=["*"], commands=["+@all"])
    client = valkey.client.__class__(port=valkey.port, username="grouper", password="any")  # noqa: S106
    arguments = (1, book.key, "account", "alice", "stp_group", "g")
    try:
        valkey.client.execute_command("ACL", "SETUSER", "grouper", "-hset")
        with pytest.raises(ResponseError, match="right to HSET"):
            client.execute_command("FCALL", "set_stp_group", *arguments)
    finally:
        client.close()
        valkey.client.acl_deluser("grouper")
