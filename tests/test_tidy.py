"""Style as a test: what a reader may rely on, in every file of the project.

Formatters and linters have the small rules. Here stand those of this project: lengths, one place
for key names and for stream entries, one name for a function wherever it appears, no reject code
that is not documented, and who may import what.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from conftest import ROOT, documented_codes
from orderbook.engine.engine import Engine
from orderbook.host.session import METHODS
from orderbook.messages import RejectCode

LINE_LENGTH_MAX = 100
FUNCTION_LINES_MAX = 70
PARAMETERS_MAX = 5

LUA = sorted((ROOT / "lua").rglob("*.lua"))
PYTHON = sorted(
    path for folder in ("orderbook", "scripts", "tests") for path in (ROOT / folder).rglob("*.py")
)
SCENARIOS = sorted((ROOT / "tests" / "scenarios").glob("*.txt"))
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
PROTOCOL = (ROOT / "docs" / "protocol.md").read_text("utf-8")
DATA_MODEL = (ROOT / "docs" / "data-model.md").read_text("utf-8")

# Codes that a host gives; all others are the engine's.
HOST_CODES = {
    "SYSTEM_BUSY", "OUTCOME_UNKNOWN", "OUT_OF_MEMORY", "UNAVAILABLE", "DRAINING",
    "DURABILITY_UNAVAILABLE",
    "FRAME_TOO_LARGE", "NOT_SUBSCRIBED", "TOO_MANY_SUBSCRIPTIONS", "RATE_LIMITED",
}  # fmt: skip

# Which modules may know a library; the demo's traders are websocket clients, and host and command
# line catch what redis raises.
MAY_IMPORT = {
    "redis": {
        *("engine", "errors", "topology", "wire", "durability", "library", "preflight"),
        *("feed", "repair", "readiness", "shared", "functions"),
    },
    "aiohttp": {"host", "connection", "sockets", "demo"},
}


class Function(NamedTuple):
    """A function's name, length and number of parameters."""

    name: str
    lines: int
    parameters: int


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


every_source = pytest.mark.parametrize("path", [*LUA, *PYTHON], ids=name_of)
every_lua = pytest.mark.parametrize("path", LUA, ids=name_of)
every_python = pytest.mark.parametrize("path", PYTHON, ids=name_of)


def python_functions(text: str) -> Iterator[Function]:
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        # click hands a command every option as a parameter of its own; pytest a test its fixtures.
        handed = any("command" in ast.unparse(one) for one in node.decorator_list)
        handed = handed or node.name.startswith("test_")
        listed = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
        names = [argument.arg for argument in listed if argument.arg not in {"self", "cls"}]
        lines = (node.end_lineno or node.lineno) - node.lineno + 1
        yield Function(node.name, lines, 0 if handed else len(names))


def lua_functions(text: str) -> Iterator[Function]:
    """By indentation, which the formatter guarantees: a function ends at its own `end`."""
    lines = text.split("\n")
    for start, line in enumerate(lines):
        found = re.match(r"( *)(?!--).*?\bfunction\b *([\w.]*) *\(([^)]*)\)\s*$", line)
        if found is None:
            continue
        ends = re.compile(rf"{found[1]}end\b")
        end = next(n for n in range(start + 1, len(lines)) if ends.match(lines[n]))
        parameters = [name for name in found[3].split(",") if name.strip()]
        yield Function(found[2] or f"line {start + 1}", end - start + 1, len(parameters))


def without_comments(text: str) -> str:
    return re.sub(r"--[^\n]*", "", text)


def test_there_is_something_to_check() -> None:
    assert len(LUA) >= 8
    assert len(PYTHON) >= 20
    assert sum(1 for path in LUA for _ in lua_functions(path.read_text("utf-8"))) > 100


@every_source
def test_file_begins_with_what_it_is_for(path: Path) -> None:
    text = path.read_text("utf-8")
    text = re.sub(r"\A#![^\n]*\n", "", text)
    assert text.startswith("-- " if path.suffix == ".lua" else '"""')
    first_line = text.partition("\n")[0].strip('"- ')
    assert first_line[0].isupper() or first_line[0] in "`'"


