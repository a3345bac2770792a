from __future__ import annotations

import click

from dask_cloudvm import schema
from dask_cloudvm.cli.common import JSON, emit


@click.command()
@click.argument("cloud", required=False, type=click.Choice(schema.clouds()))
def command(cloud: str | None) -> None:
    """Print the JSON Schema of profiles, or of CLOUD's section, as one document."""
    emit(schema.bundle(cloud), JSON)
