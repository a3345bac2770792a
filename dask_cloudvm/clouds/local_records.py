"""Records and processes of the machines of the local cloud: a folder each, and a mark in each process's environment."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from dask_cloudvm.clouds import machine
from dask_cloudvm.clouds.base import ENDED, PENDING, RUNNING, VM
from dask_cloudvm.errors import CloudError

NAME = "local"
GRACE = 0.5  # seconds from SIGTERM to SIGKILL: a scheduler tells its clients in 0.2, workers need over 4 without it
KILLED = 30.0  # seconds for a process to end after SIGKILL
BOOT = 30.0  # seconds after which a machine that never registered its process counts as ended


def record_of(folder: Path) -> dict[str, Any]:
    """The record of a machine; for a folder without a whole one, made or removed by half, what its path tells."""
    try:
        record: dict[str, Any] = json.loads((folder / machine.RECORD).read_text("utf-8"))
        if {"name", "tags", "created", "protocol", "port", "host"} <= set(record):
            return record
    except (OSError, ValueError, TypeError):
        pass
    role = "scheduler" if folder.name.endswith("-scheduler") else "worker"
    tags = {"cluster": folder.parent.name, "role": role, "options": ""}
    return {"name": folder.name, "tags": tags, "created": 0.0, "protocol": "tls", "port": None, "host": "127.0.0.1"}


def read(folder: Path) -> VM:
    """The machine of a folder."""
    record = record_of(folder)
    tags = record["tags"]
    return VM(
        id=str(folder),
        name=record["name"],
        cluster=tags["cluster"],
        role=tags["role"],
        state=_state(record),
        cloud=NAME,
        private_ip=record["host"],
        protocol=record["protocol"],
        port=record["port"],
        options_digest=tags["options"],
        created=record["created"],
    )


def _state(record: Mapping[str, Any]) -> str:
    if "pid" not in record:
        return PENDING if "removed" not in record and time.time() - record["created"] < BOOT else ENDED
    return RUNNING if _is_same(record) else ENDED


def _is_same(record: Mapping[str, Any]) -> bool:
    return bool(record["started"]) and machine.started(record["pid"]) == record["started"]


def remove(folders: Iterable[Path], created: Mapping[Path, float] | None = None) -> None:
    """Ends the machines' processes and removes their folders; returns when both are gone.

    Until then the folders are listed, so that what is interrupted here can be done again. With ``created``, a folder
    that belongs to a later machine of the same name is left alone.
    """
    known = []
    for folder in folders:
        if folder.is_dir():
            with machine.lock(str(folder.parent.parent)):  # one that just starts registers before this, or not at all
                record = record_of(folder)
                if created is None or record["created"] in (0.0, created.get(folder)):
                    known.append(folder)
                    stop(folder, record)
    _end_processes({str(folder) for folder in known})
    for folder in known:
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):  # the last machine of its cluster takes the cluster's folder with it
            folder.parent.rmdir()


def stop(folder: Path, record: Mapping[str, Any]) -> None:
    """Marks a machine as removed and tells its process to end."""
    if record["created"]:
        with suppress(OSError):  # such as a full disk, which must not keep anybody from removing machines
            machine.write(str(folder / machine.RECORD), {**record, "removed": True})
    if "pid" in record and _is_same(record):
        with suppress(ProcessLookupError):
            os.kill(record["pid"], signal.SIGTERM)


def _end_processes(folders: set[str]) -> None:
    """Waits a little for the machines' processes to end by themselves, and kills those that do not."""
    import psutil

    left = _outlive(processes(folders), GRACE)
    while left or (left := processes(folders)):  # again, for what they may have started meanwhile
        for process in left:
            with suppress(psutil.Error):
                process.kill()
        if left := _outlive(left, KILLED):
            what = f"process {left[0].pid} does not end even when killed"
            raise CloudError(doing="remove machines", what=what, hint="see what it waits for, and run the same again")


def _outlive(processes: Sequence[Any], seconds: float) -> Sequence[Any]:
    """Those of ``processes`` that still run after ``seconds``; returns as soon as there is none."""
    deadline = time.monotonic() + seconds
    while (processes := [p for p in processes if runs(p)]) and time.monotonic() < deadline:
        time.sleep(0.01)  # nothing tells of the end of a process that is not a child
    return processes


def runs(process: Any) -> bool:
    """Whether a process has not ended."""
    import psutil

    with suppress(psutil.Error):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


def processes(folders: set[str]) -> list[Any]:
    """Every process of these machines, by the mark in its environment: also those that left their session."""
    import psutil

    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.environ().get(machine.MARK) in folders and runs(process):
                found.append(process)
    return found
