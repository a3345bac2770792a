from __future__ import annotations

import asyncio

import click

from dask_cloudvm import api
from dask_cloudvm.cli.common import JSON, ClusterName, cloud, emit, output
from dask_cloudvm.cli.interrupt import interruptible


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
    if not names:
        names = tuple(api.by_cluster(await api.everything(cloud)))
    removed = api.by_cluster(await api.remove(names, cloud))
    if fmt == JSON:
        emit({name: [vm.name for vm in vms] for name, vms in removed.items()}, fmt)
        return
    for name, vms in removed.items():
        click.echo(f"removed {name}: {len(vms)} machines")
    if not removed:
        click.echo("no clusters", err=True)
