"""The functions that need no cluster class: by profile, by name, all there is."""

from __future__ import annotations

import asyncio
import os
import warnings
from collections import defaultdict
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from dask_cloudvm import clouds, options, places, schema, tls
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
    found, failures = await answers(cloud, question)
    warn(failures)
    return found


def warn(failures: Sequence[CloudError]) -> None:
    """Clusters elsewhere can be looked at and removed even so."""
    for failure in failures:
        warnings.warn(str(failure), stacklevel=3)


async def answers(
    cloud: str | None, question: Callable[[Cloud], Awaitable[T]]
) -> tuple[list[tuple[Cloud, T]], list[CloudError]]:
    """The answers of one cloud, or of all, and why some have none."""
    asked = await everywhere(cloud)
    told = await asyncio.gather(*map(question, asked), return_exceptions=True)
    found: list[tuple[Cloud, T]] = []
    failures: list[CloudError] = []
    for each, answer in zip(asked, told, strict=True):
        if not isinstance(answer, BaseException):
            found.append((each, answer))
        elif cloud or not isinstance(answer, CloudError):
            raise answer
        else:
            failures.append(answer)
    return found, failures


async def everywhere(cloud: str | None) -> list[Cloud]:
    """One cloud, or all on which clusters may exist, the local one first; once for each place where they may be."""
    homes = await asyncio.gather(*(_homes(name, cloud is not None) for name in ([cloud] if cloud else clouds.REGISTRY)))
    return [home for of_cloud in homes for home in of_cloud]


async def _homes(name: str, asked: bool) -> list[Cloud]:
    """A cloud where its own defaults say, and wherever else its user has clusters, or may have."""
    cls = clouds.of(name)
    first = [clouds.default(name)] if asked or cls.usable() else []
    if not cls.place:
        return first
    if chosen := os.environ.get(schema.options(name)[cls.place].env(name)):
        return [clouds.default(name, **{cls.place: chosen})]
    homes = {place: clouds.default(name, **{cls.place: place}) for place in places.known(name, cls.place)}
    for home in first:
        try:
            homes.setdefault(await home.home(), home)
        except CloudError:  # there is no default
            homes = homes or {"": home}
    return list(homes.values())


async def find(name: str, cloud: str | None = None) -> tuple[Cloud, list[VM]]:
    """The cloud that has cluster ``name``, and its machines.

    Raises ClusterNotFound, AmbiguousName, and CloudError where it may be on a cloud that cannot be asked.
    """
    asked = name if schema.is_name(name) else None  # no other text is a name to a cloud: it may mean more there
    told, failures = await answers(cloud, lambda each: each.list(asked))
    found = [(home, mine) for home, vms in told if (mine := [vm for vm in vms if vm.cluster == name])]
    if not found:
        raise failures[0] if failures else ClusterNotFound(name, {vm.cluster for vm in await everything(cloud)})
    warn(failures)
    if len(found) > 1:
        raise await _ambiguous(name, [home for home, _ in found])
    return found[0]


async def _ambiguous(name: str, homes: Sequence[Cloud]) -> AmbiguousName:
    if len(names := sorted({home.name for home in homes})) > 1:
        return AmbiguousName(name=name, clouds=" and ".join(names), how="--cloud, or cloud= in Python")
    option = schema.options(names[0])[homes[0].place]
    where = " and ".join([f"{option.name} {await home.home()}" for home in homes])
    return AmbiguousName(name=name, clouds=where, how=f"${option.env(names[0])}")


async def remove(names: Sequence[str], cloud: str | None = None) -> list[VM]:
    """Like :func:`down`, asynchronous."""
    return await discard([await find(name, cloud) for name in dict.fromkeys(names)])


async def discard(found: Sequence[tuple[Cloud, list[VM]]]) -> list[VM]:
    """Removes these machines, which are all of their clusters, by one call for each place where there are some."""
    per_place: dict[tuple[str, str], tuple[Cloud, list[VM]]] = {}
    for home, vms in [each for each in found if each[1]]:
        per_place.setdefault((home.name, await home.home()), (home, []))[1].extend(vms)
    for home, vms in per_place.values():
        await home.delete(vms)
    removed = [vm for _, vms in found for vm in vms]
    for name in {vm.cluster for vm in removed}:
        tls.forget(name)
    return removed


def by_cluster(vms: Sequence[VM]) -> dict[str, list[VM]]:
    """Machines grouped by the name of their cluster, in order."""
    groups: dict[str, list[VM]] = defaultdict(list)
    for vm in vms:
        groups[vm.cluster].append(vm)
    return dict(groups)
