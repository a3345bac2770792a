from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import click

from dask_cloudvm import clouds, options
from dask_cloudvm.cli.common import JSON, emit, machine, output, profiles, sets
from dask_cloudvm.cli.interrupt import interruptible
from dask_cloudvm.options import Options

if TYPE_CHECKING:
    from dask_cloudvm.cluster import CloudCluster


@click.command()
@profiles
@click.option("--name", help="Name of the cluster; a running one of this name is adopted.")
@click.option("--n-workers", type=int, help="Number of workers.")
@sets
@click.option("--timeout", help="Longest wait for the scheduler, and then for the workers, such as 5 minutes.")
@click.option("--follow", is_flag=True, help="Stay in the foreground, scale adaptively; Ctrl-C removes the cluster.")
@output(JSON)
def command(
    profiles: tuple[str, ...],
    name: str | None,
    n_workers: int | None,
    sets: tuple[str, ...],
    timeout: str | None,
    follow: bool,
    fmt: str,
) -> None:
    """Create the cluster that PROFILES describe, wait until its workers have joined, and leave it running.

    A PROFILE is a file, or a name under cloudprovider.profiles; several are merged left to right. Without any, Dask's
    configuration and the environment decide.
    """
    keywords = {"name": name, "n_workers": n_workers, "start_timeout": timeout}
    resolved = options.resolve(*profiles, keywords=keywords, sets=sets)
    clouds.make(resolved.cloud, resolved.values, "start a cluster")
    with _progress() as report:
        asyncio.run(interruptible(_up(resolved, follow, fmt, report)))


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """Reports lines on standard error: above a spinner on a terminal, plain elsewhere."""
    if not sys.stderr.isatty():
        yield lambda line: click.echo(line, err=True)
        return
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    with console.status("starting") as status:

        def report(line: str) -> None:
            console.print(f"[green]✓[/green] {line}")
            status.update("waiting")

        yield report


async def _up(resolved: Options, follow: bool, fmt: str, report: Callable[[str], None]) -> None:
    from dask_cloudvm.cluster import CLASSES

    cluster = CLASSES[resolved.cloud].from_options(resolved, adaptive=follow, asynchronous=True, report=report)
    try:
        await cluster
        if resolved["adaptive"] and not follow:
            report(
                f"Adaptive scaling needs --follow or Python; starting the minimum of {len(cluster.worker_spec)} workers"
            )
        await cluster.ready()
        report(f"{len(cluster.observed)} workers joined")
        _show(cluster, await cluster.machines(), fmt)
        if follow:
            await _follow(cluster, report)
        else:
            cluster.detach()
    except BaseException:
        if removed := await asyncio.shield(cluster.undo()):
            report(f"Removed what was made: {', '.join(removed)}")
        raise
    await cluster.close()


async def _follow(cluster: CloudCluster, report: Callable[[str], None]) -> None:
    report("Following; Ctrl-C ends it")
    await cluster.scheduler_ended()
    report("The scheduler has ended")


def _show(cluster: CloudCluster, vms: list[Any], fmt: str) -> None:
    python = ["from dask_cloudvm import from_name", f'client = from_name("{cluster.name}").get_client()']
    result = {
        "name": cluster.name,
        "cloud": cluster.cloud_name,
        "scheduler": cluster.scheduler_address,
        "dashboard": cluster.dashboard_link,
        "workers": len(cluster.observed),
        "python": python,
        "machines": [machine(vm) for vm in vms],
    }
    if fmt == JSON:
        emit(result, fmt)
        return
    idle = cluster.idle_timeout
    ends = f"after {idle} without work, or by " if idle else "by "
    click.echo(f"Cluster {cluster.name} is running on {cluster.cloud_name} with {result['workers']} workers")
    click.echo(f"  scheduler  {result['scheduler']}")
    click.echo(f"  dashboard  {result['dashboard']}")
    click.echo(f"  ends       {ends}dask-cloudvm down {cluster.name}")
    click.echo("\n" + "\n".join(python))
