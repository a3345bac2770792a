from __future__ import annotations

import click

from dask_cloudvm import options
from dask_cloudvm.cli.common import JSON, emit, output, profiles, sets, table
from dask_cloudvm.schema import show


@click.command()
@profiles
@sets
@output(JSON)
@click.option("--all/--set-only", "everything", default=True, help="Also options that are at their default.")
def command(profiles: tuple[str, ...], sets: tuple[str, ...], fmt: str, everything: bool) -> None:
    """Show every option of the cloud that PROFILES choose, its value, and where that comes from."""
    resolved = options.resolve(*profiles, sets=sets)
    rows = [row for row in resolved.explain() if everything or resolved.given(row["option"])]
    if fmt == JSON:
        emit({"cloud": resolved.cloud, "options": rows}, fmt)
        return
    click.echo(f"cloud: {resolved.cloud}", err=True)
    table([(row["option"], show(row["value"]), row["origin"]) for row in rows], ("option", "value", "origin"))
