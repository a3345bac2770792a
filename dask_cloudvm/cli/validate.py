from __future__ import annotations

from typing import Any

import click

from dask_cloudvm import options
from dask_cloudvm.cli.common import JSON, emit, output
from dask_cloudvm.errors import ProfileError


@click.command()
@click.argument("profiles", nargs=-1, required=True, type=click.Path())
@output(JSON)
def command(profiles: tuple[str, ...], fmt: str) -> None:
    """Check profile files, each by itself, without Dask's configuration and the environment."""
    problems: list[Any] = []
    try:
        options.validate(*profiles)
    except ProfileError as error:
        if fmt != JSON:
            raise
        problems = [{"where": p.where, "path": p.path, "problem": p.what} for p in error.problems]
    if fmt == JSON:
        emit(problems, fmt)
        raise click.exceptions.Exit(2 if problems else 0)
    for profile in profiles:
        click.echo(f"{profile}: ok")