@pytest.mark.parametrize("path", SCENARIOS, ids=name_of)
def test_scenario_begins_with_its_rule(path: Path) -> None:
    assert path.read_text("utf-8").startswith("# ")


@every_source
def test_lines_are_short(path: Path) -> None:
    # What is said to a linter at the end of a line does not count.
    lines = re.sub(r"  # (type|noqa).*", "", path.read_text("utf-8")).split("\n")
    assert [n for n, line in enumerate(lines, 1) if len(line) > LINE_LENGTH_MAX] == []


@every_source
def test_functions_are_short_and_take_few_parameters(path: Path) -> None:
    text = path.read_text("utf-8")
    functions = list(lua_functions(text) if path.suffix == ".lua" else python_functions(text))
    assert [f for f in functions if f.lines > FUNCTION_LINES_MAX] == []
    assert [f for f in functions if f.parameters > PARAMETERS_MAX] == []


@pytest.mark.parametrize("path", [*LUA, *PYTHON, *DOCUMENTS, *SCENARIOS], ids=name_of)
def test_nothing_is_left_to_do(path: Path) -> None:
    marks = re.compile("|".join(("TO" + "DO", "FIX" + "ME", "XX" + "X", "HA" + "CK")))
    assert marks.findall(path.read_text("utf-8")) == []


# ---- one place for each thing


@every_lua
def test_key_names_are_in_keys_alone(path: Path) -> None:
    if path.name == "keys.lua":
        return
    code = without_comments(path.read_text("utf-8"))
    # A key's suffix, or the name of a book, as a text of its own; a message to people may tell it.
    assert re.findall(r'"(?::[a-z_:]+|orderbook:[a-z{][a-z]*)"', code) == []


def test_every_key_is_documented() -> None:
    keys = without_comments((ROOT / "lua" / "values" / "keys.lua").read_text("utf-8"))
    suffixes = set(re.findall(r'"((?::[a-z_]+)+):?"', keys))
    assert len(suffixes) >= 9
    for suffix in suffixes:
        assert suffix in DATA_MODEL


@every_lua
def test_streams_are_written_in_events_alone(path: Path) -> None:
    code = without_comments(path.read_text("utf-8"))
    # access.lua only names the right.
    assert ('"XADD"' in code) == (path.name in {"event_stream.lua", "access.lua"})


@every_lua
def test_commands_to_redis_are_named_in_place(path: Path) -> None:
    """So that a reader, and the test above, finds every one of them."""
    code = without_comments(path.read_text("utf-8"))
    called = re.findall(r"redis\.p?call\(\s*([^,)\s]+)", code)
    assert all(command.startswith('"') or command == "command" for command in called), called


def test_every_right_that_functions_need_is_listed_in_access() -> None:
    """Hosts ask for these, and `orderbook functions acl` prints them."""
    listed = set(
        re.findall(r'"([A-Z]{3,})"', (ROOT / "lua" / "server" / "access.lua").read_text("utf-8"))
    )
    runs = re.compile(r'(?:redis\.p?call|\brun|arguments_for)\(\s*(?:plan, )?[^")]*?"([A-Z]+)"')
    sources = [path.read_text("utf-8") for path in LUA if path.name != "access.lua"]
    found = {command for source in sources for command in runs.findall(without_comments(source))}
    assert "HMGET" in found
    assert found <= listed


# ---- one name for each thing


def registered_functions() -> set[str]:
    code = without_comments((ROOT / "lua" / "functions" / "register.lua").read_text("utf-8"))
    return set(re.findall(r'register\("(\w+)"', code))


def test_every_function_is_a_method_of_the_engine_and_a_heading() -> None:
    functions = registered_functions()
    assert "place_order" in functions
    headings = set(re.findall(r"^### (\w+)$", PROTOCOL, re.MULTILINE))
    assert functions == headings
    for name in functions:
        assert callable(getattr(Engine, name, None)), f"Engine has no method {name}"


