"""What machines have written to their consoles so far, for a fake to answer with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from tests.lab.lab import Lab


class Consoles(Mapping[str, str]):
    """Texts by what the fake calls a machine; ``addresses`` has the machines that there are."""

    def __init__(self, lab: Lab, addresses: Mapping[str, str]) -> None:
        self._lab, self._addresses = lab, addresses

    def __getitem__(self, name: str) -> str:
        return self._lab.machines[self._addresses[name]].console

    def __iter__(self) -> Iterator[str]:
        return iter(self._addresses)

    def __len__(self) -> int:
        return len(self._addresses)
