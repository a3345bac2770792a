"""The embedded cloud: a machine is a detached process group on this computer, and its tags are a file.

Needs no account, no root and no network. Records, logs and files live in the user's state folder, one folder a machine.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from dask_cloudvm import bootstrap, tls
from dask_cloudvm.clouds import local_records, machine
from dask_cloudvm.clouds.base import VM, Checks, Facts, Part, Parts, Requests, VMs, checks
from dask_cloudvm.clouds.local_address import address_of, free_port
from dask_cloudvm.errors import CloudError, NameTaken, StateError
from dask_cloudvm.plan import Machine, Request
from dask_cloudvm.threads import in_thread

START = 60.0  # seconds for a machine's process to run its command
TAIL = 64 << 10  # bytes of a log that console() returns
LOG = "console.log"


@dataclass(frozen=True)
class LocalFacts(Facts):
    """Where the scheduler will listen on this computer."""

    host: str = "127.0.0.1"
    dashboard_port: int | None = None


class Local:
    """The local cloud for one set of options; see :class:`dask_cloudvm.clouds.base.Cloud` for each method."""

    name: ClassVar[str] = local_records.NAME
    user_data_limit: ClassVar[int] = 1 << 20
    place: ClassVar[str] = ""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values
        self.root = tls.state_folder() / "local"
        self.shortfall = ""
        self.unseen: dict[str, CloudError] = {}

    @staticmethod
    def usable() -> bool:
        return True

    def check(self) -> None:
        """This computer refuses nothing."""

    async def facts(self, scheduler: VM | None) -> LocalFacts:
        return await in_thread(self._facts, scheduler)

    def _facts(self, scheduler: VM | None) -> LocalFacts:
        if scheduler is not None:
            return LocalFacts(scheduler.port or 0, scheduler.private_ip)
        host = address_of(self.values["interface"])
        chosen = self.values["scheduler_options"].get("port", self.values["port"])
        port = free_port(host, chosen or 0, "port")
        if dashboard := self.values["dashboard_port"]:
            free_port(host, dashboard, "dashboard_port")
        return LocalFacts(port, host, dashboard)

    def offline(self) -> LocalFacts:
        return LocalFacts(self.values["scheduler_options"].get("port", self.values["port"]) or 0)

    def launch(self, facts: LocalFacts, certificates: Mapping[str, str], address: str, role: str) -> bootstrap.Launch:
        if role == "scheduler":
            dashboard = f"{facts.host}:{facts.dashboard_port or 8787}"
            extra = {"host": facts.host, "port": facts.port, "dashboard_address": dashboard}
            # The port is in `extra` already, as one that is known to be free.
            others = {k: v for k, v in self.values["scheduler_options"].items() if k != "port"}
            options = {**self.values, "scheduler_options": others}
            return bootstrap.scheduler(options, certificates, python=sys.executable, extra=extra)
        extra = {
            "host": facts.host,
            "nthreads": self.values["nthreads"],
            "memory_limit": self.values["memory_limit"],
            "local_directory": bootstrap.DIR,
        }
        # Variables of this computer's user count, so none is set here.
        return bootstrap.worker(self.values, certificates, address, python=sys.executable, extra=extra, env={})

    def requests(self, machines: Sequence[Machine], facts: Facts) -> Requests:
        first, launch = machines[0], machines[0].launch
        body = {
            "tags": {**self.values["instance_tags"], **{k: v for k, v in first.tags.items() if k != "name"}},
            "protocol": bootstrap.protocol(first.options),
            "port": facts.port if first.role == "scheduler" else None,
            "host": facts.host,
            "argv": list(launch.argv),
            "env": dict(launch.env),
            "files": dict(launch.files),
        }
        return [Request("start", tuple(m.name for m in machines), body)]

    async def create(self, request: Request) -> VMs:
        return await in_thread(self._create, request)

    def _create(self, request: Request) -> VMs:
        cluster = request.body["tags"]["cluster"]
        folders: list[Path] = []
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            with machine.lock(str(self.root)):
                for name in request.names:
                    folders.append(self._claim(cluster, name))
                    self._prepare(folders[-1], name, request.body)
            starts = [(folder, self._boot(folder)) for folder in folders]
        except FileExistsError:
            local_records.remove(folders)
            raise NameTaken(name=cluster) from None
        except OSError as error:
            local_records.remove(folders)
            raise StateError.of("start machines", self.root, error) from None
        failed = [folder for folder, start in starts if not _has_started(start)]
        if failed:
            what = _tail(failed[0] / LOG).strip() or f"its process did not run within {START:g} seconds"
            local_records.remove(folders)
            raise CloudError(doing="start a machine", what=what, hint="change worker_command or worker_module")
        return [local_records.read(folder) for folder in folders]

    def _claim(self, cluster: str, name: str) -> Path:
        """A new folder for a machine. Raises FileExistsError where there is one of this name."""
        folder = self.root / cluster / name
        folder.parent.mkdir(mode=0o700, exist_ok=True)
        folder.mkdir(mode=0o700)
        return folder

    def _prepare(self, folder: Path, name: str, body: Mapping[str, Any]) -> None:
        """The machine's disk: its files, and its record, which makes it exist."""

        def fill(text: str) -> str:
            return bootstrap.fill(text, name, str(folder))

        in_json = json.dumps(str(folder))[1:-1]
        for file, text in body["files"].items():
            own = in_json if file.endswith(".json") else str(folder)
            tls.write_private(folder / file, bootstrap.fill(text, name, own))
        record = {
            **{key: body[key] for key in ("tags", "protocol", "port", "host")},
            "name": name,
            "created": time.time(),
            "argv": [fill(part) for part in body["argv"]],
            "env": {key: fill(value) for key, value in body["env"].items()},
        }
        tls.write_private(folder / machine.RECORD, json.dumps(record))

    def _boot(self, folder: Path) -> subprocess.Popen[bytes]:
        with open(os.open(folder / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as log:
            command = [sys.executable, "-I", "-S", machine.__file__, str(self.root), str(folder)]
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    async def home(self) -> str:
        return ""

    async def list(self, cluster: str | None = None) -> VMs:
        return await in_thread(self._list, cluster)

    def _list(self, cluster: str | None) -> VMs:
        try:
            clusters = [each for each in sorted(self.root.iterdir()) if cluster in (None, each.name) and each.is_dir()]
            folders = [folder for each in clusters for folder in sorted(each.iterdir()) if folder.is_dir()]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StateError.of("list machines", self.root, error) from None
        return [local_records.read(folder) for folder in folders]

    async def locate(self, vm: VM) -> VM:
        return vm

    async def delete(self, vms: Sequence[VM]) -> None:
        await in_thread(self._delete, vms)

    def _delete(self, vms: Sequence[VM]) -> None:
        if not vms:
            return
        try:
            local_records.remove([Path(vm.id) for vm in vms], {Path(vm.id): vm.created for vm in vms})
        except OSError as error:
            raise StateError.of("remove machines", self.root, error) from None

    async def widen(self) -> None:
        pass

    async def parts(self) -> Parts:
        return []

    async def remove(self, part: Part) -> bool:
        return True

    async def console(self, vm: VM) -> str:
        return await in_thread(_tail, Path(vm.id) / LOG)

    async def doctor(self) -> Checks:
        return await checks([("account", self._account), ("records", self._records)])

    async def _account(self) -> str:
        return "this computer needs none"

    async def _records(self) -> str:
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            with machine.lock(str(self.root)):
                return f"in {self.root}"
        except OSError as error:
            raise StateError.of("keep records", self.root, error) from None

    def policies(self, role: str | None) -> Mapping[str, Mapping[str, Any]]:
        return {}


def _has_started(start: subprocess.Popen[bytes]) -> bool:
    try:
        return start.wait(START) == 0
    except subprocess.TimeoutExpired:
        start.kill()
        start.wait()
        return False


def _tail(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL))
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""