def test_every_method_of_the_websocket_is_documented() -> None:
    section = PROTOCOL.partition("## Websocket")[2].partition("\n## ")[0]
    listed = section.partition("Methods: ")[2].partition("\n\n* ")[0]
    own = set(re.findall(r"^\* `(\w+)`(?: `| →|$)", section, re.MULTILINE))
    documented = set(re.findall(r"\b[a-z]+(?:_[a-z0-9]+)+\b", listed)) - {"timeout_ms"} | own
    assert documented == set(METHODS)


def codes_in_lua() -> set[str]:
    pattern = r'reject\.(?:new|with)\(\s*"([A-Z_]+)"'
    return {code for path in LUA for code in re.findall(pattern, path.read_text("utf-8"))}


def test_reject_codes_are_the_same_in_engine_document_and_messages() -> None:
    used, documented, known = codes_in_lua(), documented_codes(), {str(code) for code in RejectCode}
    assert documented == known
    assert used <= documented
    spelled = "".join(path.read_text("utf-8") for path in LUA)
    unused = {code for code in documented - HOST_CODES if f'"{code}"' not in spelled}
    assert unused == set()


def test_violations_are_the_same_in_engine_and_document() -> None:
    section = DATA_MODEL.partition("## What verify_book names")[2].partition("\n## ")[0]
    documented = set(re.findall(r"`([A-Z_]+)`", section))
    code = without_comments((ROOT / "lua" / "functions" / "verify_book.lua").read_text("utf-8"))
    named = set(re.findall(r'"([A-Z]+(?:_[A-Z]+)+)"', code))
    assert documented
    assert named == documented


# ---- who may know whom

# The folders of orderbook/, top layer first. What lies beside them imports nothing of them.
PYTHON_LAYERS = ("cli", "demo", "host", "feed", "engine", "processes")


def test_python_imports_its_own_layer_and_those_below() -> None:
    for path in (ROOT / "orderbook").rglob("*.py"):
        folder = path.parent.name
        found = {
            parts[1]
            for parts in (module.split(".") for module in imported_modules(path))
            if parts[0] == "orderbook" and len(parts) > 1 and parts[1] in PYTHON_LAYERS
        }
        below = PYTHON_LAYERS[PYTHON_LAYERS.index(folder) :] if folder in PYTHON_LAYERS else ()
        is_entry = path.name == "__main__.py"
        assert is_entry or found <= set(below), path


# The folders of lua/, top layer first.
LUA_LAYERS = (
    *("functions", "transaction", "matching", "book", "market_data", "records", "server"),
    "values",
)


@every_lua
def test_lua_requires_its_own_layer_and_those_below(path: Path) -> None:
    layers = LUA_LAYERS[LUA_LAYERS.index(path.parent.name) :]
    required = re.findall(r'require\("(\w+)/\w+"\)', path.read_text("utf-8"))
    assert set(required) <= set(layers)


def imported_modules(path: Path) -> set[str]:
    modules: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules |= {f"{node.module}.{name.name}" for name in node.names} | {node.module}
    return modules


@pytest.mark.parametrize("library", MAY_IMPORT)
def test_library_is_known_only_where_it_must_be(library: str) -> None:
    knowing = {
        path.stem
        for path in (ROOT / "orderbook").rglob("*.py")
        if any(module.partition(".")[0] == library for module in imported_modules(path))
    }
    assert knowing <= MAY_IMPORT[library]


def test_session_imports_only_messages_and_hints_of_ours() -> None:
    modules = imported_modules(ROOT / "orderbook" / "host" / "session.py")
    ours = {module for module in modules if module.startswith("orderbook.")}
    assert ours
    assert all(module.startswith(("orderbook.messages", "orderbook.hints")) for module in ours)


def test_messages_import_nothing_of_ours() -> None:
    modules = imported_modules(ROOT / "orderbook" / "messages.py")
    assert not any(module.startswith("orderbook") for module in modules)


@every_python
def test_nothing_private_crosses_between_our_modules(path: Path) -> None:
    for module in imported_modules(path):
        if module.startswith("orderbook."):
            assert not re.match("_[^_]", module.rpartition(".")[2]), module
