"""What is looked at before servers are used: one sentence a finding, and what to do about it.

Some findings forbid the use, others are told. An operator who wants it so accepts a finding by its
name; the version of the server and missing rights cannot be accepted.
"""

from collections.abc import Collection
from enum import StrEnum
from typing import Any, NamedTuple

from redis.asyncio import Redis
from redis.exceptions import NoPermissionError, RedisError, ResponseError

from orderbook.engine import library
from orderbook.engine.engine import Engine
from orderbook.engine.errors import EngineError
from orderbook.engine.library import node_name

REDIS_VERSION_MIN = (7, 0)
# The replies that may wait on the connection that all share, or on that of a stream reader, before
# they are read: as many whole books as may be asked for at once, and more.
OUTPUT_BUFFER_BYTES_MIN = 128 * 1024 * 1024


class Name(StrEnum):
    """What a finding is about."""

    VERSION = "version"
    RIGHTS = "rights"
    EVICTION = "eviction"
    NO_APPEND_ONLY_FILE = "no-append-only-file"
    REPLICA = "replica"
    OUTPUT_BUFFER = "output-buffer"


_FORBIDDING = frozenset({Name.VERSION, Name.RIGHTS, Name.EVICTION})
ACCEPTABLE = (Name.EVICTION, Name.NO_APPEND_ONLY_FILE, Name.REPLICA, Name.OUTPUT_BUFFER)


class Finding(NamedTuple):
    """Something about a server; one sentence for people."""

    name: Name
    node: str
    text: str

    @property
    def forbids(self) -> bool:
        return self.name in _FORBIDDING

    def __str__(self) -> str:
        return f"{self.node}: {self.text}"


class PreflightError(Exception):
    """A server that cannot, or should not, be used; the text says why, a sentence a finding."""


async def server_findings(servers: Collection[Redis]) -> list[Finding]:
    """What these servers are found to be. Raises what redis-py raises where one cannot be asked."""
    return [finding for server in servers for finding in await _of_server(server)]


async def rights_findings(engine: Engine) -> list[Finding]:
    """Whether our Redis user may run what commands need; the library must be loaded. What refuses
    commands for now (memory, replicas) is no finding: it may pass."""
    try:
        await engine.probe(())
    except EngineError as error:
        if isinstance(error.__cause__, NoPermissionError):
            text = f"{error}: `orderbook functions acl` prints the rights that hosts need"
            return [Finding(Name.RIGHTS, node_name(engine.primaries()[0]), text)]
    return []


async def reader_findings(engine: Engine) -> list[Finding]:
    """What is found where streams are read: that it cannot be asked, or is no replica of ours."""
    findings = []
    ours = {await _replication_id(primary) for primary in engine.primaries()}
    for reader in engine.readers():
        node = node_name(reader)
        try:
            told = await reader.info("replication")
        except (RedisError, OSError) as error:
            text = f"the replica at --read-url cannot be asked: {error}"
            findings.append(Finding(Name.REPLICA, node, text))
            continue
        if told.get("master_link_status") == "down":
            text = "the replica at --read-url has no connection to its primary"
            findings.append(Finding(Name.REPLICA, node, text))
        elif told.get("master_replid") not in ours:
            text = "the server at --read-url is no replica of the server that holds the books"
            findings.append(Finding(Name.REPLICA, node, text))
    return findings


def told_or_raised(findings: Collection[Finding], accepted: Collection[str]) -> list[str]:
    """The sentences to tell an operator. Raises PreflightError where a finding forbids the use."""
    new = [finding for finding in findings if finding.name not in accepted]
    forbidding = [finding for finding in new if finding.forbids]
    if forbidding:
        raise PreflightError("\n".join(map(str, forbidding)))
    return [str(finding) for finding in new]


async def _of_server(server: Redis) -> list[Finding]:
    told = await server.info()
    node = node_name(server)
    too_old = await _version_text(server, told)
    if too_old:
        return [Finding(Name.VERSION, node, too_old)]
    findings = []
    policy = str(told.get("maxmemory_policy", "noeviction"))
    if policy != "noeviction":
        # What expires is stored replies: without one a retry trades twice.
        lost = "parts of books" if policy.startswith("allkeys-") else "stored replies"
        text = (
            f"maxmemory-policy {policy} throws {lost} away when memory is full: "
            "set noeviction, or give --accept eviction"
        )
        findings.append(Finding(Name.EVICTION, node, text))
    if told.get("aof_enabled") == 0 and told.get("role") == "master":
        text = "there is no append-only file: all books are lost when the server ends"
        findings.append(Finding(Name.NO_APPEND_ONLY_FILE, node, text))
    cutting = await _cutting_limit(server)
    if cutting:
        text = (
            f"client-output-buffer-limit {cutting} can cut the connection that all commands share: "
            "set `normal 0 0 0`"
        )
        findings.append(Finding(Name.OUTPUT_BUFFER, node, text))
    return findings


async def _version_text(server: Redis, told: dict[str, Any]) -> str:
    """Why a server cannot have the library; empty where it can."""
    needed = "Redis 7.0 or later, or Valkey, is needed"
    version = str(told.get("redis_version", ""))
    numbers = library.version_key(version)[0]
    if "valkey_version" not in told and numbers and numbers < REDIS_VERSION_MIN:
        return f"Redis {version} is too old: {needed}"
    try:
        await library.installed(server)
    except ResponseError as error:
        if "unknown command" in str(error).lower():
            return f"the server has no functions: {needed}"
    return ""


async def _cutting_limit(server: Redis) -> str:
    """The limit on what may wait for a client, where it is too low; empty where it is not, or where
    we may not ask."""
    try:
        answer = await server.config_get("client-output-buffer-limit")
    except ResponseError:
        return ""
    limits = " ".join(_text(value) for value in answer.values()).split()
    for kind, *of_kind in zip(*[iter(limits)] * 4, strict=True):
        is_cutting = any(0 < int(limit) < OUTPUT_BUFFER_BYTES_MIN for limit in of_kind[:2])
        if kind == "normal" and is_cutting:
            return " ".join([kind, *of_kind])
    return ""


def _text(value: str | bytes | None) -> str:
    return value.decode() if isinstance(value, bytes) else value or ""


async def _replication_id(primary: Redis) -> str:
    return str((await primary.info("replication")).get("master_replid"))
