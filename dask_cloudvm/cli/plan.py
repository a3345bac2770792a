from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import click

from dask_cloudvm import clouds, environment, options
from dask_cloudvm import plan as planning
from dask_cloudvm.cli.common import JSON, YAML, emit, output, profiles, sets
from dask_cloudvm.options import Options


@click.command()
@profiles
@click.option("--name", help="Name of the cluster.")
@click.option("--n-workers", type=int, help="Number of workers.")
@sets
@click.option("--offline", is_flag=True, help="Ask nobody; show placeholders for what only the cloud can tell.")
@output(YAML, JSON)
def command(
    profiles: tuple[str, ...], name: str | None, n_workers: int | None, sets: tuple[str, ...], offline: bool, fmt: str
) -> None:
    """Show what up would create, keep and delete; with -o yaml or json the very bodies it would send."""
    resolved = options.resolve(*profiles, keywords={"name": name, "n_workers": n_workers}, sets=sets)
    shown = asyncio.run(_plan(environment.captured(resolved), offline))
    if fmt != "text":
        emit(shown, fmt)
        return
    click.echo(f"cluster {shown['cluster']} on {shown['cloud']}")
    for call in shown["create"]:
        click.echo(f"  + {call['operation']:8} {_names(call['names'])}".rstrip())
    for sign, action in (("=", "keep"), ("-", "delete")):
        for machine in shown[action]:
            click.echo(f"  {sign} {action:8} {machine}")
    for note in shown["notes"]:
        click.echo(f"  {note}")


def _names(names: Sequence[str]) -> str:
    return f"{names[0]} and {len(names) - 1} more" if len(names) > 1 else "".join(names)


async def _plan(resolved: Options, offline: bool) -> dict[str, Any]:
    cloud = clouds.make(resolved.cloud, resolved.values)
    cluster = resolved["name"] or "dask-new"
    existing = [] if offline else await cloud.list(cluster)
    scheduler = next((vm for vm in existing if vm.role == "scheduler" and vm.alive), None)
    facts = cloud.offline() if offline else await cloud.facts(scheduler)
    certificates = planning.placeholders() if resolved["security"] else {}
    made = planning.plan(resolved, cloud, facts, cluster, existing, "new", certificates)
    calls = planning.requests(made, cloud, facts)
    rendered = planning.render(made, calls, resolved.secrets())
    return {"cluster": cluster, "cloud": resolved.cloud, **rendered, "notes": list(facts.notes)}
