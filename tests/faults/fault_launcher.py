"""Launchers as real processes that start within milliseconds: forked from a server that has imported everything.

``python fault_launcher.py FD`` is the server; :class:`Launchers` is its user's side. A launcher is the program itself,
or one of the functions below, with an environment of its own and with the product's pauses and time-outs made short.
"""

from __future__ import annotations

import functools
import gc
import importlib
import itertools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# The product's own figures, by module: seconds of pauses and time-outs. Nothing else of it is changed.
SHORT: dict[str, dict[str, float | tuple[float, ...]]] = {
    "dask_cloudvm.clouds.azure": {"LOOK": (0.02, 0.05), "LIMIT": 10.0},
    "dask_cloudvm.clouds.azure_maker": {"LOOK": (0.02, 0.05), "LIMIT": 10.0},
    "dask_cloudvm.clouds.azure_session": {"READ": 0.7, "PAUSE": 0.02, "LOOK": (0.02, 0.05)},
    "dask_cloudvm.clouds.common": {"PATIENCE": 0.7, "PAUSE": 0.02},
    "dask_cloudvm.clouds.ec2": {"LOOK": 0.02, "PATIENCE": 5.0},
    "dask_cloudvm.clouds.ec2_session": {"READ": 0.7},
    "dask_cloudvm.clouds.gcp": {"LOOK": 0.02, "LIMIT": 10.0},
    "dask_cloudvm.clouds.gcp_session": {"READ": 0.7, "POLL": 0.7, "PAUSE": 0.02, "PATIENCE": 5.0},
    "dask_cloudvm.cluster": {"CLEAN_UP": 20.0},
    "dask_cloudvm.workers": {"WATCH": 0.05, "REFRESH": 0.5, "RETIRE": 5.0},
    "dask_cloudvm.machines": {"WATCH": 0.05, "ANSWER": 3.0},
}
MODULES = (
    *SHORT, "dask_cloudvm.api", "dask_cloudvm.cli.up", "dask_cloudvm.cli.scale", "dask_cloudvm.cli.down",
    "dask_cloudvm.cli.ls", "distributed", "boto3", "botocore.retries.standard", "google.auth.transport.requests",
    "google.oauth2.service_account",
    "azure.identity", "azure.core.pipeline.transport", "jinja2", "jsonschema", "cryptography.x509", "rich.console",
)  # fmt: skip


def hurry() -> None:
    """Makes this process's pauses and time-outs short."""
    for name, figures in SHORT.items():
        module = importlib.import_module(name)
        for figure, seconds in figures.items():
            assert figure in vars(module), f"{name} has no {figure}"
            setattr(module, figure, seconds)
    from botocore.loaders import JSONFileLoader
    from botocore.retries.standard import ExponentialBackoff

    assert ExponentialBackoff._MAX_BACKOFF
    ExponentialBackoff._MAX_BACKOFF = 0.02
    # Each session would read megabytes again.
    read = functools.cache(functools.partial(JSONFileLoader.load_file, JSONFileLoader()))
    JSONFileLoader.load_file = lambda self, path: read(path)


# What a launcher can be, besides the program


def from_name(name: str) -> None:
    """Finds a cluster and lets it go."""
    from dask_cloudvm import from_name

    from_name(name, report=lambda line: print(line, file=sys.stderr)).close()


def storm(name: str, *sizes: str) -> None:
    """Scales again and again without waiting, then until the last size is there."""
    from dask_cloudvm import from_name

    with from_name(name, report=lambda line: print(line, file=sys.stderr)) as cluster:
        for size in sizes:
            cluster.scale(int(size))
            time.sleep(0.05)
        cluster.sync(cluster._correct_state)
        cluster.ready()


def adaptive(profile: str, rounds: str) -> None:
    """Work and rest in turn: workers come for the one and go for the other. Prints the machines of each rest."""
    from dask_cloudvm import from_profile

    keywords = {"n_workers": 0, "report": lambda line: None}
    settings = {"minimum": 0, "maximum": 4, "interval": "20ms", "wait_count": 2}
    with from_profile(profile, adaptive=settings, **keywords) as cluster, cluster.get_client() as client:
        for _ in range(int(rounds)):
            assert client.gather(client.map(lambda n: n + 1, range(8), pure=False)) == list(range(1, 9))
            while len(cluster.machines()) > 1:
                time.sleep(0.02)
            print(*(vm.name for vm in cluster.machines()), flush=True)


def waits(profile: str) -> None:
    """A program that makes a cluster and then has nothing to do with it for a long time."""
    from dask_cloudvm import from_profile

    cluster = from_profile(profile, report=lambda line: None)
    cluster.ready()
    print("ready", flush=True)
    time.sleep(60)


