"""The functions that need no cluster class: by profile, by name, all there is."""

from __future__ import annotations

import asyncio
import os
import warnings
from collections import defaultdict
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from dask_cloudvm import clouds, options, tls
from dask_cloudvm.clouds.base import VM, Cloud
from dask_cloudvm.errors import AmbiguousName, CloudError, ClusterNotFound

if TYPE_CHECKING:
    from dask_cloudvm.cluster import CloudCluster

T = TypeVar("T")


def from_profile(*profiles: str | os.PathLike[str], **keywords: Any) -> CloudCluster:
    """A cluster on the cloud that the profiles name, as its class would make it.

    Parameters
    ----------
    profiles : paths, or names under ``cloudprovider.profiles``; merged left to right
    keywords : any option, which wins over the profiles, and any argument of the cluster classes
    """
    from dask_cloudvm.cluster import CLASSES

    cloud = options.resolve(*profiles, cloud=keywords.pop("cloud", None)).cloud
    return CLASSES[cloud](profile=profiles, **keywords)


def from_name(name: str, cloud: str | None = None, **keywords: Any) -> CloudCluster:
    """The running cluster of this name, on whatever cloud it is; closing the object leaves it running.

    Raises :class:`dask_cloudvm.errors.ClusterNotFound`, which lists the names that exist.
    """
    from dask_cloudvm.cluster import CLASSES

    home, _ = run(find(name, cloud))
    return CLASSES[home.name].from_name(name, **keywords)


def ls() -> list[VM]:
    """Every machine of every cluster, on every cloud that can be asked."""
    return run(everything())


def down(*names: str, cloud: str | None = None) -> list[VM]:
    """Removes clusters by name, without their profile and whether or not they answer; the machines removed.

    Raises :class:`dask_cloudvm.errors.ClusterNotFound` before anything is removed.
    """
    return run(remove(names, cloud))


def run(work: Coroutine[Any, Any, T]) -> T:
    """``asyncio.run`` that also works where an event loop runs already, as in Jupyter."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()


async def everything(cloud: str | None = None) -> list[VM]:
    """Like :func:`ls`, asynchronous; of one cloud, or of all with a warning for each that cannot be asked."""
    return [vm for _, vms in await ask(cloud, lambda each: each.list()) for vm in vms]


async def ask(cloud: str | None, question: Callable[[Cloud], Awaitable[T]]) -> list[tuple[Cloud, T]]:
    """The answers of one cloud, or of all that can be asked with a warning for each that cannot."""
    found, failures = await _answers(cloud, question)
    _warn(failures)
    return found


def _warn(failures: Sequence[CloudError]) -> None:
    """Clusters elsewhere can be looked at and removed even so."""
    for failure in failures:
        warnings.warn(str(failure), stacklevel=3)


async def _answers(
    cloud: str | None, question: Callable[[Cloud], Awaitable[T]]
) -> tuple[list[tuple[Cloud, T]], list[CloudError]]:
    """The answers of one cloud, or of all, and why some have none."""
    asked = [clouds.default(cloud)] if cloud else clouds.existing()
    answers = await asyncio.gather(*map(question, asked), return_exceptions=True)
    found: list[tuple[Cloud, T]] = []
    failures: list[CloudError] = []
    for each, answer in zip(asked, answers, strict=True):
        if not isinstance(answer, BaseException):
            found.append((each, answer))
        elif cloud or not isinstance(answer, CloudError):
            raise answer
        else:
            failures.append(answer)
    return found, failures


async def find(name: str, cloud: str | None = None) -> tuple[Cloud, list[VM]]:
    """The cloud that has cluster ``name``, and its machines.

    Raises ClusterNotFound, AmbiguousName, and CloudError where it may be on a cloud that cannot be asked.
    """
    answers, failures = await _answers(cloud, lambda each: each.list())
    found = [vm for _, vms in answers for vm in vms]
    mine = [vm for vm in found if vm.cluster == name]
    if not mine:
        raise failures[0] if failures else ClusterNotFound(name, {vm.cluster for vm in found})
    _warn(failures)
    if len(homes := sorted({vm.cloud for vm in mine})) > 1:
        raise AmbiguousName(name=name, clouds=" and ".join(homes))
    return clouds.default(homes[0]), mine


async def remove(names: Sequence[str], cloud: str | None = None) -> list[VM]:
    """Like :func:`down`, asynchronous."""
    found = [await find(name, cloud) for name in dict.fromkeys(names)]
    per_cloud: dict[str, tuple[Cloud, list[VM]]] = {}
    for home, vms in found:
        per_cloud.setdefault(home.name, (home, []))[1].extend(vms)
    for home, vms in per_cloud.values():
        await home.delete(vms)
    for name in names:
        tls.forget(name)
    return [vm for _, vms in found for vm in vms]


def by_cluster(vms: Sequence[VM]) -> dict[str, list[VM]]:
    """Machines grouped by the name of their cluster, in order."""
    groups: dict[str, list[VM]] = defaultdict(list)
    for vm in vms:
        groups[vm.cluster].append(vm)
    return dict(groups)
