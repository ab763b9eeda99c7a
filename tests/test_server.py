"""The embedded server: real starts, stops and deaths."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from orderbook.processes.child_process import ChildProcess, Surroundings
from orderbook.processes.embedded_server import EmbeddedServer, ServerError
from processes import is_alive, wait_until

# Starts a server, tells its process id and URL, and waits to be killed.
HOLDER = """
import sys
from pathlib import Path
from orderbook.processes.embedded_server import EmbeddedServer
data_dir = Path(sys.argv[1]) if len(sys.argv) > 1 else None
server = EmbeddedServer(data_dir)
server.start()
print(server.pid, server.url, flush=True)
sys.stdin.read()
"""

STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print(1, flush=True)
time.sleep(60)
"""


def start_holder(*arguments: str) -> tuple[subprocess.Popen[str], int, str]:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    pid, url = holder.stdout.readline().split()
    return holder, int(pid), url


def finish(holder: subprocess.Popen[str]) -> None:
    holder.kill()
    holder.communicate()


def test_server_answers_on_loopback_and_is_gone_after_stop() -> None:
    with EmbeddedServer() as server:
        url = server.url
        assert url.startswith("redis://127.0.0.1:")
        with Redis.from_url(url) as client:
            assert client.ping()
            assert client.config_get("bind")["bind"] == "127.0.0.1"
            assert client.config_get("appendonly")["appendonly"] == "no"
    with Redis.from_url(url) as client, pytest.raises(RedisConnectionError):
        client.ping()


def test_url_of_a_stopped_server_is_an_error() -> None:
    server = EmbeddedServer()
    with pytest.raises(ServerError, match="not running"):
        _ = server.url
    server.stop()


def test_two_servers_have_ports_of_their_own() -> None:
    with EmbeddedServer() as one, EmbeddedServer() as other:
        assert one.url != other.url


def test_chosen_port_is_used_and_a_taken_one_is_refused() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ServerError, match=f"port {port} is in use"):
            EmbeddedServer(port=port).start()
    with EmbeddedServer(port=port) as server:
        assert server.url == f"redis://127.0.0.1:{port}"


def test_data_survives_stop_and_start(tmp_path: Path) -> None:
    data_dir = tmp_path / "made" / "when missing"
    with EmbeddedServer(data_dir) as server, Redis.from_url(server.url) as client:
        client.set("kept", "yes")
    with EmbeddedServer(data_dir) as server, Redis.from_url(server.url) as client:
        assert client.get("kept") == b"yes"


def test_data_survives_a_server_that_is_killed(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path) as server, Redis.from_url(server.url) as client:
        client.set("kept", "yes")
        os.kill(server.pid, signal.SIGKILL)
    with EmbeddedServer(tmp_path) as server, Redis.from_url(server.url) as client:
        assert client.get("kept") == b"yes"


def test_data_directory_in_use_is_refused(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path) as server:
        with pytest.raises(ServerError, match="in use by another server, started by process"):
            EmbeddedServer(tmp_path).start()
        with Redis.from_url(server.url) as client:
            assert client.ping()


def test_data_directory_that_is_a_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("")
    with pytest.raises(ServerError, match="cannot be used"):
        EmbeddedServer(path).start()


def test_server_ends_when_its_starter_is_killed() -> None:
    holder, pid, _ = start_holder()
    try:
        directory = Path(f"/proc/{pid}/cwd").readlink()
        holder.kill()
        wait_until(lambda: not is_alive(pid), "the server has ended")
        wait_until(lambda: not directory.exists(), "its temporary directory is removed")
    finally:
        finish(holder)


def test_data_directory_is_free_again_after_its_starter_is_killed(tmp_path: Path) -> None:
    holder, _, url = start_holder(str(tmp_path))
    try:
        with Redis.from_url(url) as client:
            client.set("kept", "yes")
    finally:
        finish(holder)
    with EmbeddedServer(tmp_path) as server, Redis.from_url(server.url) as client:
        assert client.get("kept") == b"yes"


def test_interrupt_in_the_terminal_does_not_reach_the_server() -> None:
    with EmbeddedServer() as server:
        assert os.getpgid(server.pid) != os.getpgid(0)


def test_platform_without_a_binary_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "m68k")
    with pytest.raises(ServerError, match=r"no embedded Valkey for this platform.*--redis-url"):
        EmbeddedServer().start()


def test_child_that_ignores_sigterm_is_killed() -> None:
    reader, writer = os.pipe()
    child = ChildProcess([sys.executable, "-c", STUBBORN], Surroundings(stdout=writer))
    os.close(writer)
    with contextlib.closing(os.fdopen(reader)) as output:
        assert output.readline() == "1\n"
        assert child.stop(timeout_s=0.2) == -signal.SIGKILL
