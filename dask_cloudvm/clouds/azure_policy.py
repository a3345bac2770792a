"""The permissions that are needed, as custom roles: what ``az role definition create --role-definition`` takes. Pure.

https://learn.microsoft.com/en-us/azure/role-based-access-control/resource-provider-operations. ``machines`` is for the
machines' identity, on the resource group that they are in; the others for whoever starts clusters, on the subscription,
and of these ``setup`` and ``identity`` for the first cluster only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

ROLES = "Microsoft.Authorization/"
COMPUTE, NETWORK, GROUPS = "Microsoft.Compute/", "Microsoft.Network/", "Microsoft.Resources/subscriptions/"
SHARED = ("natGateways", "networkSecurityGroups", "publicIPAddresses", "virtualNetworks")
SETUP = (
    f"{GROUPS}resourceGroups/write",
    f"{NETWORK}natGateways/join/action",
    *(f"{NETWORK}{kind}/{verb}" for kind in SHARED for verb in ("read", "write", "delete")),
    f"{NETWORK}publicIPAddresses/join/action",
    f"{NETWORK}locations/operations/read",
    f"{GROUPS}resources/read",
)
IDENTITIES = "Microsoft.ManagedIdentity/userAssignedIdentities/"
DEFINE = f"{ROLES}roleDefinitions/write"
IDENTITY = (f"{IDENTITIES}write", f"{ROLES}roleAssignments/write", DEFINE)
LOOKS = (
    f"{IDENTITIES}read",
    f"{ROLES}permissions/read",
    f"{ROLES}roleAssignments/read",
    f"{ROLES}roleDefinitions/read",
    f"{COMPUTE}galleries/images/read",
    f"{COMPUTE}galleries/images/versions/read",
    f"{COMPUTE}images/read",
    f"{COMPUTE}locations/operations/read",
    f"{COMPUTE}locations/publishers/artifacttypes/offers/skus/versions/read",
    f"{COMPUTE}locations/usages/read",
    f"{COMPUTE}skus/read",
    f"{COMPUTE}virtualMachines/read",
    f"{COMPUTE}virtualMachines/retrieveBootDiagnosticsData/action",
    f"{NETWORK}locations/usages/read",
    f"{NETWORK}networkInterfaces/read",
    f"{NETWORK}networkSecurityGroups/read",
    f"{NETWORK}publicIPAddresses/read",
    f"{NETWORK}virtualNetworks/read",
    f"{GROUPS}providers/read",
    f"{GROUPS}resourceGroups/read",
)
REMOVES = (
    f"{COMPUTE}disks/delete",
    f"{COMPUTE}virtualMachines/delete",
    f"{NETWORK}networkInterfaces/delete",
    f"{NETWORK}publicIPAddresses/delete",
)
CHANGES = (
    f"{COMPUTE}disks/write",
    f"{COMPUTE}virtualMachines/write",
    f"{NETWORK}networkInterfaces/join/action",
    f"{NETWORK}networkInterfaces/write",
    f"{NETWORK}networkSecurityGroups/join/action",
    f"{NETWORK}publicIPAddresses/join/action",
    f"{NETWORK}publicIPAddresses/write",
    f"{NETWORK}virtualNetworks/subnets/join/action",
    f"{IDENTITIES}assign/action",
)
DELETE, DEALLOCATE = f"{COMPUTE}virtualMachines/delete", f"{COMPUTE}virtualMachines/deallocate/action"


def policies(subscription: str | None) -> dict[str, dict[str, Any]]:
    """Every role by the name of its part."""
    scope = f"/subscriptions/{subscription or '<subscription>'}"
    return {
        "setup": _role(
            "set-up", "Makes and removes what clusters share; needed for the first cluster of a setting", SETUP, scope
        ),
        "identity": _role(
            "identity", "Makes the identity by which machines delete themselves, and grants it its role",
            IDENTITY, scope,
        ),
        "ongoing": _role("user", "Starts, watches and removes clusters", (*LOOKS, *CHANGES, *REMOVES), scope),
        "machines": _role(
            "machine", "For the machines' identity: a machine deletes itself when Dask ends on it",
            (*REMOVES, DEALLOCATE), scope,
        ),
    }  # fmt: skip


def _role(name: str, what: str, actions: Sequence[str], scope: str) -> dict[str, Any]:
    return {
        "Name": f"dask-cloudvm {name}",
        "IsCustom": True,
        "Description": what,
        "Actions": sorted(actions),
        "NotActions": [],
        "AssignableScopes": [scope],
    }
