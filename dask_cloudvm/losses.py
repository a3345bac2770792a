"""Workers that were lost: how long to wait for the next one, and when to give up. Pure.

A worker's place is tried again under a new name: at once where its worker had joined, else later and later.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

TOPIC = "dask-cloudvm"  # of the scheduler's events, where every launcher and status find the reasons
EARLY = 600.0  # seconds: a worker that was lost sooner counts as one more in a row
RETRY, LONGEST_RETRY = 30.0, 600.0  # seconds between two attempts
NEVER = float("inf")


class Losses:
    """How often in a row each worker's predecessors were lost; after ``limit`` times their place stays empty."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._in_a_row: dict[str, int] = {}
        self._pauses: dict[str, float] = {}

    def replace(self, lost: str, new: str, age: float, joined: bool) -> float:
        """Notes that ``new`` stands in for a worker lost at ``age`` seconds; the seconds to wait, or NEVER."""
        self._pauses.pop(lost, None)
        before = self._in_a_row.pop(lost, 0)
        row = self._in_a_row[new] = before + 1 if age < EARLY or not joined else 1
        if row > self._limit:
            self._pauses[new] = NEVER
        elif row > 1 or not joined:
            self._pauses[new] = min(RETRY * 2 ** (row - 1), LONGEST_RETRY)
        return self.pause(new)

    def pause(self, name: str) -> float:
        """Seconds to wait before this worker gets its machine; 0 for one without predecessor."""
        return self._pauses.get(name, 0.0)


def then(new: str, pause: float) -> str:
    """What follows a loss, in words."""
    if not new:
        return "it was not wanted any more"
    if pause == NEVER:
        return "it is not replaced again, since its place was lost too often in a row (option replacements)"
    return f"{new} replaces it" + (f" in {pause:g} s" if pause else "")


def notices(events: Sequence[tuple[float, Any]]) -> dict[str, str]:
    """The last notice that a machine is taken back, as its workers have passed it on, by the worker's name.

    Workers of a machine that has several of them are named -0, -1 ... after it: its own name is there, too.
    """
    told = {str(event["worker"]): f"taken back: {event['notice']}" for _, event in events if "notice" in event}
    return {worker.rpartition("-")[0]: notice for worker, notice in told.items()} | told


def removed(events: Sequence[tuple[float, Any]], launcher: str) -> set[str]:
    """The workers that another launcher than this one was the first to remove or replace."""
    first: dict[str, str] = {}
    for _, event in events:
        for name in event.get("removed", ()):
            first.setdefault(name, event["by"])
    return {name for name, by in first.items() if by != launcher}


def reasons(events: Sequence[tuple[float, Any]]) -> list[dict[str, Any]]:
    """Every loss that launchers have noted, the oldest first."""
    return [{"when": when, **event} for when, event in events if "why" in event]
