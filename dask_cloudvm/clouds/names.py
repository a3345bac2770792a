"""The names of a request's machines in few characters, since tags and user-data are the same for all of them. Pure.

``etl-worker-3fa9c1-0`` ... ``etl-worker-3fa9c1-99`` are ``3fa9c1:0-99``; a scheduler's name needs no text at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Run:
    """Consecutive names: the machine with index ``start + i`` is number ``first + i`` of ``token``."""

    start: int
    token: str
    first: int
    length: int

    def __str__(self) -> str:
        return f"{self.first}-{self.first + self.length - 1}" if self.length > 1 else str(self.first)


def prefix(cluster: str, role: str) -> str:
    """What the names of a role's machines begin with; a scheduler's is that and no more."""
    return f"{cluster}-{role}"


def runs(names: Sequence[str]) -> list[Run]:
    """Names that end in ``-token-number``, in order, as runs; names that do not are a scheduler's."""
    found: list[Run] = []
    for index, name in enumerate(names):
        *_, token, number = name.split("-")
        if not number.isdigit():
            continue
        last = found[-1] if found else None
        if last and (last.token, last.first + last.length) == (token, int(number)):
            found[-1] = Run(last.start, token, last.first, last.length + 1)
        else:
            found.append(Run(index, token, int(number), 1))
    return found


def compact(names: Sequence[str]) -> str:
    """``3fa9c1:0-9,12;ab12cd:0``"""
    text, token = "", None
    for run in runs(names):
        text += f",{run}" if run.token == token else f"{';' if text else ''}{run.token}:{run}"
        token = run.token
    return text


def expand(text: str, cluster: str, role: str) -> list[str]:
    """The names that :func:`compact` was given."""
    if not text:
        return [prefix(cluster, role)]
    found = []
    for part in text.split(";"):
        token, _, numbers = part.partition(":")
        for span in numbers.split(","):
            first, _, last = span.partition("-")
            found += [f"{prefix(cluster, role)}-{token}-{i}" for i in range(int(first), int(last or first) + 1)]
    return found


def split(names: Sequence[str], characters: int, most: int) -> list[tuple[str, ...]]:
    """``names`` in as few parts as have at most ``most`` names and whose compact text is short enough."""
    if len(names) <= most and len(compact(names)) <= characters:
        return [tuple(names)]
    cut = most if len(names) > most else len(names) // 2
    return split(names[:cut], characters, most) + split(names[cut:], characters, most)
