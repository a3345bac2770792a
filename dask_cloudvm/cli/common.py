"""What several verbs share: arguments with completion, tables and times."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import click
from click.shell_completion import CompletionItem

from dask_cloudvm import schema
from dask_cloudvm.clouds.base import VM

JSON, YAML, TEXT = "json", "yaml", "text"


class ClusterName(click.ParamType):  # type: ignore[type-arg]
    """The name of a cluster; completes to those that exist."""

    name = "name"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from dask_cloudvm.api import ls

        return [CompletionItem(name) for name in sorted({vm.cluster for vm in ls()}) if name.startswith(incomplete)]


class Profile(click.ParamType):  # type: ignore[type-arg]
    """A profile file, or a name under ``cloudprovider.profiles``."""

    name = "profile"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from dask_cloudvm import layers

        known = {name for layer in layers.from_files(layers.dask_files()) for name in layer.tree.get("profiles") or ()}
        names = [CompletionItem(name) for name in sorted(known) if name.startswith(incomplete)]
        return [*names, CompletionItem(incomplete, type="file")]


profiles = click.argument("profiles", nargs=-1, type=Profile())
sets = click.option("--set", "sets", multiple=True, metavar="OPTION=VALUE", help="Set one option; may be repeated.")
cloud = click.option("--cloud", type=click.Choice(schema.clouds()), help="Look on this cloud only.")


def output(*formats: str) -> Callable[[Any], Any]:
    """The option ``-o``; text is the default."""
    kind = click.Choice([TEXT, *formats])
    return click.option("-o", "--output", "fmt", type=kind, default=TEXT, help="Form of the result.")


def emit(value: Any, fmt: str) -> None:
    """Prints a result as JSON or YAML."""
    if fmt == JSON:
        click.echo(json.dumps(value, indent=2, default=str))
    else:
        click.echo(_yaml(json.loads(json.dumps(value, default=str))), nl=False)


def _yaml(value: Any) -> str:
    """YAML in which a text of several lines stands as it is."""
    import yaml

    class Dumper(yaml.SafeDumper):
        pass

    def text(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)

    Dumper.add_representer(str, text)
    return str(yaml.dump(value, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=120))


def table(rows: Sequence[Sequence[str]], head: Sequence[str]) -> None:
    """Prints columns as wide as they need to be."""
    lines = [list(head), *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    for line in lines:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def age(created: float) -> str:
    """``created`` (seconds since 1970) as a time ago: ``5 m``, ``3 h 20 m``."""
    minutes = int(max(0.0, time.time() - created) // 60)
    if minutes < 1:
        return "now"
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = [f"{n} {unit}" for n, unit in ((days, "d"), (hours, "h"), (minutes, "m")) if n]
    return " ".join(parts[:2])


def summary(name: str, vms: Sequence[VM]) -> dict[str, Any]:
    """One cluster as a row of ``ls``."""
    scheduler = next((vm for vm in vms if vm.role == "scheduler"), None)
    workers = [vm for vm in vms if vm.role == "worker" and vm.alive]
    state = scheduler.state if scheduler else "no scheduler"
    return {
        "name": name,
        "cloud": vms[0].cloud,
        "state": state,
        "workers": len(workers),
        "since": min(vm.created for vm in vms),
        "scheduler": scheduler.external_address if scheduler and scheduler.alive else None,
    }


def machine(vm: VM) -> dict[str, Any]:
    """One machine for ``-o json``."""
    names = ("name", "role", "state", "id", "private_ip", "public_ip", "zone", "spot", "created")
    return {name: getattr(vm, name) for name in names}
