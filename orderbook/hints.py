"""What a refusal says of a value: what is allowed, and the nearest right form of what was given.

The engine says so of what it judges (lua/values/hints.lua). Here is what a host judges itself:
names of methods and channels, and symbols that there are not.
"""

from collections.abc import Iterable

# Nobody writes more by mistake.
GIVEN_LENGTH_MAX = 64


def nearest(words: Iterable[str], given: str) -> str | None:
    """Return the one of the words that differs only in case, dashes, underscores, dots, slashes and
    blanks, or None where there is none or more than one."""
    if len(given) > GIVEN_LENGTH_MAX:
        return None
    found = [word for word in words if _bare(word) == _bare(given)]
    return found[0] if len(found) == 1 else None


def with_nearest(rule: str, words: Iterable[str], given: str) -> str:
    """Return a rule with what to write in place of a value, where there is something."""
    found = nearest(words, given)
    return rule if found is None else f"{rule}: write {found}"


def _bare(text: str) -> str:
    return "".join(letter for letter in text.lower() if letter.isalnum())
