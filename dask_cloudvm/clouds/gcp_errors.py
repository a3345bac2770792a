"""What Google says when it refuses, in its words, with the option or the permission to change.

https://cloud.google.com/compute/docs/troubleshooting/troubleshooting-vm-creation
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from dask_cloudvm.errors import CloudError, CloudVMError

# No place for (more of) these machines here and now: the next zone or type may have it.
CAPACITY = {
    "ZONE_RESOURCE_POOL_EXHAUSTED",
    "ZONE_RESOURCE_POOL_EXHAUSTED_WITH_DETAILS",
    "REGION_RESOURCE_POOL_EXHAUSTED",
    "RESOURCE_POOL_EXHAUSTED",
    "STOCKOUT",
    "VM_MIN_COUNT_NOT_REACHED",
    "IP_SPACE_EXHAUSTED",
    "IP_SPACE_EXHAUSTED_WITH_DETAILS",
}
# A limit of the project: another region or type may count against another one, and so does spot.
QUOTA = {"QUOTA_EXCEEDED", "quotaExceeded", "LIMIT_EXCEEDED", "limitExceeded"}
THROTTLED = {"rateLimitExceeded", "userRateLimitExceeded", "RATE_LIMIT_EXCEEDED", "RESOURCE_OPERATION_RATE_EXCEEDED"}
TAKEN = {"alreadyExists", "RESOURCE_ALREADY_EXISTS"}
GONE = {"notFound", "RESOURCE_NOT_FOUND"}
DENIED = {"forbidden", "PERMISSIONS_ERROR", "IAM_PERMISSION_DENIED", "SERVICE_ACCOUNT_ACCESS_DENIED"}
DISABLED = {"accessNotConfigured", "SERVICE_DISABLED"}
PASSING = {"backendError", "internalError", "INTERNAL_ERROR", "INTERNAL"}

_POLICY = "'dask-cloudvm policy gcp' prints all permissions that are needed"
_HINTS = {
    **dict.fromkeys(CAPACITY, "give more entries in zone or machine_type, or use spot: fallback"),
    "IP_SPACE_EXHAUSTED": "choose a larger subnet",
    "IP_SPACE_EXHAUSTED_WITH_DETAILS": "choose a larger subnet",
    **dict.fromkeys(QUOTA, "ask for more at the console's page IAM > Quotas, or use fewer or smaller machines"),
    **dict.fromkeys(THROTTLED, "wait a minute; other programs in this project may be using up the limit"),
    **dict.fromkeys(PASSING, "try again; https://status.cloud.google.com tells of larger troubles"),
    **dict.fromkeys(DENIED, _POLICY),
    "SERVICE_ACCOUNT_ACCESS_DENIED": "grant roles/iam.serviceAccountUser on it, or change service_account",
    "conditionNotMet": "an organization policy forbids it: change the option that it names, or ask for an exception",
    "CONDITION_NOT_MET": "an organization policy forbids it: change the option that it names, or ask for an exception",
    "authError": "log in again by gcloud auth application-default login",
}
# Parts of Google's field names and messages, the more special first -> what to change.
_FIELDS = {
    "service account": "change service_account",
    "serviceaccount": "change service_account or instance_scopes",
    "accelerator": "change gpu_type, ngpus, machine_type or zone",
    "gpu": "change gpu_type, ngpus, machine_type or zone",
    "features are not compatible": "change disk_type (newer machine types need hyperdisk-balanced) or machine_type",
    "disktype": "change disk_type",
    "disk type": "change disk_type",
    "disksizegb": "raise disk_size",
    "disk size": "raise disk_size",
    "sourceimage": "change image (source_image)",
    "images/": "change image (source_image)",
    "onhostmaintenance": "change on_host_maintenance",
    "host maintenance": "change on_host_maintenance",
    "live migration": "change on_host_maintenance",
    "maxrunduration": "change max_run_time",
    "provisioningmodel": "change spot",
    "machinetype": "change machine_type or zone",
    "machine type": "change machine_type or zone",
    "subnetwork": "change subnet (subnetwork), vnet (network) or network_projectid",
    "firewall": "change firewall",
    "network": "change vnet (network), subnet (subnetwork) or network_projectid",
    "label": "change instance_tags (instance_labels)",
    "resource.tags": "change network_tags",
    "metadata": "shorten env_vars or extra_bootstrap",
    "external ip": "use public_ingress: false",
    "zones/": "change zone",
    "zone": "change zone",
    "region": "change region",
    "project": "change projectid",
}
_REQUIRED = re.compile(r"Required '([\w.]+)' permission for '([^']*)'")


def code(error: BaseException | None) -> str:
    """Google's reason of a translated error, ``""`` for other errors."""
    return str(error.facts.get("code", "")) if isinstance(error, CloudVMError) else ""


def of_place(error: CloudError) -> bool:
    """Whether another zone or machine type may do: there is no room, no quota, or no such GPU."""
    return code(error) in CAPACITY | QUOTA or "acceleratortype" in str(error.facts.get("message", "")).lower()


def passing(error: CloudError) -> bool:
    """Whether the same call may succeed a little later."""
    status = error.facts.get("status", 0)
    return code(error) in THROTTLED or (status in (429, 500, 502, 503, 504) and code(error) not in CAPACITY)


def refused(answer: Any, status: int, doing: str) -> CloudError:
    """A CloudError for an answer of HTTP status ``status``, which is Google's JSON or a proxy's text."""
    error = answer.get("error", {}) if isinstance(answer, Mapping) else {}
    if not isinstance(error, Mapping):  # OAuth's shape
        error = {"message": f"{error}: {answer.get('error_description', '')}"}
    message = str(error.get("message") or answer or f"HTTP status {status}")
    details = [d.get("reason") for d in error.get("details", ()) if "ErrorInfo" in d.get("@type", "")]
    reasons = [*details, *(e.get("reason") for e in error.get("errors", ())), error.get("status")]
    known = [r for r in reasons if r in DISABLED] or [r for r in reasons if r]
    reason = "authError" if status == 401 else known[0] if known else str(status)
    return _made(doing, [(reason, message)], status)


def of_operation(operation: Mapping[str, Any], doing: str) -> CloudError | None:
    """What went wrong in an operation, None where nothing did."""
    found = [(e.get("code", ""), e.get("message", "")) for e in operation.get("error", {}).get("errors", ())]
    if not found and operation.get("httpErrorStatusCode", 200) >= 400:
        found = [(str(operation["httpErrorStatusCode"]), operation.get("httpErrorMessage", ""))]
    found.sort(key=lambda each: each[0] == "VM_MIN_COUNT_NOT_REACHED")  # says only that there was a reason
    return _made(doing, found, 0) if found else None


def _made(doing: str, found: Sequence[tuple[str, str]], status: int) -> CloudError:
    texts = list(dict.fromkeys(f"{message.strip().rstrip('.')} ({reason})" for reason, message in found))
    reason, message = found[0]
    what = "; ".join(texts[:3])
    hint = _hint(reason, message)
    return CloudError(doing=doing, what=what, hint=hint, code=reason, message=message, status=status)


def _hint(reason: str, message: str) -> str:
    if missing := _REQUIRED.search(message):
        return f"grant {missing[1]} on {missing[2]}; {_POLICY}"
    if reason in DISABLED:
        return "enable it by: gcloud services enable compute.googleapis.com"
    if reason in _HINTS:
        return _HINTS[reason]
    lower = message.lower()
    for part, hint in _FIELDS.items():
        if part in lower:
            return hint
    return "see the message; 'dask-cloudvm doctor gcp' checks the project"
