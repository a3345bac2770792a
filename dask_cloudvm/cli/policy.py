from __future__ import annotations

import click

from dask_cloudvm import clouds, options
from dask_cloudvm.cli.common import JSON, YAML, emit


@click.command()
@click.argument("cloud")
@click.option(
    "--part",
    type=click.Choice(["setup", "identity", "ongoing", "account", "machines"]),
    help="Only this part, as a document to paste.",
)
@click.option("--role", metavar="ARN", help="What the machines may be, where iam_instance_profile is used.")
@click.option("-o", "--output", "fmt", type=click.Choice([JSON, YAML]), default=JSON, help="Form of the result.")
def command(cloud: str, part: str | None, role: str | None, fmt: str) -> None:
    """Print the least permissions that clusters on CLOUD need.

    In two parts: setup makes what clusters share, such as the security group, and is needed once; ongoing is everything
    else, with what removes anything limited to machines with tags of dask-cloudvm. On gcp and azure they are custom
    roles, and there are more: machines, for what the machines act as, to remove themselves; and on gcp account, on the
    machines' service account, to start machines as it.
    """
    made = clouds.make(cloud, options.combine([], cloud)[0].values).policies(role)
    if not made:
        click.echo(f"clusters on {cloud} need no permissions", err=True)
        return
    if part and part not in made:
        raise click.UsageError(f"the permissions on {cloud} have the parts {', '.join(made)}")
    emit(made[part] if part else made, fmt)