def _run(request: Mapping[str, Any]) -> None:
    os.environ.clear()
    os.environ.update(request["env"])
    with open(request["out"], "wb") as out, open(request["err"], "wb") as err:
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
    import dask.config

    dask.config.refresh()
    what, *arguments = request["argv"]
    if what == "dask-cloudvm":
        sys.argv[0] = what
        from dask_cloudvm.cli import cli

        cli(arguments, prog_name=what)
    try:
        globals()[what](*arguments)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        from dask_cloudvm.errors import CloudVMError

        if not isinstance(error, CloudVMError):
            raise
        sys.exit(f"error: {error}")


def serve(fd: int) -> None:
    """Forks a launcher for each request, and tells of its beginning and its end."""
    for name in MODULES:
        importlib.import_module(name)
    hurry()
    import boto3

    for service in ("ec2", "ssm", "sts"):
        boto3.session.Session().client(service, region_name="us-east-1")
    gc.collect()
    gc.freeze()
    channel = socket.socket(fileno=fd)
    channel.send(b"ready")
    running: dict[int, tuple[int, int]] = {}  # pidfd -> pid, number of the request
    while True:
        for each in select.select([fd, *running], [], [])[0]:
            if each != fd:
                pid, number = running.pop(each)
                os.close(each)
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                channel.send(json.dumps({"number": number, "code": code}).encode())
                continue
            if not (message := channel.recv(1 << 20)):
                return
            request = json.loads(message)
            if (pid := os.fork()) == 0:
                os.setsid()
                channel.close()
                _run(request)
                return
            running[os.pidfd_open(pid)] = pid, request["number"]
            channel.send(json.dumps({"number": request["number"], "pid": pid}).encode())


# The user's side


@dataclass
class Launch:
    """One launcher: under way, or ended."""

    argv: tuple[str, ...]
    files: tuple[Path, Path]
    pid: int = 0
    code: int | None = None
    begun: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)

    def signal(self, number: int) -> None:
        if not self.ended.is_set():
            os.kill(self.pid, number)

    def wait(self, seconds: float) -> int:
        """Its exit code. A launcher that takes longer is ended, and its answer is TimeoutError."""
        if not self.ended.wait(seconds):
            self.signal(signal.SIGKILL)
            self.ended.wait(10)
            raise TimeoutError(f"{' '.join(self.argv)} did not end within {seconds:g} s:\n{self.stderr}")
        assert self.code is not None
        return self.code

    @property
    def stdout(self) -> str:
        return self.files[0].read_text("utf-8", "replace")

    @property
    def stderr(self) -> str:
        return self.files[1].read_text("utf-8", "replace")


class Launchers:
    """Starts launchers; ``env`` is what each of them finds in its environment."""

    def __init__(self, folder: Path, env: Mapping[str, str]) -> None:
        self.folder, self.env = folder, dict(env)
        self._numbers = itertools.count()
        self._launches: dict[int, Launch] = {}
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._channel = ours
        command = [sys.executable, __file__, str(theirs.fileno())]
        self._server = subprocess.Popen(command, pass_fds=[theirs.fileno()], env={**os.environ, **self.env})
        theirs.close()
        assert self._channel.recv(100) == b"ready"
        threading.Thread(target=self._listen, daemon=True).start()

    def start(self, *argv: str, **env: str) -> Launch:
        number = next(self._numbers)
        files = (self.folder / f"{number}.out", self.folder / f"{number}.err")
        for file in files:
            file.touch()
        launch = self._launches[number] = Launch(argv, files)
        request = {
            "number": number,
            "argv": argv,
            "env": {**self.env, **env},
            "out": str(files[0]),
            "err": str(files[1]),
        }
        self._channel.send(json.dumps(request).encode())
        return launch

    def run(self, *argv: str, seconds: float = 60.0, **env: str) -> Launch:
        launch = self.start(*argv, **env)
        launch.wait(seconds)
        return launch

    def stop(self) -> None:
        self._channel.shutdown(socket.SHUT_RDWR)
        self._server.wait(10)

    def _listen(self) -> None:
        while message := self._channel.recv(1 << 16):
            told = json.loads(message)
            launch = self._launches[told["number"]]
            if "pid" in told:
                launch.pid = told["pid"]
                launch.begun.set()
            else:
                launch.code = told["code"]
                del self._launches[told["number"]]
                launch.ended.set()


if __name__ == "__main__":
    serve(int(sys.argv[1]))
