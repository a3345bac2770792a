from __future__ import annotations

import asyncio

import click

from dask_cloudvm import api
from dask_cloudvm.cli.common import ClusterName, cloud
from dask_cloudvm.cli.interrupt import interruptible
from dask_cloudvm.errors import counted


@click.command()
@click.argument("name", type=ClusterName())
@click.argument("n", type=click.IntRange(min=0))
@cloud
@click.option("--wait/--no-wait", default=True, help="Wait until new workers have joined.")
def command(name: str, n: int, cloud: str | None, wait: bool) -> None:
    """Add or remove workers until cluster NAME has N."""
    asyncio.run(interruptible(_scale(name, n, cloud, wait)))


async def _scale(name: str, n: int, cloud: str | None, wait: bool) -> None:
    from dask_cloudvm.cluster import CLASSES

    home, _ = await api.find(name, cloud)
    cluster = CLASSES[home.name].from_name(name, asynchronous=True, report=lambda line: click.echo(line, err=True))
    try:
        await cluster
        cluster.scale(n)
        await cluster
        await cluster.ready(None if wait else 0)
        have = sum(worker.vm is not None for worker in cluster.workers.values())
    except BaseException:
        await cluster.clean_up()
        raise
    await cluster.close()
    click.echo(f"{name} has {counted(have, 'worker')}")
