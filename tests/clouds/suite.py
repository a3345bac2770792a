"""What every cloud must do, whatever it is. A cloud opts in by a file of its own: it subclasses these classes and gives

* ``settings``: a fixture with the options of a small, quick cluster on it, by name,
* ``recreate``: a fixture with a function that makes another object of the cloud for the same options.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from types import SimpleNamespace
from typing import Any

import pytest

from dask_cloudvm import clouds, leftovers, options, places, tls
from dask_cloudvm import plan as planning
from dask_cloudvm.clouds.base import VM, Cloud, Facts
from dask_cloudvm.options import Options
from dask_cloudvm.plan import Request

CLUSTER, TOKEN = "suite", "3fa9c1"
GRACE = leftovers.GRACE


@dataclass
class Subject:
    """One cloud under test."""

    options: Options
    cloud: Cloud

    def wanted(self, facts: Facts, role: str, names: Sequence[str], **kw: Any) -> list[Request]:
        certificates: Mapping[str, str] = kw.pop("certificates", {})
        address = kw.pop("address", f"tcp://127.0.0.1:{facts.port}")
        machines = planning.machines(
            self.options, self.cloud, facts, CLUSTER, role, names, certificates=certificates, address=address
        )
        return list(self.cloud.requests(machines, facts))

    async def create(self, role: str, names: Sequence[str], scheduler: VM | None = None) -> list[VM]:
        facts = await self.cloud.facts(scheduler)
        if place := await self.cloud.home():
            places.remember(self.cloud.name, place)
        return [vm for request in self.wanted(facts, role, names) for vm in await self.cloud.create(request)]

    async def cluster(self, n: int) -> list[VM]:
        """A scheduler and its workers, as one launcher makes them."""
        [scheduler] = await self.create("scheduler", [planning.scheduler_name(CLUSTER)])
        return [scheduler, *await self.create("worker", workers(n))]


def workers(n: int, first: int = 0) -> list[str]:
    return [planning.worker_name(CLUSTER, TOKEN, i) for i in range(first, first + n)]


def subject(cloud: str, **settings: Any) -> Subject:
    resolved = options.resolve(cloud=cloud, keywords={"security": False, **settings})
    return Subject(resolved, clouds.make(cloud, resolved.values))


def run(work: Any) -> Any:
    return asyncio.run(work)


def alive(vms: Sequence[VM]) -> set[str]:
    return {vm.name for vm in vms if vm.alive}


class Suite:
    """Fixtures that the classes below share."""

    name: str

    @pytest.fixture
    def settings(self) -> dict[str, Any]:
        return {}

    @pytest.fixture
    def recreate(self, settings: dict[str, Any]) -> Callable[[], Subject]:
        return lambda: subject(self.name, **settings)

    @pytest.fixture
    def it(self, recreate: Callable[[], Subject]) -> Any:
        it = recreate()
        yield it
        run(self._remove_all(recreate()))

    async def _remove_all(self, it: Subject) -> None:
        await it.cloud.delete(await it.cloud.list(CLUSTER))


class Planning(Suite):
    """Everything before the first write call is pure, or reads only."""

    def test_making_a_cloud_asks_nobody(self, it: Subject) -> None:
        assert it.cloud.name == self.name and it.cloud.user_data_limit > 0 and it.cloud.shortfall == ""

    def test_a_plan_can_be_made_offline(self, it: Subject) -> None:
        facts = it.cloud.offline()
        made = it.wanted(facts, "scheduler", [planning.scheduler_name(CLUSTER)], address="tcp://<scheduler>:8786")
        assert made and json.dumps([request.body for request in made])

    def test_requests_are_pure(self, it: Subject) -> None:
        facts = run(it.cloud.facts(None))
        assert it.wanted(facts, "worker", workers(3)) == it.wanted(facts, "worker", workers(3))

    def test_names_of_requests_are_those_asked_for(self, it: Subject) -> None:
        facts = it.cloud.offline()
        for n in (1, 2, 50):
            made = it.wanted(facts, "worker", workers(n))
            assert [name for request in made for name in request.names] == workers(n)

    def test_a_role_gets_its_own_files_only(self, it: Subject) -> None:
        files = tls.make(CLUSTER)
        facts = it.cloud.offline()
        for role, name in (("scheduler", planning.scheduler_name(CLUSTER)), ("worker", workers(1)[0])):
            text = str([r.body for r in it.wanted(facts, role, [name], certificates=files)])
            own = {file for file in files if "".join(files[file].split()) in "".join(text.replace("\\n", "").split())}
            assert own == {"ca.pem", f"{role}.pem", f"{role}.key"}


class Life(Suite):
    """From nothing to machines and back."""

    def test_nothing_is_there_at_first(self, it: Subject) -> None:
        assert run(it.cloud.list(CLUSTER)) == []
        run(it.cloud.delete([]))

    def test_machines_are_found_again_by_their_tags(self, it: Subject, recreate: Callable[[], Subject]) -> None:
        async def check() -> None:
            made = await it.cluster(3)
            assert [vm.name for vm in made] == [planning.scheduler_name(CLUSTER), *workers(3)]
            for other in (it, recreate()):
                found = {vm.name: vm for vm in await other.cloud.list(CLUSTER)}
                assert set(found) == {vm.name for vm in made}
                for vm in made:
                    again = found[vm.name]
                    for fact in ("id", "cluster", "role", "cloud", "protocol", "private_ip", "options_digest"):
                        assert getattr(again, fact) == getattr(vm, fact), fact
                    assert again.alive and again.options_digest == it.options.digest()
                scheduler = found[planning.scheduler_name(CLUSTER)]
                assert scheduler.port == made[0].port and scheduler.address == made[0].address
            assert {vm.name for vm in await it.cloud.list()} == set(found)
            assert await it.cloud.list("another") == []

        run(check())

    def test_delete_is_idempotent(self, it: Subject, recreate: Callable[[], Subject]) -> None:
        async def check() -> None:
            made = await it.cluster(2)
            await it.cloud.delete(made[1:2])
            assert alive(await it.cloud.list(CLUSTER)) == {made[0].name, made[2].name}
            for cloud in (it.cloud, it.cloud, recreate().cloud):
                await cloud.delete(made)
                assert alive(await cloud.list(CLUSTER)) == set()

        run(check())

    def test_the_scheduler_can_be_located(self, it: Subject) -> None:
        async def check() -> None:
            [scheduler] = await it.create("scheduler", [planning.scheduler_name(CLUSTER)])
            assert (await it.cloud.locate(scheduler)).id == scheduler.id
            assert isinstance(await it.cloud.console(scheduler), str)

        run(check())

    def test_workers_are_added_by_another_launcher(self, it: Subject, recreate: Callable[[], Subject]) -> None:
        async def check() -> None:
            [scheduler, _] = await it.cluster(1)
            more = await recreate().create("worker", workers(2, first=10), scheduler)
            assert [vm.name for vm in more] == workers(2, first=10)
            assert alive(await it.cloud.list(CLUSTER)) == {scheduler.name, *workers(1), *workers(2, first=10)}

        run(check())


class Leftovers(Suite):
    """What is left of clusters that are gone is found, and nothing else."""

    @pytest.fixture(autouse=True)
    def all_is_old(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(leftovers, "GRACE", float("-inf"))

    def found(self, network: bool = False) -> set[str]:
        return {each.it.name for them in run(leftovers.find(self.name, network)).values() for each in them}

    def collect(self) -> None:
        async def everything() -> None:
            for cloud, them in (await leftovers.find(self.name, network=True)).items():
                assert await leftovers.remove(cloud, them) == []

        run(everything())

    def test_a_cluster_with_a_scheduler_stays_and_one_without_goes(self, it: Subject) -> None:
        made = run(it.cluster(2))
        assert self.found(network=True) == set()
        run(it.cloud.delete(made[:1]))
        assert self.found() == set(workers(2))
        self.collect()
        assert alive(run(it.cloud.list(CLUSTER))) == set() and not self.found()

    def test_what_is_young_stays(self, it: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(leftovers, "GRACE", GRACE)
        if self.name == "azure":  # its fake has one time for everything
            now = datetime.now(timezone.utc).isoformat(timespec="microseconds")
            monkeypatch.setattr(sys.modules["azure_fake"], "CREATED", now)
        [scheduler, worker] = run(it.cluster(1))
        run(it.cloud.delete([scheduler]))
        assert self.found(network=True) == set()
        assert self.later(monkeypatch) >= {worker.name}
        run(it.cloud.delete([worker]))
        parts = run(it.cloud.parts())
        assert not {part.name for part in parts} & self.found(network=True)
        assert self.later(monkeypatch) >= {part.name for part in parts}

    def later(self, monkeypatch: pytest.MonkeyPatch) -> set[str]:
        """What is left over 20 minutes from now."""
        clock = SimpleNamespace(time=lambda: time.time() + 1200)
        with monkeypatch.context() as patch:
            patch.setattr(leftovers, "time", clock)
            return self.found(network=True)

    def test_shared_parts_go_when_nobody_uses_them_and_are_made_again(
        self, it: Subject, recreate: Callable[[], Subject]
    ) -> None:
        run(it.cloud.delete(run(it.cluster(1))))
        parts = run(it.cloud.parts())
        assert self.found(network=True) >= {part.name for part in parts}
        self.collect()
        assert run(it.cloud.parts()) == []
        for part in parts:
            assert run(it.cloud.remove(part)), "idempotent"
        assert len(run(recreate().cluster(1))) == 2
        assert {part.name for part in run(it.cloud.parts())} == {part.name for part in parts}
