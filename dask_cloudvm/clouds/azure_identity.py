"""The identity by which machines delete themselves. Where none is given, one is made once and shared, if that may be.

A machine that switches itself off is billed on, and only somebody with a right may remove it. In a resource group of
dask-cloudvm's own, which holds nothing but its machines, the machines get that right; in another's they get none.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dask_cloudvm.clouds import azure_errors, azure_network, azure_options, azure_policy
from dask_cloudvm.clouds.azure_network import PREFIX, TAGS, Place, Setup
from dask_cloudvm.clouds.azure_session import Session
from dask_cloudvm.clouds.base import VM
from dask_cloudvm.clouds.common import per_role
from dask_cloudvm.errors import CloudError
from dask_cloudvm.schema import ROLES

WHY = "look up the machines' identity"
# Known only when the identity is made; the name of a role's assignment follows from it.
PRINCIPAL, ASSIGNMENT = "<principal of the identity>", "<name of the assignment>"
AUTHORIZATION = "providers/Microsoft.Authorization"


@dataclass(frozen=True)
class Shared:
    """The resource id of the shared identity, ``""`` where there is none; and what becomes of machines, in words."""

    id: str
    note: str
    setup: tuple[tuple[str, Mapping[str, Any]], ...] = ()


def path(place: Place) -> str:
    """The resource id of the shared identity."""
    return f"{place.path}/providers/Microsoft.ManagedIdentity/userAssignedIdentities/{PREFIX}{place.region}"


async def read(values: Mapping[str, Any], session: Session, place: Place, scheduler: VM | None) -> Shared:
    """What there is, and what is to be made. Whoever adds workers takes what there is."""
    if (said := chosen(values)) is not None:
        return Shared("", said)
    id = path(place)
    found = await _identity(id, session) if place.exists else None
    principal = found["properties"]["principalId"] if found else PRINCIPAL
    if found and await _granted(principal, session, place):
        return Shared(id, DELETE)
    if scheduler is None and await _may(session, place):
        return Shared(id, DELETE, tuple(steps(place, principal)))
    return Shared("", f"{BILLED}, since you may not grant their identity a role: {HINT}")


def offline(values: Mapping[str, Any], place: Place) -> Shared:
    """The identity without asking anybody, as its owner would make it. Pure."""
    if (said := chosen(values)) is not None:
        return Shared("", said)
    return Shared(path(place), f"{DELETE}, if you may grant their identity a role; else {BILLED}", _all(place))


def _all(place: Place) -> tuple[tuple[str, Mapping[str, Any]], ...]:
    return tuple(steps(place, PRINCIPAL))


DELETE = "machines delete themselves when Dask ends on them"
DEALLOCATE = (
    "machines deallocate themselves when Dask ends on them; "
    "their disks and addresses are paid for until 'dask-cloudvm down'"
)
BILLED = "machines switch off when Dask ends on them, and Azure bills them until 'dask-cloudvm down'"
HINT = "set identity, or let an owner of the subscription start a cluster once ('dask-cloudvm doctor azure' tells more)"


def chosen(values: Mapping[str, Any]) -> str | None:
    """What becomes of machines where the options say it; None where an identity is to be shared."""
    if not values["auto_shutdown"]:
        return "machines keep running, and are paid for, when Dask ends on them: auto_shutdown is off"
    given = [azure_options.acting(per_role("azure", values)[role]) for role in ROLES]
    if all(given):
        return (
            f"{DELETE}, if their identity may delete or else deallocate them ('dask-cloudvm doctor azure' looks); "
            "else they switch off, and Azure bills them until 'dask-cloudvm down'"
        )
    if azure_options.no_identity(values):
        return f"{BILLED}: identity is none"
    if values["resource_group"]:
        return f"{BILLED}, since in a resource group of yours they get no right to delete anything: set identity"
    return None


async def _identity(id: str, session: Session) -> Any:
    """https://learn.microsoft.com/en-us/rest/api/managedidentity/user-assigned-identities/get"""
    try:
        return await session.find(id, WHY)
    except CloudError as error:
        if azure_errors.denied(error):
            return None
        raise


