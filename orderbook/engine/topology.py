"""Where the primaries are: one server, a Sentinel service or a cluster behind one small interface.

A node is one primary, with one wire that carries all commands to it. Every fresh wire first asks
the server for its run_id: so a restart or a failover is known before the first command reaches the
new server, and the engine can begin a new epoch there. Nothing is retried here: a command whose
reply was lost may have run, and only its sender can know whether to send it again.

When something is wrong with a node its wire is retired: what is on its way is still answered, and
the next command opens another one, at whatever address is then the right one.
"""

import asyncio
from collections.abc import Mapping
from typing import Any, Protocol
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from redis.asyncio import Redis
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import MasterNotFoundError, Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ReadOnlyError, RedisClusterException, RedisError, ResponseError

from orderbook.engine.durability import Confirmer
from orderbook.engine.wire import SOCKET_TIMEOUT_S, Wire, information_field, replication_id

CONNECT_TIMEOUT_S = 2.0
# Flags of nodes of a cluster that cannot be spoken to.
_UNREACHABLE = frozenset({"fail", "handshake", "noaddr"})
# For what a server says to who connects and says nothing; it does so at once.
WORDS_TIMEOUT_S = 0.5
WORDS_LENGTH_MAX = 400
REDIS_PORT_DEFAULT = 6379
SENTINEL_PORT_DEFAULT = 26379
# Beside the wires, for what is rarely asked: loading the library, health checks.
CONNECTIONS_PER_NODE_MAX = 64


class Node:
    """One primary: a wire for commands, and a client of redis-py for what is rarely asked."""

    def __init__(self, client: Redis) -> None:
        self.client = client
        self._wire: Wire | None = None
        self._opening: asyncio.Task[Wire] | None = None
        self._has_left = False
        self.confirmer = Confirmer(self.open_wire, self.distrust)

    async def wire(self) -> Wire:
        """The wire that all share. Raises what redis-py raises where no server can be reached."""
        if self._wire is not None and self._wire.is_open:
            return self._wire
        if self._opening is None:
            self._opening = asyncio.create_task(self.open_wire())
            self._opening.add_done_callback(self._opened)
        # Others may wait for the same one.
        return await asyncio.shield(self._opening)

    def _opened(self, opening: asyncio.Task[Wire]) -> None:
        self._opening = None
        if not opening.cancelled() and opening.exception() is None:
            self._wire = opening.result()
            if self._has_left:
                self._wire.retire()

    async def open_wire(self) -> Wire:
        """A wire of the caller's own, to be closed by it: for commands that wait at the server."""
        pool = self.client.connection_pool
        connection: AbstractConnection = pool.make_connection()  # type: ignore[no-untyped-call]
        try:
            return await self._opened_wire(connection)
        except MasterNotFoundError as error:
            # Its text lists the clients of all Sentinels, with everything in them.
            service = getattr(pool, "service_name", "the service")
            text = f"no Sentinel that answers knows a primary of {service}"
            raise RedisConnectionError(text) from error
        except RedisConnectionError as error:
            reason = await words_at_once(connection)
            if reason:
                raise RedisConnectionError(reason) from error
            raise

    async def _opened_wire(self, connection: AbstractConnection) -> Wire:
        try:
            await connection.connect()  # type: ignore[no-untyped-call]
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        wire = Wire(connection)
        try:
            server = await wire.call("INFO", "server")
            wire.run_id = information_field(server, "run_id")
            wire.replication_id = replication_id(await wire.call("INFO", "replication"))
        except ResponseError:
            # INFO may be forbidden to us; epochs are then somebody else's to begin.
            pass
        except BaseException:
            wire.close()
            raise
        return wire

    def distrust(self) -> None:
        """From here on commands go out on another wire."""
        if self._wire is not None:
            self._wire.retire()

    async def leave(self) -> None:
        """Lets go of a node that is no primary any more; what is on its way is still answered."""
        self._has_left = True
        self.distrust()
        await self.confirmer.close()
        await self.client.aclose()

    async def close(self) -> None:
        if self._opening is not None:
            self._opening.cancel()
        if self._wire is not None:
            self._wire.close()
            await self._wire.wait_closed()
        await self.confirmer.close()
        await self.client.aclose()


class SentinelNode(Node):
    """The primary of a service. While another server takes over, Sentinel names for a moment one
    that is none any more. It would answer queries from what it has, which may be nothing."""

    async def open_wire(self) -> Wire:
        wire = await super().open_wire()
        try:
            information = await wire.call("INFO", "replication")
        except ResponseError:
            # INFO may be forbidden to us.
            return wire
        except BaseException:
            wire.close()
            raise
        if information_field(information, "role") == "slave":
            wire.close()
            raise ReadOnlyError("the server that Sentinel names is a replica")
        return wire


