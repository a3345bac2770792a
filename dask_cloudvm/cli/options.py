from __future__ import annotations

from typing import Any

import click

from dask_cloudvm import schema
from dask_cloudvm.cli.common import JSON, emit, output, table
from dask_cloudvm.schema import show


@click.command()
@click.argument("cloud", required=False, type=click.Choice(schema.clouds()))
@output(JSON)
def command(cloud: str | None, fmt: str) -> None:
    """List the options of CLOUD, or those that all clouds share."""
    rows: list[dict[str, Any]] = schema.table(cloud or schema.SHARED)
    if fmt == JSON:
        emit(rows, fmt)
        return
    cells = [(r["option"], r["type"], show(r["default"]), _also(r["description"], r["aliases"])) for r in rows]
    table(cells, ("option", "type", "default", "what"))


def _also(description: str, aliases: list[str]) -> str:
    return f"{description} Also: {', '.join(aliases)}." if aliases else description
