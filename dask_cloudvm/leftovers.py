"""What clusters that are gone have left behind: machines without a scheduler, shared parts of networks without use."""

from __future__ import annotations

import re
import time
import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from dask_cloudvm.api import answers, warn
from dask_cloudvm.clouds.base import VM, Cloud, Part
from dask_cloudvm.errors import CloudError

_REGION = re.compile(r"[a-z]+(-[a-z]+)+-[0-9]+")  # of AWS, with which a zone begins
GRACE = 900.0  # seconds: what is younger may belong to a cluster that another launcher is just making


@dataclass(frozen=True)
class Leftover:
    """One machine or shared part, and why nobody needs it."""

    it: VM | Part
    why: str


class Found(dict[Cloud, list[Leftover]]):
    """What is left over on each cloud that could be asked."""

    complete = True  # whether all clouds and regions could be looked at


async def find(cloud: str | None, network: bool) -> Found:
    """What could be removed, on one cloud or all that can be asked, in every region. Only what is tagged as ours.

    Warns about each cloud, region or kind of thing that cannot be looked at.
    """
    told, failures = await answers(cloud, lambda each: _on(each, network))
    warn(failures)
    found = Found({each: them for each, (them, _) in told})
    found.complete = not failures and all(complete for _, (_, complete) in told)
    return found


async def _on(cloud: Cloud, network: bool) -> tuple[list[Leftover], bool]:
    """What is left over on one cloud, and whether all of it could be looked at."""
    await cloud.widen()
    now = time.time()
    found = machines(await cloud.list(), now)
    if network:
        try:
            found += unused(await cloud.parts(), now)
        except CloudError as error:  # machines cost money, shared parts do not: they are worth having alone
            warnings.warn(str(error), stacklevel=2)
            return found, False
    return found, not cloud.unseen


def machines(vms: Sequence[VM], now: float) -> list[Leftover]:
    """Machines that have ended, and all machines of clusters whose scheduler has."""
    found = []
    for (name, region), of_cluster in _clusters(vms).items():
        if any(vm.role == "scheduler" and vm.alive for vm in of_cluster):
            found += [Leftover(vm, "it has ended") for vm in of_cluster if not vm.alive]
        elif now - max(vm.created for vm in of_cluster) > GRACE:
            found += [Leftover(vm, f"cluster {name} has no scheduler{region and f' in {region}'}") for vm in of_cluster]
    return found


def _clusters(vms: Sequence[VM]) -> dict[tuple[str, str], list[VM]]:
    """Machines by cluster and, where it is the whole home of a cluster, region; Google's networks span regions."""
    groups: dict[tuple[str, str], list[VM]] = defaultdict(list)
    for vm in vms:
        region = _REGION.match(vm.zone or "")
        groups[vm.cluster, region[0] if region else ""].append(vm)
    return dict(groups)


def unused(parts: Sequence[Part], now: float) -> list[Leftover]:
    """Shared parts of networks that no machine uses."""
    return [Leftover(part, "no machine uses it") for part in parts if not part.used and now - part.created > GRACE]


async def remove(cloud: Cloud, leftovers: Sequence[Leftover]) -> list[Leftover]:
    """Removes what was found on one cloud; what stays, since it is in use after all."""
    await cloud.delete([each.it for each in leftovers if isinstance(each.it, VM)])
    return [each for each in leftovers if isinstance(each.it, Part) and not await cloud.remove(each.it)]
