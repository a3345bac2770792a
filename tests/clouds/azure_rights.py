"""The permissions that Azure wants for a call: https://learn.microsoft.com/en-us/azure/role-based-access-control/permissions/compute"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

COMPUTE, NETWORK = "Microsoft.Compute", "Microsoft.Network"
IDENTITY = "Microsoft.ManagedIdentity/userAssignedIdentities"
PLAIN = {
    "images.get": f"{COMPUTE}/images/read",
    "galleryImages.get": f"{COMPUTE}/galleries/images/read",
    "galleryImageVersions.get": f"{COMPUTE}/galleries/images/versions/read",
    "networkUsages.list": f"{NETWORK}/locations/usages/read",
    "permissions.list": "Microsoft.Authorization/permissions/read",
    "permissions.listForGroup": "Microsoft.Authorization/permissions/read",
    "providers.get": "Microsoft.Resources/subscriptions/providers/read",
    "resourceGroups.createOrUpdate": "Microsoft.Resources/subscriptions/resourceGroups/write",
    "resourceGroups.get": "Microsoft.Resources/subscriptions/resourceGroups/read",
    "resources.list": "Microsoft.Resources/subscriptions/resources/read",
    "roleAssignments.create": "Microsoft.Authorization/roleAssignments/write",
    "roleAssignments.list": "Microsoft.Authorization/roleAssignments/read",
    "roleDefinitions.createOrUpdate": "Microsoft.Authorization/roleDefinitions/write",
    "roleDefinitions.get": "Microsoft.Authorization/roleDefinitions/read",
    "skus.list": f"{COMPUTE}/skus/read",
    "usages.list": f"{COMPUTE}/locations/usages/read",
    "userAssignedIdentities.createOrUpdate": f"{IDENTITY}/write",
    "userAssignedIdentities.get": f"{IDENTITY}/read",
    "virtualMachineImages.get": f"{COMPUTE}/locations/publishers/artifacttypes/offers/skus/versions/read",
    "virtualMachineImages.list": f"{COMPUTE}/locations/publishers/artifacttypes/offers/skus/versions/read",
    "virtualMachines.deallocate": f"{COMPUTE}/virtualMachines/deallocate/action",
    "virtualMachines.retrieveBootDiagnosticsData": f"{COMPUTE}/virtualMachines/retrieveBootDiagnosticsData/action",
}
VERBS = {"get": "read", "list": "read", "listAll": "read", "createOrUpdate": "write", "delete": "delete"}
WITH_MACHINES = ("disks", "networkInterfaces", "publicIPAddresses")


def needs(name: str, body: Any, provider: str = "") -> Iterator[str]:
    """The actions that a call needs; ``provider`` is whose operation is asked about."""
    kind, _, verb = name.rpartition(".")
    if name == "operations.get":
        yield f"{provider}/locations/operations/read"
        return
    if name == "subscriptions.list":
        return
    if name in PLAIN:
        yield PLAIN[name]
        return
    provider = COMPUTE if kind == "virtualMachines" else NETWORK
    yield f"{provider}/{kind}/{VERBS[verb]}"
    if name == "virtualMachines.createOrUpdate":
        yield from _of_machine(body)
    elif name == "virtualMachines.delete":
        yield from (f"{COMPUTE if each == 'disks' else NETWORK}/{each}/delete" for each in WITH_MACHINES)
    elif name == "natGateways.createOrUpdate":
        yield f"{NETWORK}/publicIPAddresses/join/action"
    elif name == "virtualNetworks.createOrUpdate" and "natGateway" in str(body):
        yield f"{NETWORK}/natGateways/join/action"


def _of_machine(body: Any) -> Iterator[str]:
    text = str(body)
    yield f"{COMPUTE}/disks/write"
    yield f"{NETWORK}/networkInterfaces/write"
    yield f"{NETWORK}/networkInterfaces/join/action"
    yield f"{NETWORK}/virtualNetworks/subnets/join/action"
    if "networkSecurityGroup" in text:
        yield f"{NETWORK}/networkSecurityGroups/join/action"
    if "publicIPAddressConfiguration" in text:
        yield f"{NETWORK}/publicIPAddresses/write"
        yield f"{NETWORK}/publicIPAddresses/join/action"
    if "userAssignedIdentities" in text:
        yield f"{IDENTITY}/assign/action"
