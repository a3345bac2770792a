from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import click

from dask_cloudvm import api, losses
from dask_cloudvm.cli.common import JSON, ClusterName, age, cloud, emit, machine, output, summary, table
from dask_cloudvm.cli.interrupt import interruptible
from dask_cloudvm.clouds.base import VM


@click.command()
@click.argument("name", type=ClusterName())
@cloud
@output(JSON)
def command(name: str, cloud: str | None, fmt: str) -> None:
    """Show the machines of cluster NAME, and what its scheduler says."""
    result = asyncio.run(interruptible(_status(name, cloud)))
    if fmt == JSON:
        emit(result, fmt)
        return
    for key in ("name", "cloud", "state", "scheduler", "dashboard", "workers", "joined", "threads", "memory", "answer"):
        if result.get(key) is not None:
            click.echo(f"{key:10} {result[key]}")
    click.echo()
    columns = ("name", "role", "state", "dask", "since", "zone")
    table([[{**m, "since": age(m["created"])}[c] or "-" for c in columns] for m in result["machines"]], columns)
    if result["lost"]:
        click.echo()
        rows = [(loss["worker"], age(loss["when"]), f"{loss['why']}; {loss['then']}") for loss in result["lost"]]
        table(rows, ("lost worker", "since", "why"))


async def _status(name: str, cloud: str | None) -> dict[str, Any]:
    _, vms = await api.find(name, cloud)
    identity, events, answer = await _answer(name, vms)
    workers = identity.get("workers", {})
    names = {worker["name"] for worker in workers.values()}
    result = {**summary(name, vms), "joined": None, "answer": answer}
    if identity:
        from dask.utils import format_bytes

        result["joined"] = len(workers)
        result["threads"] = sum(worker["nthreads"] for worker in workers.values())
        result["memory"] = format_bytes(sum(worker["memory_limit"] or 0 for worker in workers.values()))
        result["dashboard"] = dashboard(identity, next(vm for vm in vms if vm.role == "scheduler"))
    result["lost"] = losses.reasons(events)
    result["machines"] = [{**machine(vm), "dask": "joined" if vm.name in names else None} for vm in vms]
    return result


def dashboard(identity: dict[str, Any], scheduler: VM) -> str | None:
    """The dashboard's address for clients."""
    from distributed.utils import format_dashboard_link

    port = identity.get("services", {}).get("dashboard")
    return format_dashboard_link(scheduler.public_ip or scheduler.private_ip, port) if port else None


async def _answer(name: str, vms: list[VM]) -> tuple[dict[str, Any], Sequence[Any], str | None]:
    """What the scheduler says of itself, the events of its cluster, or why it does not answer."""
    scheduler = next((vm for vm in vms if vm.role == "scheduler"), None)
    if scheduler is None or not scheduler.alive:
        why = f"the scheduler has ended; see 'dask-cloudvm logs {name}', remove it by 'dask-cloudvm down {name}'"
        return {}, (), why
    from dask_cloudvm import tls
    from dask_cloudvm.machines import ask, security

    async def questions(remote: Any) -> tuple[dict[str, Any], Sequence[Any]]:
        return await remote.identity(n_workers=-1), await remote.events(topic=losses.TOPIC)

    try:
        identity, events = await ask(scheduler, security(tls.load(name) or {}), questions)
    except (OSError, asyncio.TimeoutError, ValueError) as error:
        return {}, (), f"the scheduler does not answer: {str(error) or type(error).__name__}"
    return identity, events, None
