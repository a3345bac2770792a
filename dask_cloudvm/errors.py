"""Every error a user can cause, as one tree.

CloudVMError                 exit code 1: expected failure, one message
|-- ProfileError             exit code 2: bad profile, option, environment or usage; lists every problem
|-- ClusterExists            a cluster of this name runs with other options
|-- ClusterNotFound          no cluster of this name; lists the names that exist
|-- AmbiguousName            clusters in several places have this name
|-- CloudError               a cloud refused or failed something
|   `-- StateError           the folder with the records of local machines cannot be used
|-- NameTaken                another launcher makes a cluster of this name at the same moment
|-- StartError               a cluster did not come up; what was made has been removed
|-- VersionMismatch          a cluster's Python or Dask cannot work with this program's
|-- SchedulerLost            the scheduler of a running cluster does not answer
|-- ClusterClosed            this object of a cluster is closed, and its event loop with it
`-- NoEventLoop              asynchronous=True outside of a coroutine

A message is built from keyword facts: ``ClusterNotFound(name="etl", known=["demo"])``.
"""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

LONGEST = 1000  # characters of a part of a message


class CloudVMError(Exception):
    """Base of all errors below; ``str(error)`` is the whole message and ``facts`` what it was built from."""

    exit_code: ClassVar[int] = 1
    message: ClassVar[str] = "{what}"

    def __init__(self, **facts: Any) -> None:
        self.facts = facts
        super().__init__(self.message.format(**facts))


def _short(text: str) -> str:
    """``text`` as it can be read: a value in it may be a megabyte long."""
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]}...{text[-LONGEST // 2 :]}"


@dataclass(frozen=True)
class Problem:
    """One thing wrong with the options: ``where`` is ``file:line:column``, ``$VARIABLE``, ``keyword`` ..."""

    where: str
    path: str
    what: str

    def __str__(self) -> str:
        text = ": ".join(_short(part) for part in (self.where, self.path, self.what) if part)
        return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)  # keys may hold line feeds and escapes


class ProfileError(CloudVMError):
    """The options are wrong; ``problems`` holds every :class:`Problem`."""

    exit_code = 2

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(_in_order(list(problems)))
        super().__init__(what="\n".join(map(str, self.problems)))


def _in_order(problems: list[Problem]) -> list[Problem]:
    """Those of one file from its top to its bottom; files and other places as they come."""
    places = [problem.where.rsplit(":", 2) for problem in problems]
    sources = [place[0] if len(place) == 3 else problem.where for place, problem in zip(places, problems, strict=True)]

    def key(i: int) -> tuple[int, ...]:
        numbers = [int(part) for part in places[i][1:] if part.isdecimal()]
        return (sources.index(sources[i]), *numbers)

    return [problems[i] for i in sorted(range(len(problems)), key=key)]


class ClusterExists(CloudVMError):
    message = (
        "cluster {name!r} already runs with other options ({differ}); "
        "use the same options, another name, or 'dask-cloudvm down {name}' first"
    )


class ClusterNotFound(CloudVMError):
    message = "there is no cluster {name!r}; {known}"

    def __init__(self, name: str, known: Iterable[str]) -> None:
        names = ", ".join(sorted(known))
        super().__init__(name=name, known=f"there is {names}" if names else "no cluster exists")


class AmbiguousName(CloudVMError):
    message = "there is a cluster {name!r} on {clouds}; choose one by {how}"


class CloudError(CloudVMError):
    message = "cannot {doing}: {what}; {hint}"


class NameTaken(CloudVMError):
    message = "another launcher makes cluster {name!r} at this very moment; run the same again to adopt it"


class StateError(CloudError):
    message = "cannot {doing} in {folder}: {what}; {hint}"

    @classmethod
    def of(cls, doing: str, folder: object, error: OSError) -> StateError:
        hints = dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free some space there")
        hints[errno.ETIMEDOUT] = "end the process that holds it (fuser shows which)"
        hint = hints.get(error.errno or 0, "make it writable")
        what = "not a directory" if error.errno == errno.EEXIST else error.strerror or str(error)
        what = what[:1].lower() + what[1:]
        return cls(doing=doing, folder=folder, what=what, hint=f"{hint}, or set XDG_STATE_HOME to another folder")


class StartError(CloudVMError):
    message = "cluster {name!r} did not start: {what}"


class VersionMismatch(CloudVMError):
    message = "the scheduler of cluster {name!r} {what}; {hint}"


class SchedulerLost(CloudVMError):
    message = (
        "the scheduler of cluster {name!r} {what}; "
        "see 'dask-cloudvm logs {name}', remove it by 'dask-cloudvm down {name}'"
    )


class ClusterClosed(CloudVMError):
    message = "this object of cluster {name!r} is closed; where the cluster still runs, from_name({name!r}) finds it"


class NoEventLoop(CloudVMError):
    message = "asynchronous=True needs a running event loop: make the cluster inside a coroutine, or leave it out"


def counted(n: int, what: str) -> str:
    """``"1 worker"``, ``"2 workers"``."""
    return f"{n} {what}{'' if n == 1 else 's'}"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``"; did you mean region?"``, or nothing where no known word is near."""
    spelled = {each.lower(): each for each in known}
    near = difflib.get_close_matches(word.lower(), spelled, n=1, cutoff=0.6)
    return f"; did you mean {spelled[near[0]]}?" if near else ""
