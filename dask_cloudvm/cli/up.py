from __future__ import annotations

import asyncio
import contextlib
import sys
from typing import TYPE_CHECKING, Any

import click

from dask_cloudvm import options
from dask_cloudvm.cli.common import JSON, emit, machine, output, profiles, sets
from dask_cloudvm.cli.interrupt import interruptible
from dask_cloudvm.errors import counted
from dask_cloudvm.options import Options

if TYPE_CHECKING:
    from dask_cloudvm.cluster import CloudCluster


@click.command()
@profiles
@click.option("--name", help="Name of the cluster; a running one of this name is adopted.")
@click.option("--n-workers", type=int, help="Number of workers.")
@sets
@click.option("--timeout", help="Longest wait for the scheduler, and then for the workers, such as 5 minutes.")
@click.option(
    "--follow",
    is_flag=True,
    help="Stay in the foreground, scale adaptively; Ctrl-C removes what was made.",
)
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
    progress = Progress()
    try:
        asyncio.run(interruptible(_up(resolved, follow, fmt, progress)))
    finally:
        progress.pause()


class Progress:
    """Lines on standard error: above a spinner that says what is waited for on a terminal, plain elsewhere."""

    def __init__(self) -> None:
        self.status: Any = None
        if sys.stderr.isatty():
            from rich.console import Console

            self.status = Console(stderr=True, highlight=False).status("")

    def __call__(self, line: str) -> None:
        with contextlib.suppress(OSError):  # the terminal may be gone; what is made must be removed all the same
            if self.status:
                self.status.console.print(f"[green]✓[/green] {line}")
            else:
                click.echo(line, err=True)

    def wait_for(self, what: str) -> None:
        if self.status:
            with contextlib.suppress(OSError):
                self.status.update(f"waiting for {what}")
                self.status.start()

    def pause(self) -> None:
        """Takes the spinner away, for what goes to standard output."""
        if self.status:
            self.status.stop()


async def _up(resolved: Options, follow: bool, fmt: str, progress: Progress) -> None:
    from dask_cloudvm.cluster import CLASSES

    cluster = CLASSES[resolved.cloud].from_options(resolved, adaptive=follow, asynchronous=True, report=progress)
    ready = False
    try:
        progress.wait_for("the scheduler")
        await cluster
        n = len(cluster.worker_spec)
        if resolved["adaptive"] and not follow:
            progress(f"Starting {counted(n, 'worker')}; adaptive scaling needs --follow, or Python")
        progress.wait_for(f"{counted(n, 'worker')} to join")
        await cluster.ready()
        progress(f"{counted(len(cluster.observed), 'worker')} joined")
        machines = await cluster.machines()
        if not follow:
            cluster.detach()
            ready = True
        progress.pause()
        _show(cluster, machines, fmt)
        if follow:
            await _follow(cluster, progress)
    except BaseException:
        if ready:  # whatever went wrong afterwards, such as a closed pipe: the cluster stays
            raise
        progress.wait_for("the removal of what was made")
        if removed := await cluster.clean_up():
            progress(f"Removed what was made: {', '.join(removed)}")
        raise
    await cluster.close()


async def _follow(cluster: CloudCluster, report: Progress) -> None:
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
    workers = counted(len(cluster.observed), "worker")
    click.echo(f"Cluster {cluster.name} is running on {cluster.cloud_name} with {workers}")
    click.echo(f"  scheduler  {result['scheduler']}")
    click.echo(f"  dashboard  {result['dashboard']}")
    click.echo(f"  ends       {ends}dask-cloudvm down {cluster.name}")
    click.echo("\n" + "\n".join(python))
