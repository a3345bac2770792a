"""The fault matrix: every call of a cluster's life, each gone wrong in every way, and what became of it.

``python tests/faults/fault_matrix.py CLOUD [WORD...]`` runs the cases of one cloud whose description has all the words,
and prints a line of JSON for each. Which calls there are is recorded from a life in which nothing goes wrong.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import fault_launcher
from fault_clouds import HOMES, Home
from fault_launcher import Launch, Launchers
from fault_proxy import FAULTS, LASTING, SIGNALS, Fault
from tools import free_port

from dask_cloudvm import api, tls
from dask_cloudvm.clouds.base import VM

NAME = "matrix"
WORKERS, MORE, FEWER = 2, 4, 1
VERBS = {
    "up": ("dask-cloudvm", "up", "{profile}"),
    "grow": ("dask-cloudvm", "scale", NAME, str(MORE)),
    "shrink": ("dask-cloudvm", "scale", NAME, str(FEWER)),
    "from_name": ("from_name", NAME),
    "down": ("dask-cloudvm", "down", NAME),
}
AFTERWARDS = {"up": WORKERS, "grow": MORE, "shrink": FEWER, "from_name": WORKERS}  # workers, when the verb was repeated
BEFORE: dict[str, tuple[str, ...]] = {
    "up": (),
    "grow": ("up",),
    "shrink": ("up", "grow"),
    "from_name": ("up",),
    "down": ("up",),
}
OUTCOMES = {0: "done", 1: "refused", -9: "killed", 130: "interrupted"}
LIMIT = 40.0  # seconds for one command, on a busy computer
SURVIVED = ("throttling", "500", "reset", "time-out", "lost answer")
OFTEN = 2  # so many times the calls that make and list machines go wrong, in turn; others do the first time only


@dataclass(frozen=True)
class Case:
    """One call of one verb, and what happens to it."""

    cloud: str
    verb: str
    operation: str
    nth: int
    kind: str

    def __str__(self) -> str:
        return f"{self.cloud} {self.verb} {self.operation}#{self.nth} {self.kind}"


@dataclass
class Result:
    """What became of a case: how the command ended, and what is wrong with that or with what it left."""

    case: Case
    outcome: str = ""
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0
    said: str = ""

    def expect(self, fine: object, what: str) -> None:
        if not fine:
            self.problems.append(what)

    def to_json(self) -> str:
        return json.dumps({**asdict(self), "case": asdict(self.case)})

    @classmethod
    def from_json(cls, line: str) -> Result:
        found = json.loads(line)
        return cls(**{**found, "case": Case(**found["case"])})


class Matrix:
    """The cases of one cloud."""

    def __init__(self, home: Home, folder: Path, launchers: Launchers) -> None:
        self.home, self.folder, self.launchers = home, folder, launchers
        self._numbers = itertools.count()

    def life(self) -> dict[str, Counter[str]]:
        """The calls of each verb where nothing goes wrong."""
        calls = {}
        self.begin()
        for verb in VERBS:
            before = len(self.home.proxy.calls)
            launch = self.start(verb)
            assert launch.wait(LIMIT) == 0, launch.stderr
            calls[verb] = Counter(self.home.proxy.calls[before:])
        assert self.home.leftovers() == []
        return calls

    def cases(self) -> Iterator[Case]:
        for verb, calls in self.life().items():
            for operation, count in calls.items():
                often = OFTEN if operation in (self.home.makes, self.home.lists) else 1
                for nth, kind in itertools.product(range(1, min(count, often) + 1), FAULTS):
                    if self._makes_sense(verb, operation, nth, kind):
                        yield Case(self.home.name, verb, operation, nth, kind)

    def _makes_sense(self, verb: str, operation: str, nth: int, kind: str) -> bool:
        limited = operation in self.home.limited
        if not self.home.changes(operation) and kind in ("lost answer", "kill after", "SIGTERM"):
            return False  # the same as reset, kill before and Ctrl-C
        if kind in LASTING and not (limited or (nth == 1 and kind == "denied")):
            return False  # quotas are for what makes something; what is denied is so from the first time
        return kind != "SIGTERM" or VERBS[verb][0] == "dask-cloudvm"  # which ends other programs at once

    # One case

    def run(self, case: Case) -> Result:
        result = Result(case)
        began = time.monotonic()
        try:
            self._run(case, result)
        except (AssertionError, TimeoutError) as error:
            result.problems.append(str(error))
        result.seconds = round(time.monotonic() - began, 2)
        return result

    def _run(self, case: Case, result: Result) -> None:
        self.begin()
        for earlier in BEFORE[case.verb]:
            self._well(earlier)
        before = self.there()
        fault = Fault(case.operation, case.nth, case.kind)
        with self.home.proxy.going_wrong(fault):
            launch = self.start(case.verb)
            launch.begun.wait(LIMIT)
            fault.launcher = launch.pid
            code = launch.wait(LIMIT)
        result.said = launch.stderr[-2000:]
        result.outcome = OUTCOMES.get(code, f"exit code {code}")
        if not fault.fired:
            result.outcome = "not reached"
        self._check_end(case, code, launch, result)
        self._check_truth(result, "after the command")
        if code in (1, 130):
            self._check_left(case, set(before), result)
        if case.verb == "up" or code != 0 or case.kind in LASTING:  # what is not done is done again
            self._repeat(case, result)
        self._check_wanted(case, result)
        self._down(result)

    def _check_end(self, case: Case, code: int, launch: Launch, result: Result) -> None:
        errors = [line for line in launch.stderr.splitlines() if line.startswith("error: ")]
        result.expect("Traceback" not in launch.stderr, "a traceback")
        if case.kind.startswith("kill"):
            result.expect(code == -9 or result.outcome == "not reached", f"exit code {code}")
        elif case.kind in SIGNALS:
            result.expect(code in (0, 130), f"exit code {code}")
        elif case.kind in SURVIVED:
            result.expect(code == 0, f"exit code {code} although asking again would do")
        else:
            result.expect(code in (0, 1), f"exit code {code}")
        result.expect(len(errors) == (code == 1), f"{len(errors)} messages for exit code {code}")

    def _check_left(self, case: Case, before: set[str], result: Result) -> None:
        """After an error all is as it was, or on its way to what was wanted."""
        left = set(self.there())
        fine = left <= before if case.verb in ("shrink", "down") else left == before
        result.expect(fine, f"it left {left}, before there was {before}")

    def _check_truth(self, result: Result, when: str) -> None:
        listed = sorted(vm.name for vm in asyncio.run(self._ls()) if vm.alive)
        there = self.there()
        result.expect(listed == there, f"{when} ls shows {listed}, there is {there}")
        twice = [name for name, count in Counter(there).items() if count > 1]
        result.expect(not twice, f"{when} there are two of {twice}")

    def there(self) -> list[str]:
        """Names of all machines, as the fake knows them."""
        return sorted(f"{NAME}-scheduler" if name == "scheduler" else name for name in self.home.there())

    async def _ls(self) -> list[VM]:
        return await api.everything(self.home.name)

    def _repeat(self, case: Case, result: Result) -> None:
        launch = self.start(case.verb)
        code = launch.wait(LIMIT)
        gone = case.verb == "down" and code == 1 and "there is no cluster" in launch.stderr
        result.expect(code == 0 or gone, f"again: exit code {code}: {launch.stderr[-1500:]}")

    def _check_wanted(self, case: Case, result: Result) -> None:
        there = self.there()
        workers = [name for name in there if name != f"{NAME}-scheduler"]
        if case.verb == "down":
            result.expect(not there, f"down left {there}")
            return
        result.expect(f"{NAME}-scheduler" in there, "in the end there is no scheduler")
        result.expect(len(set(workers)) == len(workers) == AFTERWARDS[case.verb], f"in the end there is {there}")
        result.expect(set(workers) == self.home.machines.joined(), f"in the end joined {self.home.machines.joined()}")

    def _down(self, result: Result) -> None:
        if self.there():
            asyncio.run(api.remove([NAME], self.home.name))
        result.expect(not self.home.leftovers(), f"down left {self.home.leftovers()}")
        if result.outcome in ("done", "refused"):
            result.expect(tls.load(NAME) is None, "down left certificates")

    def begin(self, **cluster: object) -> None:
        """An empty account, a user of a new computer, and a profile with these options more."""
        self.home.fresh()
        self.state = self.folder / f"state-{next(self._numbers)}"
        os.environ["XDG_STATE_HOME"] = str(self.state)
        self.profile = self.describe("profile.yaml", **cluster)

    def describe(self, file: str, **cluster: object) -> Path:
        """A profile with a port of its own, since all machines share an address."""
        cluster = {"start_timeout": "15s", **cluster, "scheduler_options": {"port": free_port()}}
        cluster = {"name": NAME, "n_workers": WORKERS, **cluster}
        own = {self.home.name: dict(self.home.options)}
        path = self.folder / file
        path.write_text(json.dumps({"cloudprovider": {"cloud": self.home.name, "cluster": cluster, **own}}))
        return path

    def start(self, verb: str) -> Launch:
        argv = [part.format(profile=self.profile) for part in VERBS[verb]]
        return self.launchers.start(*argv, XDG_STATE_HOME=str(self.state))

    def _well(self, verb: str) -> None:
        launch = self.start(verb)
        assert launch.wait(LIMIT) == 0, f"{verb} failed by itself: {launch.stderr}"


@contextmanager
def matrix(cloud: str) -> Iterator[Matrix]:
    """Everything that the cases of one cloud need."""
    with tempfile.TemporaryDirectory(prefix="faults-") as name:
        folder = Path(name)
        (folder / "home").mkdir()
        (folder / "dask").mkdir()
        home = HOMES[cloud](folder)
        with home.serving() as own:
            env = {"HOME": str(folder / "home"), "DASK_CONFIG": str(folder / "dask"), "PATH": os.environ["PATH"], **own}
            os.environ |= env
            launchers = Launchers(folder, env)
            try:
                yield Matrix(home, folder, launchers)
            finally:
                launchers.stop()


def main(cloud: str, words: Sequence[str]) -> None:
    fault_launcher.hurry()
    with matrix(cloud) as it:
        for case in it.cases():
            if all(word in str(case) for word in words):
                print(it.run(case).to_json(), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
