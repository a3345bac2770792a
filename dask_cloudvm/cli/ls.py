from __future__ import annotations

import asyncio

import click

from dask_cloudvm import api
from dask_cloudvm.cli.common import JSON, age, cloud, emit, machine, output, summary, table
from dask_cloudvm.cli.interrupt import interruptible


@click.command()
@cloud
@output(JSON)
def command(cloud: str | None, fmt: str) -> None:
    """List every cluster that exists, wherever it was made."""
    answers, unasked = asyncio.run(interruptible(api.answers(cloud, lambda each: each.list())))
    api.warn(unasked)
    clusters = api.by_cluster([vm for _, vms in answers for vm in vms])
    rows = [summary(name, vms) for name, vms in clusters.items()]
    if fmt == JSON:
        emit([{**row, "machines": [machine(vm) for vm in clusters[row["name"]]]} for row in rows], fmt)
    elif not rows:
        click.echo(f"no clusters{' where could be looked' if unasked else ''}", err=True)
    else:
        cells = [
            (r["name"], r["cloud"], r["state"], r["workers"], age(r["since"]), r["scheduler"] or "-") for r in rows
        ]
        table(cells, ("name", "cloud", "state", "workers", "since", "scheduler"))
