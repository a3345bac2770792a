from __future__ import annotations

import asyncio

import click

from dask_cloudvm import api
from dask_cloudvm.cli.common import JSON, age, cloud, emit, machine, output, summary, table


@click.command()
@cloud
@output(JSON)
def command(cloud: str | None, fmt: str) -> None:
    """List every cluster that exists, wherever it was made."""
    clusters = api.by_cluster(asyncio.run(api.everything(cloud)))
    rows = [summary(name, vms) for name, vms in clusters.items()]
    if fmt == JSON:
        emit([{**row, "machines": [machine(vm) for vm in clusters[row["name"]]]} for row in rows], fmt)
    elif not rows:
        click.echo("no clusters", err=True)
    else:
        cells = [
            (r["name"], r["cloud"], r["state"], r["workers"], age(r["since"]), r["scheduler"] or "-") for r in rows
        ]
        table(cells, ("name", "cloud", "state", "workers", "since", "scheduler"))
