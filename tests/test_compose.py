"""The deployment files: what docker-compose.yml says can be run, its load balancer can balance."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = sorted(name for name, service in SERVICES.items() if service["image"] == "orderbook")
HOSTS = sorted(name for name in OURS if "serve" in SERVICES[name]["command"])

# Debian keeps it where an ordinary user's PATH does not look.
NGINX = shutil.which("nginx", path="/usr/sbin:/usr/bin:/sbin:/bin")
LONG_OPTION = re.compile(r"--[a-z][a-z-]*")


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, timeout=60, check=False
    )


def local_command(command: list[str]) -> list[str]:
    """A command of our image as it is run here."""
    if command[0] == "orderbook":
        return [sys.executable, "-m", "orderbook", *command[1:]]
    assert command[0] == "python", command
    return [sys.executable, *command[1:]]


def without_options(command: list[str]) -> list[str]:
    """Program and subcommands: what stands before the first option."""
    first = next((i for i, word in enumerate(command) if word.startswith("--")), len(command))
    return command[:first]


def test_redis_keeps_its_books() -> None:
    command = " ".join(SERVICES["redis"]["command"])
    assert "--appendonly yes" in command
    assert SERVICES["redis"]["volumes"] == ["books:/data"]
    assert "books" in COMPOSE["volumes"]


def test_the_image_is_built_once_before_anything_needs_it() -> None:
    (builder,) = (name for name in OURS if "build" in SERVICES[name])
    for name in OURS:
        if name != builder:
            assert builder in dependencies(name), f"{name} may start before the image is built"
            assert SERVICES[name]["pull_policy"] == "never"


def dependencies(name: str) -> set[str]:
    """All services that are there before this one."""
    direct = set(SERVICES[name].get("depends_on", {}))
    return direct.union(*map(dependencies, direct))


def test_a_server_without_a_password_says_that_it_serves_others_and_is_not_published() -> None:
    assert "--protected-mode no" in " ".join(SERVICES["redis"]["command"])
    assert SERVICES["redis"]["networks"] == ["internal"]
    assert COMPOSE["networks"]["internal"] == {"internal": True}
    assert "ports" not in SERVICES["redis"]


def test_two_hosts_stand_behind_the_balancer() -> None:
    assert len(HOSTS) >= 2
    config = (ROOT / "docker" / "nginx.conf").read_text()
    assert sorted(re.findall(r"server (host-\d+):8080", config)) == HOSTS
    assert set(SERVICES["balancer"]["depends_on"]) == set(HOSTS)


def test_hosts_wait_for_the_library_and_the_library_for_redis() -> None:
    loaded = {"functions": {"condition": "service_completed_successfully"}}
    assert all(SERVICES[name]["depends_on"] == loaded for name in HOSTS)
    assert SERVICES["functions"]["command"] == ["orderbook", "functions", "load"]
    assert SERVICES["functions"]["depends_on"] == {"redis": {"condition": "service_healthy"}}
    assert SERVICES["functions"]["restart"] == "no"


def test_every_dependency_is_a_service_and_healthy_ones_have_a_check() -> None:
    for name, service in SERVICES.items():
        for dependency, how in service.get("depends_on", {}).items():
            assert dependency in SERVICES, f"{name} waits for {dependency}, which does not exist"
            if how["condition"] == "service_healthy":
                assert "healthcheck" in SERVICES[dependency], f"{dependency} has no health check"


def test_only_the_load_profile_starts_the_load_test() -> None:
    assert SERVICES["load"]["profiles"] == ["load"]
    assert all("profiles" not in SERVICES[name] for name in ("redis", "functions", *HOSTS))


def test_published_ports_are_on_loopback() -> None:
    published = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert published == ["127.0.0.1:8080:8080"]


@pytest.mark.parametrize("name", OURS)
def test_command_of_service_exists_with_its_options(name: str) -> None:
    command = SERVICES[name]["command"]
    completed = run(*local_command(without_options(command)), "--help")
    assert completed.returncode == 0, completed.stderr
    for word in command:
        if word.startswith("--"):
            assert word in LONG_OPTION.findall(completed.stdout), f"{name}: no option {word}"


@pytest.mark.parametrize("name", HOSTS)
def test_health_check_fails_where_no_host_listens(name: str) -> None:
    kind, *command = SERVICES[name]["healthcheck"]["test"]
    assert kind == "CMD"
    completed = run(*local_command(command))
    assert completed.returncode == 1
    assert "URLError" in completed.stderr or "HTTPError" in completed.stderr


def test_environment_variables_belong_to_options() -> None:
    texts = [
        run(*local_command(without_options(SERVICES[n]["command"])), "--help").stdout for n in OURS
    ]
    named = {variable for name in OURS for variable in SERVICES[name].get("environment", {})}
    assert named
    for variable in named:
        assert any(variable in text for text in texts), f"no option reads {variable}"


def test_image_has_everything_its_commands_name() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    copied = {
        path
        for line in re.findall(r"^COPY (?!--)(.*) \S+$", dockerfile, re.MULTILINE)
        for path in line.split()
    }
    assert {"pyproject.toml", "README.md", "lua", "orderbook", "scripts"} <= copied
    assert all((ROOT / path).exists() for path in copied)


@pytest.mark.skipif(NGINX is None, reason="nginx is not installed (Debian: nginx-light)")
def test_nginx_accepts_the_balancer_configuration(tmp_path: Path) -> None:
    config = (ROOT / "docker" / "nginx.conf").read_text()
    # The hosts' names exist only among the services, and a test may not write to /tmp/nginx.pid.
    config = re.sub(r"host-\d+:8080", "127.0.0.1:8080", config)
    config = config.replace("/tmp/nginx.pid", str(tmp_path / "nginx.pid"))
    path = tmp_path / "nginx.conf"
    path.write_text(config)
    assert NGINX is not None
    completed = run(NGINX, "-t", "-p", str(tmp_path), "-c", str(path))
    assert completed.returncode == 0, completed.stderr


@pytest.mark.skipif(
    shutil.which("docker-compose") is None, reason="docker-compose is not installed"
)
def test_docker_compose_accepts_the_file() -> None:
    completed = run("docker-compose", "--profile", "load", "config")
    assert completed.returncode == 0, completed.stderr


def test_compose_commands_are_lists_of_words() -> None:
    # A plain string would go through a shell, which would not pass SIGTERM on.
    for name, service in SERVICES.items():
        command = service.get("command", [])
        assert isinstance(command, list), name
        assert all(isinstance(word, str) for word in command), json.dumps(command)
