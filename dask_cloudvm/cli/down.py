from __future__ import annotations

import asyncio
from collections.abc import Sequence

import click

from dask_cloudvm import api
from dask_cloudvm.cli.common import JSON, ClusterName, cloud, emit, output
from dask_cloudvm.cli.interrupt import interruptible
from dask_cloudvm.errors import CloudError, counted


@click.command()
@click.argument("names", nargs=-1, type=ClusterName())
@click.option("--all", "everything", is_flag=True, help="Remove every cluster.")
@cloud
@output(JSON)
def command(names: tuple[str, ...], everything: bool, cloud: str | None, fmt: str) -> None:
    """Remove clusters by name, without their profile and whether or not they answer."""
    if bool(names) == everything:
        raise click.UsageError("Give the names of clusters, or --all.")
    asyncio.run(interruptible(_down(names, cloud, fmt)))


async def _down(names: tuple[str, ...], cloud: str | None, fmt: str) -> None:
    unasked: Sequence[CloudError] = ()
    if names:
        vms = await api.remove(names, cloud)
    else:
        found, unasked = await api.answers(cloud, lambda each: each.list())
        vms = await api.discard(found)
    removed = api.by_cluster(vms)
    if fmt == JSON:
        emit({name: [vm.name for vm in vms] for name, vms in removed.items()}, fmt)
    else:
        for name, machines in removed.items():
            click.echo(f"removed {name}: {counted(len(machines), 'machine')}")
    if unasked:  # there may be more
        raise unasked[0]
    if not removed and fmt != JSON:
        click.echo("no clusters", err=True)
