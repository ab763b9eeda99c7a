"""A Redis user that lacks a right: every call that needs it is refused whole.

Redis asks for the right at each single write of a function, and takes nothing back. So the library
asks before its first write. Each command of the fault tests runs here as a user that lacks one
write command, or one kind of key.
"""

from collections.abc import Callable
from typing import Any

import pytest
from redis import Redis
from redis.exceptions import NoPermissionError

from books import Book
from servers import HOST
from test_faults import CASES, DISCOVERY_KEY, Case, prepared, run_recorded, shimmed

pytestmark = pytest.mark.exhaustive

__all__ = ["prepared", "shimmed"]

USER, PASSWORD = "limited", "secret"


def grant(client: Any, *rules: str) -> Book:
    """The book as a user with these rights sees it."""
    client.execute_command("ACL", "SETUSER", USER, "reset", "on", f">{PASSWORD}", *rules)
    port = client.connection_pool.connection_kwargs["port"]
    return Book(Redis(host=HOST, port=port, username=USER, password=PASSWORD), "FAULT")


def digest(client: Any) -> bytes:
    return bytes(client.execute_command("DEBUG", "DIGEST"))


def check_refused_whole(
    prepare: Callable[[Case], Book], case: Case, expected: Any, rules: tuple[str, ...]
) -> None:
    """What a user asks without these rights is refused and changes nothing."""
    book = prepare(case)
    limited = grant(book.client, *rules)
    before = digest(book.client)
    with pytest.raises(NoPermissionError):
        case.run(limited)
    limited.client.close()
    assert digest(book.client) == before, rules
    assert case.run(book) == expected, f"after a refusal for {rules}"
    if case.stream is not None:
        book.state_hash()


@pytest.mark.parametrize("name", CASES)
def test_user_without_one_write_command_changes_nothing_by_halves(
    prepared: Callable[[Case], Book],
    name: str,
) -> None:
    case = CASES[name]
    expected, made = run_recorded(prepared(case), case)
    written = {call.command for call in made if call.writes and call.key != DISCOVERY_KEY}
    for command in sorted(written):
        check_refused_whole(prepared, case, expected, ("~*", "+@all", f"-{command.lower()}"))


@pytest.mark.parametrize(
    "name", ["place_with_id", "place_and_sweep", "cancel", "amend_price", "execute", "quote_again"]
)
def test_user_without_one_kind_of_key_changes_nothing_by_halves(
    prepared: Callable[[Case], Book],
    name: str,
) -> None:
    case = CASES[name]
    expected, made = run_recorded(prepared(case), case)
    written = {call.key for call in made if call.writes}
    for key in sorted(written):
        writable = [f"%RW~{other}" for other in written if other != key]
        check_refused_whole(prepared, case, expected, ("+@all", "%R~*", *writable))
