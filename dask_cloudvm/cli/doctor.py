from __future__ import annotations

import asyncio
from dataclasses import asdict

import click

from dask_cloudvm import clouds, options, schema
from dask_cloudvm.cli.common import JSON, emit, output, sets


@click.command()
@click.argument("names", nargs=-1, metavar="[CLOUD] [PROFILE]...")
@sets
@output(JSON)
@click.pass_context
def command(ctx: click.Context, names: tuple[str, ...], sets: tuple[str, ...], fmt: str) -> None:
    """Check everything that a cluster on CLOUD needs, and make nothing: each line is ok, or says what to do.

    With profiles, what they ask for is checked: machine types, zones, permissions, quota.
    """
    cloud = names[0] if names and names[0] in schema.clouds() else None
    resolved = options.resolve(*(names[1:] if cloud else names), cloud=cloud, sets=sets)
    checks = asyncio.run(clouds.make(resolved.cloud, resolved.values).doctor())
    if fmt == JSON:
        emit([asdict(check) for check in checks], fmt)
    else:
        width = max((len(check.what) for check in checks), default=0)
        for check in checks:
            click.echo(f"{'ok  ' if check.ok else 'FAIL'}  {check.what:{width}}  {check.text}")
    if not all(check.ok for check in checks):
        ctx.exit(1)
