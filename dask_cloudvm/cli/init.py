from __future__ import annotations

import os
from pathlib import Path

import click

from dask_cloudvm import schema, template
from dask_cloudvm.errors import CloudVMError


class CannotWrite(CloudVMError):
    message = "cannot write {file}: {what}"


@click.command()
@click.argument("cloud", type=click.Choice(schema.clouds()))
@click.argument("file", required=False, type=click.Path(dir_okay=False))
@click.option("--force", is_flag=True, help="Overwrite FILE.")
def command(cloud: str, file: str | None, force: bool) -> None:
    """Write a profile for CLOUD, with every option explained, to FILE or standard output."""
    text = template.profile(cloud, (schema.folder("schemas") / "profile.json").as_uri())
    if file is None:
        click.echo(text, nl=False)
        return
    try:
        with open(file, "w" if force else "x", encoding="utf-8") as stream:
            stream.write(text)
    except FileExistsError:
        raise CannotWrite(file=file, what="it exists; use --force to overwrite it") from None
    except OSError as error:
        raise CannotWrite(file=file, what=(error.strerror or str(error)).lower()) from None
    shown = os.path.relpath(file) if Path(file).is_relative_to(Path.cwd()) else file
    click.echo(f"wrote {shown}; edit it, then: dask-cloudvm up {shown}", err=True)
