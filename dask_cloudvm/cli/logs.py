from __future__ import annotations

import asyncio

import click

from dask_cloudvm import api
from dask_cloudvm.cli.common import JSON, ClusterName, cloud, emit, output
from dask_cloudvm.cli.interrupt import interruptible
from dask_cloudvm.clouds.base import VM, Cloud
from dask_cloudvm.errors import CloudVMError, did_you_mean


class MachineNotFound(CloudVMError):
    message = "cluster {name!r} has no machine {machine!r}{near}; it has {known}"


@click.command()
@click.argument("name", type=ClusterName())
@click.option("--worker", metavar="NAME", help="One machine only: its name, or the end of it.")
@click.option("--boot", is_flag=True, help="What the machines wrote to their consoles, not what Dask keeps.")
@cloud
@output(JSON)
def command(name: str, worker: str | None, boot: bool, cloud: str | None, fmt: str) -> None:
    """Show the logs of cluster NAME, from Dask where it answers and else from the machines' consoles."""
    texts = asyncio.run(interruptible(_logs(name, worker, boot, cloud)))
    if fmt == JSON:
        emit(texts, fmt)
        return
    for machine, text in texts.items():
        click.echo(f"==> {machine} <==\n{text.rstrip()}\n")


async def _logs(name: str, worker: str | None, boot: bool, cloud: str | None) -> dict[str, str]:
    home, vms = await api.find(name, cloud)
    chosen = [vm for vm in vms if worker is None or vm.name.endswith(worker)]
    if not chosen:
        known = [vm.name for vm in vms]
        raise MachineNotFound(name=name, machine=worker, near=did_you_mean(worker or "", known), known=", ".join(known))
    kept = {} if boot else await _from_dask(name, vms)
    return {vm.name: kept.get(vm.name) or await _console(home, vm) for vm in chosen}


async def _console(home: Cloud, vm: VM) -> str:
    return await home.console(vm) or "(nothing)"


async def _from_dask(name: str, vms: list[VM]) -> dict[str, str]:
    """What the scheduler and the workers keep themselves, by machine; empty where the scheduler does not answer."""
    from dask_cloudvm import tls
    from dask_cloudvm.machines import ask, security

    scheduler = next((vm for vm in vms if vm.role == "scheduler" and vm.alive), None)
    if scheduler is None:
        return {}
    secured = security(tls.load(name) or {})
    try:
        own = await ask(scheduler, secured, lambda remote: remote.get_logs())
        identity = await ask(scheduler, secured, lambda remote: remote.identity())
        logs = await ask(scheduler, secured, lambda remote: remote.worker_logs())
    except (OSError, asyncio.TimeoutError, ValueError):
        return {}
    by_name = {
        identity["workers"][address]["name"]: log for address, log in logs.items() if address in identity["workers"]
    }
    newest_first = {scheduler.name: own, **by_name}
    return {machine: "\n".join(line for _, line in reversed(log)) for machine, log in newest_first.items()}
