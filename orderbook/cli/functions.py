"""The library on the server: load, check, and the rights of Redis users."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from orderbook.cli.shared import (
    DURABILITIES,
    EXIT_LIBRARY,
    Reply,
    accept_option,
    failures_explained,
    json_option,
    option,
    print_json,
    print_rows,
    redis_url_option,
    with_engine,
)

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from orderbook.engine.engine import Engine


@click.group()
def functions() -> None:
    """Deploy the Lua library, or look which one is there."""


@functions.command("load")
@accept_option
@redis_url_option
@json_option
def load_functions(accept: tuple[str, ...], redis_url: str, as_json: bool) -> None:
    """Bring every primary to this release's library; a newer one is never replaced.

    Looks at the servers first, and tells what is wrong with them.
    """

    async def work(engine: "Engine") -> list[Reply]:
        from msgspec import structs

        from orderbook.engine import library, preflight

        findings = await preflight.server_findings(await engine.every_primary())
        _warn(preflight.told_or_raised(findings, accept))
        return [structs.asdict(report) for report in await library.load(engine)]

    print_rows(with_engine(redis_url, work), ("node", "found_version", "action"), as_json)


@functions.command("check")
@accept_option
@redis_url_option
@json_option
def check_functions(accept: tuple[str, ...], redis_url: str, as_json: bool) -> None:
    """Tell which library every primary has; exit code 5 unless all fit this release.

    Tells what is wrong with the servers as well; exit code 6 where they should not be used.
    """
    from orderbook.engine import preflight

    async def work(engine: "Engine") -> tuple[list[Reply], list[preflight.Finding]]:
        primaries = await engine.every_primary()
        findings = await preflight.server_findings(primaries)
        if any(finding.name is preflight.Name.VERSION for finding in findings):
            return [], findings
        rows = [await _library_on(primary) for primary in primaries]
        if all(row["fits"] for row in rows):
            findings += await preflight.rights_findings(engine)
        return rows, findings

    rows, findings = with_engine(redis_url, work)
    columns = ("node", "found_version", "found_digest", "fits", "up_to_date")
    print_rows(rows, columns, as_json)
    with failures_explained(redis_url):
        _warn(preflight.told_or_raised(findings, accept))
    if not all(row["fits"] for row in rows):
        raise click.exceptions.Exit(EXIT_LIBRARY)


def _warn(sentences: Sequence[str]) -> None:
    for sentence in sentences:
        click.echo(f"warning: {sentence}", err=True)


@functions.command("acl")
@option("--role", type=click.Choice(["loader", "host", "reader"]), help="Only this one.")
@option("--cluster", is_flag=True, help="For the nodes of a cluster.")
@option(
    "--durability",
    type=click.Choice(DURABILITIES),
    default="memory",
    help="What hosts may be asked to wait for.",
)
@json_option
def print_acl(role: str | None, cluster: bool, durability: str, as_json: bool) -> None:
    """Print the least rights of Redis users, as commands for redis-cli.

    The loader runs `functions load`; a host `serve` and all other commands but `repair`; a reader
    is enough for --read-url, and for commands that only look. Fill in the passwords.
    """
    from orderbook.engine.access import Role, Setting, acl_line
    from orderbook.messages import Durability

    setting = Setting(cluster, Durability(durability))
    lines = {str(one): acl_line(one, setting) for one in Role if role in {None, one}}
    if as_json:
        print_json(lines)
    else:
        click.echo("\n".join(lines.values()))


async def _library_on(primary: "Redis") -> Reply:
    from orderbook.engine import library

    found = await library.installed(primary)
    return {
        "node": library.node_name(primary),
        "found_version": found and found.version,
        "found_digest": found and found.digest,
        "fits": found is not None and library.fits(found),
        "up_to_date": found is not None and found.digest == library.bundle().digest,
    }


# Instruments and seeding
