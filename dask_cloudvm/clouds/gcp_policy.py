"""The permissions that are needed, as custom roles: what ``gcloud iam roles create --file`` takes. Pure.

https://cloud.google.com/compute/docs/reference/rest/v1 lists those of each call; ``account`` is to be granted on the
machines' service account, ``machines`` to it, and the others to whoever starts clusters, on the project. To find the
rules that a shared VPC does not need any more, ``ongoing`` is needed on its host and on all its service projects.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

SETUP = ("compute.firewalls.create", "compute.firewalls.delete", "compute.networks.updatePolicy")
LOOKS = (
    "compute.firewalls.list",
    "compute.globalOperations.get",
    "compute.images.get",
    "compute.images.getFromFamily",
    "compute.instances.get",
    "compute.instances.getSerialPortOutput",
    "compute.instances.list",
    "compute.machineTypes.get",
    "compute.machineTypes.list",
    "compute.networks.get",
    "compute.projects.get",  # and to list the service projects of a shared VPC
    "compute.regionOperations.get",
    "compute.regions.get",
    "compute.subnetworks.get",
    "compute.zoneOperations.get",
)
CHANGES = (
    "compute.disks.create",
    "compute.disks.setLabels",
    "compute.images.useReadOnly",
    "compute.instances.create",
    "compute.instances.delete",
    "compute.instances.setLabels",
    "compute.instances.setMetadata",
    "compute.instances.setServiceAccount",
    "compute.instances.setTags",
    "compute.subnetworks.use",
    "compute.subnetworks.useExternalIp",
)
DELETE = "compute.instances.delete"
# Of Google's own roles, those that have it: https://cloud.google.com/iam/docs/understanding-roles
WITH_DELETE = {
    "roles/owner",
    "roles/editor",
    "roles/compute.admin",
    "roles/compute.instanceAdmin",
    "roles/compute.instanceAdmin.v1",
}


def policies() -> dict[str, dict[str, Any]]:
    """Every role by the name of its part."""
    return {
        "setup": _role(
            "Makes and removes the firewall rules that clusters share; needed for the first cluster of a setting", SETUP
        ),
        "ongoing": _role("Starts, watches and removes clusters", (*LOOKS, *CHANGES)),
        "account": _role(
            "Starts machines as a service account; grant it on that account only", ["iam.serviceAccounts.actAs"]
        ),
        "machines": _role("For the machines' service account: a machine deletes itself when Dask ends on it", [DELETE]),
    }


def _role(what: str, permissions: Sequence[str]) -> dict[str, Any]:
    return {
        "title": "dask-cloudvm",
        "description": what,
        "stage": "GA",
        "includedPermissions": sorted(permissions),
    }
