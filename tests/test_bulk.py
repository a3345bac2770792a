"""However many machines start or end at once, the cloud gets one call."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from dask_cloudvm import LocalVMCluster, clouds
from dask_cloudvm.clouds.base import RUNNING, VM
from dask_cloudvm.clouds.local import Local
from dask_cloudvm.plan import Request


class Counting(Local):
    """The local cloud, but that its workers are names only; remembers how many machines each write call was for."""

    def __init__(self, values):
        super().__init__(values)
        self.workers: dict[str, VM] = {}
        self.created: list[int] = []
        self.deleted: list[int] = []

    async def create(self, request: Request) -> list[VM]:
        self.created.append(len(request.names))
        tags = request.body["tags"]
        if tags["role"] == "scheduler":
            return await super().create(request)
        vms = [VM(name, name, tags["cluster"], "worker", RUNNING, self.name, "127.0.0.1") for name in request.names]
        self.workers |= {vm.name: vm for vm in vms}
        return vms

    async def list(self, cluster: str | None = None) -> list[VM]:
        return [*await super().list(cluster), *self.workers.values()]

    async def delete(self, vms: Sequence[VM]) -> None:
        self.deleted.append(len(vms))
        await super().delete([vm for vm in vms if not self.workers.pop(vm.name, None)])


@pytest.fixture
def cloud(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    made: list[Counting] = []

    def make(name, values, doing="work"):
        made.append(Counting(values))
        return made[-1]

    monkeypatch.setattr(clouds, "make", make)
    return made


@pytest.mark.timeout(60)
def test_starts_and_ends_at_once_are_one_call(cloud):
    async def use() -> None:
        async with LocalVMCluster(n_workers=20, security=False, asynchronous=True) as cluster:
            [counting] = cloud
            assert sorted(counting.created) == [1, 20]
            counting.created.clear()
            counting.deleted.clear()

            cluster.scale(45)
            await cluster
            assert (counting.created, counting.deleted) == ([25], [])

            cluster.scale(0)
            await cluster
            assert (counting.created, counting.deleted) == ([25], [45])

            cluster.scale(5)
            await cluster
            counting.deleted.clear()
        assert counting.deleted == [6], "closing is one call, too: for the scheduler and five workers"
        assert not await counting.list()

    asyncio.run(use())