async def words_at_once(server: Any) -> str:
    """What a server says to everybody who connects, before it closes: why it takes nobody in
    (protected mode, too many clients). Who sends first loses that. Empty where it says nothing.

    `server` has a host and a port.
    """
    host, port = getattr(server, "host", None), getattr(server, "port", None)
    if not host or not port:
        return ""
    try:
        async with asyncio.timeout(WORDS_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                words = await reader.readline()
            finally:
                writer.close()
    except (OSError, TimeoutError, ValueError):
        return ""
    return words[1:WORDS_LENGTH_MAX].decode(errors="replace").strip() if words[:1] == b"-" else ""


def _client_options() -> dict[str, Any]:
    """Settings of every connection; a retry object belongs to one client."""
    return {
        "protocol": 2,
        "decode_responses": False,
        "socket_timeout": SOCKET_TIMEOUT_S,
        "socket_connect_timeout": CONNECT_TIMEOUT_S,
        "socket_keepalive": True,
        "max_connections": CONNECTIONS_PER_NODE_MAX,
        "retry": Retry(NoBackoff(), 0),
    }


class Topology(Protocol):
    """Which node holds which key. `is_cluster`: keys of different segments may not share a call."""

    is_cluster: bool

    def node(self, key: str) -> Node: ...

    def nodes(self) -> list[Node]: ...

    async def every_node(self) -> list[Node]:
        """The same, with primaries that have no slots yet."""

    async def refresh(self) -> None:
        """Looks again after a node was lost or said that a key has moved."""

    async def close(self) -> None: ...


class SingleTopology:
    """One server, or whichever server Sentinel calls the primary."""

    is_cluster = False

    def __init__(self, node: Node, sentinel: Sentinel | None = None) -> None:
        self._node = node
        self._sentinel = sentinel

    def node(self, key: str) -> Node:  # noqa: ARG002
        return self._node

    def nodes(self) -> list[Node]:
        return [self._node]

    async def every_node(self) -> list[Node]:
        return self.nodes()

    async def refresh(self) -> None:
        """The next connection resolves the name, or asks Sentinel, anew."""
        self._node.distrust()

    async def close(self) -> None:
        await self._node.close()
        if self._sentinel is not None:
            for client in self._sentinel.sentinels:
                await client.aclose()


class ClusterTopology:
    """A cluster: RedisCluster knows the slots, each primary has a client of its own."""

    is_cluster = True

    def __init__(self, cluster: RedisCluster, credentials: Mapping[str, Any]) -> None:
        self._cluster = cluster
        self._credentials = credentials
        self._nodes: dict[str, Node] = {}
        self._looking: asyncio.Task[None] | None = None

    @classmethod
    async def connect(
        cls, hosts: list[tuple[str, int]], credentials: Mapping[str, Any]
    ) -> "ClusterTopology":
        startup_nodes = [ClusterNode(host, port) for host, port in hosts]
        cluster = RedisCluster(
            startup_nodes=startup_nodes,
            socket_timeout=SOCKET_TIMEOUT_S,
            socket_connect_timeout=CONNECT_TIMEOUT_S,
            **credentials,
        )
        topology = cls(cluster, credentials)
        try:
            await cluster.initialize()
        except RedisClusterException as error:
            await cluster.aclose()
            said = [await words_at_once(node) for node in startup_nodes]
            # To redis-py this is no RedisError.
            raise RedisError("; ".join(filter(None, said)) or str(error)) from error
        except BaseException:
            await cluster.aclose()
            raise
        await topology._sync()
        return topology

    def node(self, key: str) -> Node:
        owner = self._cluster.get_node_from_key(key)
        if owner is None or owner.name not in self._nodes:
            raise RedisError(f"no primary is known for the key {key}")
        return self._nodes[owner.name]

    def nodes(self) -> list[Node]:
        return list(self._nodes.values())

    async def every_node(self) -> list[Node]:
        nodes = self.nodes()
        listed = await (await nodes[0].wire()).call("CLUSTER", "NODES")
        return nodes + [self.node_at(host, port) for host, port in _without_slots(listed.decode())]

    def node_at(self, host: str, port: int) -> Node:
        """The node at an address that another node has named."""
        name = f"{host}:{port}"
        if name not in self._nodes:
            # A primary that has no slots yet. The next look keeps it, or lets it go.
            self._nodes[name] = self._open(host, port)
        return self._nodes[name]

    async def refresh(self) -> None:
        """Everybody notices at once that a node is gone: all wait for one look."""
        if self._looking is None:
            self._looking = asyncio.create_task(self._look_again())
            self._looking.add_done_callback(self._looked)
        await asyncio.shield(self._looking)

    def _looked(self, looking: asyncio.Task[None]) -> None:
        self._looking = None
        if not looking.cancelled():
            # Whoever waited has been told; nobody may be left to wait.
            looking.exception()

    async def _look_again(self) -> None:
        try:
            await self._cluster.nodes_manager.initialize()
        except RedisClusterException as error:
            raise RedisError(str(error)) from error
        await self._sync()

    async def close(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
        for node in self._nodes.values():
            await node.close()
        await self._cluster.aclose()

    async def _sync(self) -> None:
        primaries = {node.name: node for node in self._cluster.get_primaries()}
        for name in self._nodes.keys() - primaries.keys():
            await self._nodes.pop(name).leave()
        for name, primary in primaries.items():
            if name not in self._nodes:
                self._nodes[name] = self._open(primary.host, int(primary.port))

    def _open(self, host: str, port: int) -> Node:
        options = {**self._credentials, **_client_options()}
        return Node(Redis(host=host, port=port, **options))


def _without_slots(listed: str) -> list[tuple[str, int]]:
    """The addresses of primaries without slots, of what CLUSTER NODES says."""
    found = []
    for line in listed.splitlines():
        _, address, flags, *rest = line.split()
        # Slots come last; those on their way are in brackets.
        has_slots = any(not word.startswith("[") for word in rest[5:])
        if "master" not in flags.split(",") or _UNREACHABLE & set(flags.split(",")) or has_slots:
            continue
        host, _, port = address.partition("@")[0].rpartition(":")
        found.append((host, int(port)))
    return found


async def connect(url: str) -> Topology:
    """Opens redis://, rediss://, unix://, redis+sentinel://…/SERVICE or redis+cluster://….

    Raises ValueError for an address that is none, RedisError for a cluster that does not answer;
    other servers are first spoken to when they are first called.
    """
    parts = urlsplit(url)
    if parts.scheme in {"redis+sentinel", "rediss+sentinel"}:
        return _sentinel(parts)
    if parts.scheme in {"redis+cluster", "rediss+cluster"}:
        return await ClusterTopology.connect(_hosts(parts, REDIS_PORT_DEFAULT), _credentials(parts))
    options = _client_options()
    if parts.scheme == "unix":
        # A socket of the file system has no such thing.
        del options["socket_keepalive"]
    return SingleTopology(Node(Redis.from_url(url, **options)))


def _sentinel(parts: SplitResult) -> SingleTopology:
    service, _, database = parts.path.strip("/").partition("/")
    if not service:
        raise ValueError("a Sentinel address ends with the name of its service: …/SERVICE")
    query = dict(parse_qsl(parts.query))
    credentials = {
        "password": query.get("sentinel_password"),
        "username": query.get("sentinel_username"),
        "socket_timeout": CONNECT_TIMEOUT_S,
        "socket_connect_timeout": CONNECT_TIMEOUT_S,
    }
    hosts = _hosts(parts, SENTINEL_PORT_DEFAULT)
    sentinel = Sentinel(hosts, sentinel_kwargs=credentials)  # type: ignore[no-untyped-call]
    options = {**_credentials(parts), **_client_options()}
    client = sentinel.master_for(service, db=int(database or 0), **options)
    return SingleTopology(SentinelNode(client), sentinel)


def _hosts(parts: SplitResult, port_default: int) -> list[tuple[str, int]]:
    """host:port,host:port of an address; urlsplit itself knows only one of them."""
    addresses = parts.netloc.rpartition("@")[2].split(",")
    hosts = []
    for address in addresses:
        single = urlsplit(f"//{address}")
        if not single.hostname:
            raise ValueError(f"no host in {address!r}")
        hosts.append((single.hostname, single.port or port_default))
    return hosts


def _credentials(parts: SplitResult) -> dict[str, Any]:
    """Options of every connection that an address names besides its hosts."""
    username, _, password = parts.netloc.rpartition("@")[0].partition(":")
    credentials: dict[str, Any] = {}
    if parts.scheme.startswith("rediss"):
        credentials["ssl"] = True
    if username:
        credentials["username"] = unquote(username)
    if password:
        credentials["password"] = unquote(password)
    return credentials
