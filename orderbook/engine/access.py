"""The least rights of Redis users, as ACL lines: of who loads the library, hosts and readers.

What the functions run is listed in lua/server/access.lua, for Redis asks for the right at each
command that a function runs. Listed here is what comes over the connections besides.
"""

import re
from dataclasses import dataclass
from enum import StrEnum
from functools import cache

from orderbook.engine.library import lua_directory
from orderbook.messages import Durability

_LIST = re.compile(r"^access\.(\w+) = \{(.*?)\}$", re.DOTALL | re.MULTILINE)
_COMMAND = re.compile(r'"([A-Z]+)"')
_STREAMS = ("client|id", "client|unblock", "xrange", "xread", "xrevrange")
_CLUSTER = ("asking", "cluster|slots", "command")
# Waits for the disk look at the settings of the server, and at its clock.
_DURABILITY = {
    Durability.FSYNC: ("config|get", "pexpire", "set", "time", "waitaof"),
    Durability.REPLICA: ("pexpire", "set", "wait"),
}


class Role(StrEnum):
    """Who connects to Redis."""

    LOADER = "loader"
    HOST = "host"
    READER = "reader"


@dataclass(frozen=True)
class Setting:
    """What the rights of a role depend on."""

    is_cluster: bool = False
    durability: Durability = Durability.MEMORY


@cache
def function_commands(*names: str) -> frozenset[str]:
    """Return the commands of these lists of lua/server/access.lua, in lower case."""
    lists = dict(_LIST.findall((lua_directory() / "server" / "access.lua").read_text("utf-8")))
    found = {command for name in names for command in _COMMAND.findall(lists[name])}
    return frozenset(command.lower() for command in found)


def rights(role: Role, setting: Setting) -> tuple[str, frozenset[str]]:
    """Return the pattern of the keys and the commands that a role needs."""
    commands = {"info", "fcall_ro", "hgetall", *(_CLUSTER if setting.is_cluster else ())}
    if role is Role.LOADER:
        commands |= {"function|load"} | ({"cluster|nodes"} if setting.is_cluster else set())
        return "%R~orderbook:instruments", frozenset(commands - {"asking"})
    commands |= {"ping", *_STREAMS, *function_commands("reads", "keyless")}
    if role is Role.READER:
        return "%R~orderbook:*", frozenset(commands)
    commands |= {"fcall", *function_commands("writes")}
    for part in setting.durability.parts:
        commands |= set(_DURABILITY[part])
    return "~orderbook:*", frozenset(commands)


def acl_line(role: Role, setting: Setting) -> str:
    """Return the command that makes the user of a role, its password still to be filled in."""
    keys, commands = rights(role, setting)
    allowed = " ".join(f"+{command}" for command in sorted(commands))
    return f"ACL SETUSER orderbook-{role} reset on >PASSWORD {keys} {allowed}"
