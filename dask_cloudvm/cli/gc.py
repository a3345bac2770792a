from __future__ import annotations

import asyncio
from typing import Any

import click

from dask_cloudvm import leftovers
from dask_cloudvm.cli.common import JSON, cloud, emit, output, table
from dask_cloudvm.cli.interrupt import interruptible
from dask_cloudvm.clouds.base import VM
from dask_cloudvm.leftovers import Leftover


@click.command()
@click.option("--network", is_flag=True, help="Also shared network parts that no machine uses.")
@click.option("--yes", is_flag=True, help="Remove what is found.")
@cloud
@output(JSON)
def command(network: bool, yes: bool, cloud: str | None, fmt: str) -> None:
    """Find what clusters that are gone have left behind, in every region, and with --yes remove it.

    Those are machines of clusters without a scheduler, machines that have ended, and with --network security groups,
    firewall rules and the like that were made for clusters and that no machine uses. Nothing that is younger than 15
    minutes, and nothing that was not made by dask-cloudvm. Where a cloud or region cannot be looked at, a warning says
    so, and the exit code is 1.
    """
    if not asyncio.run(interruptible(_gc(network, yes, cloud, fmt))):
        raise click.exceptions.Exit(1)


async def _gc(network: bool, yes: bool, cloud: str | None, fmt: str) -> bool:
    """Whether everything could be looked at."""
    found = await leftovers.find(cloud, network)
    kept = [each for home, them in found.items() if yes for each in await leftovers.remove(home, them)]
    rows = [{**_row(each), "removed": yes and each not in kept} for them in found.values() for each in them]
    if fmt == JSON:
        emit(rows, fmt)
        return found.complete
    if rows:
        columns = ("name", "cloud", "place", "what", "why")
        table([[row[column] or "-" for column in columns] for row in rows], columns)
    removed = sum(row["removed"] for row in rows)
    if kept:
        click.echo(f"{', '.join(each.it.name for each in kept)}: in use after all", err=True)
    click.echo(_summary(len(rows), removed, yes, found.complete), err=True)
    return found.complete


def _summary(found: int, removed: int, yes: bool, complete: bool) -> str:
    if not found:
        return f"nothing is left over{'' if complete else ' where could be looked'}"
    return f"removed {removed} of {found}" if yes else "nothing was removed; run it again with --yes"


def _row(leftover: Leftover) -> dict[str, Any]:
    it = leftover.it
    if isinstance(it, VM):
        facts = {"place": it.zone, "what": f"{it.role} ({it.state})"}
    else:
        facts = {"place": it.place, "what": it.kind}
    return {"name": it.name, "cloud": it.cloud, "id": it.id, **facts, "why": leftover.why}