async def _granted(principal: str, session: Session, place: Place) -> bool:
    """https://learn.microsoft.com/en-us/rest/api/authorization/role-assignments/list-for-scope"""
    query = {"$filter": f"principalId eq '{principal}'"}
    try:
        listed = await session.pages(f"{place.root}/{AUTHORIZATION}/roleAssignments", WHY, query)
    except CloudError as error:
        if azure_errors.denied(error):
            return False
        raise
    own = [each["properties"] for each in listed]
    return any(each["roleDefinitionId"].endswith(role(place)) and covers(each["scope"], place.path) for each in own)


def covers(scope: str, path: str) -> bool:
    """Whether what is granted at a scope counts for a resource; of management groups those above are listed only."""
    scope = scope.lower().rstrip("/")
    return scope.startswith("/providers/microsoft.management/") or f"{path.lower()}/".startswith(f"{scope}/")


async def _may(session: Session, place: Place) -> bool:
    """Whether the caller may make the identity and grant it the role, which belongs to the whole subscription.

    https://learn.microsoft.com/en-us/rest/api/authorization/permissions
    """
    group = place.path if place.exists else place.root
    scopes = {action: place.root if action == azure_policy.DEFINE else group for action in azure_policy.IDENTITY}
    granted = {}
    try:
        for scope in {*scopes.values()}:
            granted[scope] = await session.pages(f"{scope}/{AUTHORIZATION}/permissions", WHY)
    except CloudError as error:
        if azure_errors.denied(error):
            return False
        raise
    return all(allows(granted[scope], action) for action, scope in scopes.items())


def allows(permissions: list[Any], action: str) -> bool:
    """Whether permissions of roles have an action: https://learn.microsoft.com/en-us/azure/role-based-access-control

    Whoever may grant roles on a condition may not grant ours: nobody can tell before it is tried.
    """
    conditional = action.lower().startswith("microsoft.authorization/roleassignments/")

    def has(patterns: list[str]) -> bool:
        return any(re.fullmatch(re.escape(p).replace(r"\*", ".*"), action, re.IGNORECASE) for p in patterns)

    return any(
        has(each.get("actions", [])) and not has(each.get("notActions", []))
        for each in permissions
        if not (conditional and each.get("condition"))
    )


def role(place: Place) -> str:
    """The name of the role of the machines, the same for a whole subscription."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"dask-cloudvm machine {place.root}"))


def steps(place: Place, principal: str) -> Setup:
    """Paths and bodies of what makes the identity and its role.

    https://learn.microsoft.com/en-us/rest/api/authorization/role-assignments/create
    """
    definition = f"{place.root}/{AUTHORIZATION}/roleDefinitions/{role(place)}"
    subscription = azure_network.named(place.root, "subscriptions")
    machine = azure_policy.policies(subscription)["machines"]
    permissions = [{"actions": machine["Actions"], "notActions": []}]
    inside = {
        "roleName": f"{machine['Name']} {subscription}",
        "type": "CustomRole",
        "description": machine["Description"],
        "permissions": permissions,
        "assignableScopes": machine["AssignableScopes"],
    }
    granted = {"roleDefinitionId": definition, "principalId": principal, "principalType": "ServicePrincipal"}
    name = ASSIGNMENT if principal == PRINCIPAL else assignment(principal)
    made: Setup = [(path(place), {"location": place.region, "tags": TAGS})] if principal == PRINCIPAL else []
    return [
        *made,
        (definition, {"properties": inside}),
        (f"{place.path}/{AUTHORIZATION}/roleAssignments/{name}", {"properties": granted}),
    ]


def assignment(principal: str) -> str:
    """The name of the role's assignment: the same for the same identity."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"dask-cloudvm {principal}"))
