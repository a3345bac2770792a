"""Runs as a local machine: notes its process in the machine's record, then becomes the machine's command.

Started by local.py as a script of its own, so it uses the standard library only. The record is written before this
process starts and removed when the machine is: without a record it does nothing, so no process is ever unknown.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import IO, Any

RECORD = "machine.json"
PATIENCE, LOOK = 30.0, 0.01  # seconds for the lock, which is held for milliseconds, and between two looks at it
MARK = "DASK_CLOUDVM_MACHINE"  # in the environment of every process of a machine: its folder


def started(pid: int) -> str | None:
    """A text that tells this process from any other that had or will have its number; None where there is none.

    Boot and clock ticks since boot on Linux; elsewhere the creation time.
    """
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stat:
            fields = stat.read().rpartition(")")[2].split()
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as boot:
            return None if fields[0] in "ZX" else f"{boot.read().strip()}:{fields[19]}"
    except FileNotFoundError:
        return None if os.path.exists("/proc/self/stat") else _started_elsewhere(pid)
    except ProcessLookupError:
        return None


def _started_elsewhere(pid: int) -> str | None:
    import psutil

    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        if process.status() != psutil.STATUS_ZOMBIE:
            return f"{process.create_time():.2f}"
    return None


@contextlib.contextmanager
def lock(folder: str) -> Iterator[None]:
    """One process at a time registers or removes local machines. Raises TimeoutError where one keeps the others out."""
    with open(os.path.join(folder, ".lock"), "a", encoding="ascii") as file:
        deadline = time.monotonic() + PATIENCE
        while not _locked(file):
            if time.monotonic() > deadline:
                raise TimeoutError(errno.ETIMEDOUT, f"another process has held {file.name} for {PATIENCE:g} seconds")
            time.sleep(LOOK)
        yield


def _locked(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def write(path: str, record: Any) -> None:
    """Writes a record whole or not at all, readable by its owner only (mkstemp sees to that)."""
    handle, temporary = tempfile.mkstemp(dir=os.path.dirname(path), prefix=".record-")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        json.dump(record, file)
    os.replace(temporary, path)


def main(root: str, folder: str) -> None:
    """Forks twice removed from the launcher, which waits only until the command runs or could not be run."""
    ready, tell = os.pipe()  # closed by exec, which is what the launcher's side waits for
    if os.fork():
        os.close(tell)
        sys.exit(os.read(ready, 1000).decode() or 0)
    os.close(ready)
    os.setsid()
    doing = "register"
    try:
        record = _register(root, os.path.join(folder, RECORD))
        if record is not None:
            os.chdir(folder)
            doing = f"run {record['argv'][0]}"
            os.execvpe(record["argv"][0], record["argv"], {**_inherited(), **record["env"], MARK: folder})
    except OSError as error:
        os.write(tell, f"cannot {doing}: {error.strerror}".encode())


def _inherited() -> dict[str, str]:
    """The launcher's environment without what configures the launcher itself."""
    own = ("DASK_CLOUDPROVIDER__", "DASK_DISTRIBUTED__COMM__")
    return {name: value for name, value in os.environ.items() if not name.startswith(own)}


def _register(root: str, path: str) -> Any:
    with lock(root):
        try:
            with open(path, encoding="utf-8") as file:
                record = json.load(file)
        except FileNotFoundError:
            return None
        if "removed" in record:
            return None
        record["pid"], record["started"] = os.getpid(), started(os.getpid())
        write(path, record)
    return record


if __name__ == "__main__":
    main(*sys.argv[1:])
