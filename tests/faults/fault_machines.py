"""Machines inside this process: a scheduler or a worker of Dask in one event loop, up within milliseconds.

What a machine runs is read from the files of its own user-data, as on a machine that boots.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from distributed import Scheduler, Security, Worker
from distributed.core import Status

QUIET = {
    "distributed.worker.profile.enabled": False,
    "distributed.admin.system-monitor.interval": "1h",
    "distributed.scheduler.active-memory-manager.start": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.terminate": False,
    "distributed.scheduler.worker-ttl": None,
    "distributed.comm.retry.count": 0,
}


class Machines:
    """``run`` starts what a machine's files say, ``end`` pulls the plug of it; ``gone`` is called with the id of a
    machine whose Dask process ended by itself, as its unit would switch the machine off."""

    def __init__(self, gone: Callable[[str], None] = lambda id: None) -> None:
        self.gone = gone
        self.running: dict[str, Scheduler | Worker] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        logging.getLogger("distributed").setLevel(logging.ERROR)
        self._thread.start()

    def run(self, id: str, files: Mapping[str, str]) -> None:
        """Returns at once."""
        self._loop.call_soon_threadsafe(self._begin, id, dict(files))

    def end(self, id: str) -> None:
        """Returns when the machine's process is gone."""
        asyncio.run_coroutine_threadsafe(self._end(id), self._loop).result(30)

    def joined(self) -> set[str]:
        """Names of the workers that schedulers know."""
        schedulers = [s for s in list(self.running.values()) if isinstance(s, Scheduler)]
        return {str(ws.name) for s in schedulers for ws in list(s.workers.values())}

    def stop(self) -> None:
        """Ends all machines and the loop."""
        for id in list(self._tasks):
            self.end(id)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _begin(self, id: str, files: dict[str, str]) -> None:
        self._tasks[id] = self._loop.create_task(self._live(id, files))

    async def _live(self, id: str, files: dict[str, str]) -> None:
        """One machine's life; what goes wrong in it ends it, as on a machine."""
        self.running[id] = server = _server(files)
        starting = asyncio.ensure_future(server.start())
        try:
            await asyncio.shield(starting)
            await server.finished()
        except asyncio.CancelledError:
            await asyncio.wait({starting}, timeout=0.5)  # what has begun to listen can be closed only then
            starting.cancel()
            await _pull_the_plug(server)
            raise
        except Exception as error:  # it could not start: its machine goes
            print(f"machine {id} could not start: {error!r}", file=sys.stderr)
            await server.close()
        finally:
            del self.running[id]
        self._loop.run_in_executor(None, self.gone, id)

    async def _end(self, id: str) -> None:
        if task := self._tasks.pop(id, None):
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


async def _pull_the_plug(server: Scheduler | Worker | None) -> None:
    if server is None or server.status == Status.closed:
        return
    if isinstance(server, Worker):
        if server.batched_stream and server.batched_stream.comm:
            server.batched_stream.comm.abort()
        await server.close(timeout=0, executor_wait=False, nanny=False, reason="its machine has ended")
        return
    for stream in list(server.stream_comms.values()):  # else it would tell its workers to end
        stream.abort()
    await server.close(reason="its machine has ended")


def named(files: Mapping[str, str]) -> str:
    """The name by which a machine goes in its cluster."""
    return json.loads(files["worker.json"])["opts"]["name"] if "worker.json" in files else "scheduler"


def _server(files: Mapping[str, str]) -> Scheduler | Worker:
    argv = json.loads(files["run.json"])["argv"]
    if "distributed.cli.dask_scheduler" in argv:
        flags = argv[argv.index("distributed.cli.dask_scheduler") + 1 :]
        given = dict(zip(flags[::2], flags[1::2], strict=True))
        return Scheduler(
            protocol=f"{given['--protocol']}://", host="127.0.0.1", port=int(given["--port"]), dashboard=False,
            security=_security(files, "scheduler"), idle_timeout=given.get("--idle-timeout"),
        )  # fmt: skip
    address = argv[argv.index("distributed.cli.dask_spec") + 1]
    opts = json.loads(files["worker.json"])["opts"]
    return Worker(
        address, name=opts["name"], nthreads=1, memory_limit=0, dashboard=False, host="127.0.0.1",
        security=_security(files, "worker"), death_timeout=opts["death_timeout"],
    )  # fmt: skip


def _security(files: Mapping[str, str], role: str) -> Security:
    if "ca.pem" not in files:
        return Security(require_encryption=False)
    own: dict[str, Any] = {f"tls_{role}_cert": files[f"{role}.pem"], f"tls_{role}_key": files[f"{role}.key"]}
    return Security(require_encryption=True, tls_ca_file=files["ca.pem"], **own)
