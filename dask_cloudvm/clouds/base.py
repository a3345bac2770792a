"""What every cloud has to offer, in the fewest words: a cloud is this handful of methods."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeAlias

from dask_cloudvm.errors import CloudError

if TYPE_CHECKING:
    from dask_cloudvm.bootstrap import Launch
    from dask_cloudvm.plan import Machine, Request

PENDING, RUNNING, ENDED = "pending", "running", "ended"


@dataclass(frozen=True)
class VM:
    """One machine that exists, rebuilt from its tags and the cloud's answer."""

    id: str
    name: str
    cluster: str
    role: str  # scheduler or worker
    state: str  # pending, running or ended
    cloud: str
    private_ip: str
    public_ip: str | None = None
    protocol: str = "tls"
    port: int | None = None  # the scheduler's
    zone: str | None = None
    spot: bool = False
    options_digest: str = ""
    created: float = 0.0  # seconds since 1970

    @property
    def alive(self) -> bool:
        return self.state != ENDED

    @property
    def address(self) -> str:
        """Where machines of the same network reach its scheduler."""
        return _url(self.protocol, self.private_ip, self.port)

    @property
    def external_address(self) -> str:
        """Where clients reach its scheduler."""
        return _url(self.protocol, self.public_ip or self.private_ip, self.port)


def scheduler_of(vms: Iterable[VM]) -> VM | None:
    """The scheduler among a cluster's machines: the first, where several launchers made one at the same moment."""
    alive = [vm for vm in vms if vm.role == "scheduler" and vm.alive]
    return min(alive, key=lambda vm: (vm.created, vm.id), default=None)


def _url(protocol: str, host: str, port: int | None) -> str:
    return f"{protocol}://[{host}]:{port}" if ":" in host else f"{protocol}://{host}:{port}"


@dataclass(frozen=True)
class Check:
    """One thing that a cluster needs: as it is, or what to do about it."""

    what: str
    ok: bool
    text: str


Step: TypeAlias = tuple[str, Callable[[], Awaitable[str]]]


async def checks(steps: Sequence[Step], needed: Collection[str] = ()) -> list[Check]:
    """Every step in turn, by name; none after one of ``needed`` that failed. What a step returns is shown."""
    found: list[Check] = []
    for what, step in steps:
        try:
            found.append(Check(what, True, await step()))
        except CloudError as error:
            found.append(Check(what, False, f"{error.facts['what']}; {error.facts['hint']}"))
            if what in needed:
                break
    return found


@dataclass(frozen=True)
class Facts:
    """What a plan needs to know and only the cloud can tell; each cloud adds its own."""

    port: int  # that the scheduler will serve
    host: str | None = None  # where workers will reach the scheduler, where it is known before the machine exists
    notes: tuple[str, ...] = field(default=(), kw_only=True)  # for users: what the calls do not show


@dataclass(frozen=True)
class Part:
    """A part of the network that clusters share: made by this package, tagged, and free of charge."""

    kind: str  # as the cloud calls it, such as security group
    id: str
    name: str
    cloud: str
    place: str  # region or project
    used: bool  # by any machine, whoever made it
    created: float = 0.0  # seconds since 1970; 0 where the cloud does not tell


VMs: TypeAlias = list[VM]
Parts: TypeAlias = list[Part]
Checks: TypeAlias = list[Check]
Requests: TypeAlias = "list[Request]"


class Cloud(Protocol):
    """One cloud, for one resolved set of options. Making one does no I/O and imports no SDK."""

    name: ClassVar[str]
    user_data_limit: ClassVar[int]  # bytes
    place: ClassVar[str]  # the option that says in which part of an account; empty where one object looks in all
    shortfall: str  # why the last create gave fewer machines than were asked for, and what to change
    unseen: dict[str, CloudError]  # regions that the last look could not reach, and why, where each is asked by itself

    def __init__(self, values: Mapping[str, Any]) -> None: ...

    @staticmethod
    def usable() -> bool:
        """Whether this computer looks as if its user has clusters there; asks nobody."""

    def check(self) -> None:
        """PURE: refuses options for which no call needs to be made. Raises CloudError."""

    async def facts(self, scheduler: VM | None) -> Facts:
        """Reads what a plan needs, for a new cluster or one with a scheduler. Raises CloudError."""

    def offline(self) -> Facts:
        """PURE: facts for a plan that asks nobody, with placeholders for what only the cloud can tell."""

    def launch(self, facts: Facts, certificates: Mapping[str, str], address: str, role: str) -> Launch:
        """PURE: what a machine of ``role`` runs."""

    def requests(self, machines: Sequence[Machine], facts: Facts) -> Requests:
        """PURE: the exact bodies of the write calls that make ``machines``."""

    async def create(self, request: Request) -> VMs:
        """Makes the call. May return fewer than asked for: a shortfall is never an exception."""

    async def home(self) -> str:
        """Where it makes machines: a project, subscription or region; empty where there is one only."""

    async def list(self, cluster: str | None = None) -> VMs:
        """What exists, by tag; of one cluster or of all."""

    async def locate(self, vm: VM) -> VM:
        """The machine with the addresses that were not known yet when it was made."""

    async def delete(self, vms: Sequence[VM]) -> None:
        """Removes machines with all that belongs to them. Idempotent."""

    async def widen(self) -> None:
        """From now on looks in every region that it may see, not only where this computer's clusters have been."""

    async def parts(self) -> Parts:
        """The shared parts of networks that this package has made."""

    async def remove(self, part: Part) -> bool:
        """Removes a shared part; False where it is in use after all. Idempotent."""

    async def console(self, vm: VM) -> str:
        """The end of the machine's boot log."""

    async def doctor(self) -> Checks:
        """Looks at everything a cluster needs, and makes nothing."""

    def policies(self, role: str | None) -> Mapping[str, Mapping[str, Any]]:
        """PURE: the least permissions by part, such as ``setup`` and ``ongoing``, in the cloud's own form."""
