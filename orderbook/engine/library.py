"""The Lua library: one text made of many files, and its way onto every primary.

`FUNCTION LOAD` takes a single text and knows no `require`. The files in lua/ are ordinary modules
all the same; `bundle` sorts them by what they require, wraps each in a function of its own and
keeps a map from the lines of the bundle to the lines of the files, so that an error at
`user_function:312` is shown as `lua/book/book.lua:41`.

Who may load what: a deployer (`load`) replaces an older or different library, a host (`check`) only
fills in a missing one, and nobody replaces a newer library by an older one.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any, Protocol

import msgspec
from redis.exceptions import ResponseError

from orderbook import __version__

LIBRARY_NAME = "orderbook"
GENERATED_MODULE = "library"
DIGEST_LENGTH = 16

# The variable is named as the file, whatever folder it lies in.
_REQUIRE = re.compile(r'^local (\w+) = require\("((?:\w+/)*\1)"\)$', re.MULTILINE)
_VERSION = re.compile(
    r"(?P<release>\d+(?:\.\d+)*)"
    r"(?:[-_.]?(?P<phase>alpha|beta|a|b|rc|c|preview|pre)[-_.]?(?P<number>\d*))?"
    r"(?:[-_.]?post[-_.]?(?P<post>\d+))?(?:[-_.]?dev[-_.]?(?P<dev>\d+))?"
)
_RELEASE_LENGTH = 3
_PHASES = {"a": 0, "b": 1, "c": 2, "r": 2, "p": 2}
_LUA_LINE = re.compile(r"@?user_function:\s?(\d+)")


class LibraryError(Exception):
    """The library cannot be bundled, or a server has one that must not be replaced or used."""


@dataclass(frozen=True)
class Bundle:
    """The text for FUNCTION LOAD; `line_map[n]` is the "lua/file.lua:line" of its line n + 1."""

    text: str
    version: str
    digest: str
    line_map: tuple[str, ...]

    def explain(self, message: str) -> str:
        """Return a Redis error message with its bundle lines replaced by file and line."""

        def position(match: re.Match[str]) -> str:
            line = int(match[1])
            return self.line_map[line - 1] if 1 <= line <= len(self.line_map) else match[0]

        return _LUA_LINE.sub(position, message)


class InstalledLibrary(msgspec.Struct):
    """A server's answer to library_version."""

    library: str
    version: str
    digest: str


class PrimaryReport(msgspec.Struct):
    """What was found on one primary and done about it: "loaded", "replaced" or "kept"."""

    node: str
    found_version: str | None
    action: str


class Deployment(Protocol):
    """Anything that knows its primaries: an Engine."""

    def primaries(self) -> Sequence[Any]:
        """Return one redis.asyncio client for each primary that may have books."""

    async def every_primary(self) -> Sequence[Any]:
        """Return the same with primaries of a cluster that have no slots yet."""


def lua_directory() -> Path:
    """Return the folder of the Lua files: in the installed package, or beside it in a checkout."""
    package = Path(__file__).parent.parent
    installed = package / "lua"
    return installed if installed.is_dir() else package.parent / "lua"


def _sorted_names(sources: dict[str, str]) -> list[str]:
    """Modules before those that require them; the same order in every process, for the digest."""
    requires: dict[str, list[str]] = {}
    for name, source in sorted(sources.items()):
        requires[name] = sorted({required for _, required in _REQUIRE.findall(source)})
        unknown = set(requires[name]) - sources.keys() - {GENERATED_MODULE}
        if unknown:
            raise LibraryError(f"lua/{name}.lua requires unknown modules: {sorted(unknown)}")
    try:
        order = list(TopologicalSorter(requires).static_order())
    except CycleError as error:
        raise LibraryError(
            f"the Lua modules require each other in a circle: {error.args[1]}"
        ) from error
    return [name for name in order if name != GENERATED_MODULE]


def _assemble(sources: dict[str, str], digest: str) -> Bundle:
    lines = [
        f"#!lua name={LIBRARY_NAME}",
        f'local {GENERATED_MODULE} = {{ version = "{__version__}", digest = "{digest}" }}',
    ]
    line_map = ["lua (bundle)"] * len(lines)
    for path in _sorted_names(sources):
        name = path.rpartition("/")[2]
        source_lines = _REQUIRE.sub("", sources[path]).rstrip("\n").split("\n")
        lines += [f"local {name} = (function()", *source_lines, "end)()"]
        line_map += [f"lua/{path}.lua:{number}" for number in range(len(source_lines) + 2)]
    return Bundle("\n".join(lines) + "\n", __version__, digest, tuple(line_map))


@cache
def bundle(directory: Path | None = None) -> Bundle:
    """Return the library's text, made from the files in lua/ (or another directory).

    Raises LibraryError for modules that are missing or require each other in a circle.
    """
    directory = directory or lua_directory()
    sources = {
        path.relative_to(directory).with_suffix("").as_posix(): path.read_text("utf-8")
        for path in directory.rglob("*.lua")
    }
    names = Counter(path.rpartition("/")[2] for path in sources)
    repeated = sorted(name for name, count in names.items() if count > 1)
    if repeated:
        raise LibraryError(f"several Lua files have one name: {repeated}")
    if not sources:
        raise LibraryError(f"no Lua files in {directory}")
    unsigned = _assemble(sources, digest="")
    digest = hashlib.sha256(unsigned.text.encode()).hexdigest()[:DIGEST_LENGTH]
    return _assemble(sources, digest)


