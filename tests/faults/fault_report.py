"""The fault matrix as a table: a line for each cloud, verb and call, a column for each fault."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from fault_matrix import Result
from fault_proxy import FAULTS

RESULTS: list[Result] = []  # of this run
SHORT = {"done": "done", "refused": "error", "killed": "killed", "interrupted": "ended", "not reached": "-"}


def table(results: Sequence[Result]) -> Iterator[str]:
    """Outcomes: done; error, which is exit code 1 with one message; killed; ended, which is exit code 130; FAILED."""
    cells: dict[tuple[str, str, str], dict[str, str]] = defaultdict(dict)
    for result in results:
        case = result.case
        cells[case.cloud, case.verb, f"{case.operation} {case.nth}"][case.kind] = (
            "FAILED" if result.problems else SHORT.get(result.outcome, result.outcome)
        )
    rows = [(*key, *(of.get(kind, "") for kind in FAULTS)) for key, of in cells.items()]
    head = ("cloud", "verb", "call", *FAULTS)
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    for row in (head, *rows):
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
    for cloud in dict.fromkeys(result.case.cloud for result in results):
        yield summary(cloud, [result for result in results if result.case.cloud == cloud])


def summary(cloud: str, results: Sequence[Result]) -> str:
    """``ec2: 240 cases: 160 done, 40 refused, 40 killed; 0 failed; 410 s in all``"""
    outcomes = Counter(result.outcome for result in results)
    counted = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.most_common())
    failed = sum(bool(result.problems) for result in results)
    seconds = sum(result.seconds for result in results)
    return f"{cloud}: {len(results)} cases: {counted}; {failed} failed; {seconds:.0f} s in all"