async def installed(primary: Any) -> InstalledLibrary | None:
    """Return what one primary has, or None where the library is not loaded there."""
    try:
        reply = await primary.execute_command("FCALL_RO", "library_version", 0)
    except ResponseError as error:
        if "unction not found" in str(error):
            return None
        raise
    return msgspec.json.decode(reply, type=InstalledLibrary)


def version_key(version: str) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Return what versions are ordered by: the release, then what comes before and after it.

    As PEP 440 has it: 0.1.0.dev1, 0.1.0a1, 0.1.0b1, 0.1.0rc1, 0.1.0, 0.1.0.post1.
    """
    found = _VERSION.match(version.lower())
    if found is None:
        return (), ()
    release = tuple(int(part) for part in found["release"].split("."))
    release += (0,) * (_RELEASE_LENGTH - len(release))
    phase, post, dev = found["phase"], found["post"], found["dev"]
    # A development release comes before what it leads to.
    before_itself = int(dev) if dev else math.inf
    if phase is None and post is None and dev is not None:
        return release, (-1, 0, 0, before_itself)
    rank = _PHASES[phase[:1]] if phase else len(_PHASES)
    after = int(post) if post else -1
    return release, (rank, int(found["number"] or 0), after, before_itself)


def node_name(primary: Any) -> str:
    """Return how people call the server behind a client: host and port, its socket's path, or the
    service that Sentinel knows it by, with where that is now."""
    pool = primary.connection_pool
    if getattr(pool, "service_name", None):
        host, port = pool.master_address or ("", "")
        return f"{pool.service_name} at {host}:{port}" if host else str(pool.service_name)
    options = pool.connection_kwargs
    return str(options.get("path") or f"{options.get('host')}:{options.get('port')}")


async def _on_every_primary(
    primaries: Sequence[Any], decide: Callable[[InstalledLibrary | None], str]
) -> list[PrimaryReport]:
    """Look at all primaries first, then load: a newer library on one leaves all as they are."""
    found = [await installed(primary) for primary in primaries]
    actions = [decide(library) for library in found]
    reports = []
    for primary, library, action in zip(primaries, found, actions, strict=True):
        if action != "kept":
            await primary.execute_command("FUNCTION", "LOAD", "REPLACE", bundle().text)
        version = library.version if library else None
        reports.append(PrimaryReport(node_name(primary), version, action))
    return reports


def _refuse_newer(found: InstalledLibrary) -> None:
    if version_key(found.version) > version_key(bundle().version):
        raise LibraryError(
            f"the server has library version {found.version}, and a library is never downgraded: "
            f"bring this installation, {bundle().version}, to release {found.version}"
        )


def _decide_deploy(found: InstalledLibrary | None) -> str:
    if found is None:
        return "loaded"
    _refuse_newer(found)
    return "kept" if found.digest == bundle().digest else "replaced"


def fits(found: InstalledLibrary) -> bool:
    """Return whether a host of this release can work with a server's library.

    The first two parts of the version name the contract between hosts and library.
    """
    ours, theirs = version_key(bundle().version), version_key(found.version)
    return theirs[0][:2] == ours[0][:2] and theirs >= ours


def misfit(found: InstalledLibrary | None) -> str | None:
    """Return why a host of this release cannot work with what a server has and which side must
    change, or None where it can."""
    ours = bundle().version
    if found is None:
        return f"the server has no library: run `orderbook functions load` of release {ours}"
    if fits(found):
        return None
    versions = f"the server has library version {found.version}, this host needs {ours}"
    if version_key(found.version) < version_key(ours):
        return f"{versions}: run `orderbook functions load` of release {ours}"
    return f"{versions}: bring this host to release {found.version}"


def _decide_check(found: InstalledLibrary | None) -> str:
    if found is None:
        return "loaded"
    reason = misfit(found)
    if reason is not None:
        raise LibraryError(reason)
    return "kept"


async def load(deployment: Deployment) -> list[PrimaryReport]:
    """Bring every primary to this release's library: what a deployer does.

    Raises LibraryError, having changed nothing, where a primary has a newer one.
    """
    return await _on_every_primary(await deployment.every_primary(), _decide_deploy)


async def check(deployment: Deployment) -> list[PrimaryReport]:
    """Load the library where it is missing and leave it where it fits: what a host does at start.

    Raises LibraryError where a primary has one this release cannot work with.
    """
    return await _on_every_primary(deployment.primaries(), _decide_check)


__all__ = [
    "Bundle",
    "Deployment",
    "InstalledLibrary",
    "LibraryError",
    "PrimaryReport",
    "bundle",
    "check",
    "fits",
    "installed",
    "load",
    "misfit",
    "node_name",
    "version_key",
]
