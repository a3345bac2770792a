"""What Azure says when it refuses, in its words, with the option or the permission to change.

https://learn.microsoft.com/en-us/azure/azure-resource-manager/troubleshooting/common-deployment-errors
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dask_cloudvm.errors import CloudError, CloudVMError

# No place for (more of) these machines here and now: the next zone or size may have it.
CAPACITY = {
    "AllocationFailed",
    "OverconstrainedAllocationRequest",
    "OverconstrainedZonalAllocationRequest",
    "SkuNotAvailable",
    "ZonalAllocationFailed",
}
# No place for spot machines at this price, of this size, or of this subscription.
TOO_DEAR = "SpotPriceGreaterThanProvidedMaxPrice"
SPOT = {TOO_DEAR, "AzureSpotFeatureNotEnabledForSubscription", "AzureSpotIsNotSupportedForThisVMSize"}
# A limit of the subscription: another size may count against another one, and so does spot.
ADDRESSES = "PublicIPCountLimitReached"  # each kind of addresses has a limit, and a code that ends so
QUOTA = {"QuotaExceeded", ADDRESSES, "SubnetIsFull"}
THROTTLED = {"TooManyRequests", "SubscriptionRequestsThrottled", "OperationTooManyRequests", "429"}
GONE = {"NotFound", "ParentResourceNotFound", "ResourceGroupNotFound", "ResourceNotFound"}
TAKEN = {"PreconditionFailed"}
NOWHERE = {"SubscriptionNotFound"}  # says nothing about what was asked for
DENIED = {"AuthorizationFailed", "LinkedAuthorizationFailed", "Forbidden", "403"}
UNREGISTERED = {"MissingSubscriptionRegistration", "SubscriptionNotRegistered"}
SUPERSEDED = "CanceledAndSupersededDueToAnotherOperation"
# Parts of shared things that another launcher changes at this very moment.
BUSY = {
    SUPERSEDED,
    "NicReservedForAnotherVm",
    "AnotherOperationInProgress",
    "Conflict",
    "RetryableError",
    "ReferencedResourceNotProvisioned",
}
NEW = {"PrincipalNotFound", "RoleDefinitionDoesNotExist"}  # not known everywhere yet
# One machine's own bad luck: of Azure's, or of its own where others with the same image come up.
INTERNAL = {"InternalExecutionError", "NetworkingInternalOperationError", "RetryableError"}
SLOW = {"OSProvisioningTimedOut"}
# Say no more than that something failed; the reason is in their details.
_WRAPPERS = {
    "DeploymentFailed",
    "ResourceDeploymentFailure",
    "ResourceOperationFailure",
    "BadRequest",
    "Conflict",
    "Canceled",
}

_POLICY = "'dask-cloudvm policy azure' prints all permissions that are needed"
_QUOTAS = "ask for more at the portal's page Quotas, or use fewer or smaller machines"
_HINTS = {
    **dict.fromkeys(CAPACITY, "give more entries in zone or machine_type (vm_size), or use spot: fallback"),
    **dict.fromkeys(SPOT, "use spot: fallback, or change machine_type (vm_size)"),
    TOO_DEAR: "raise max_price, or use spot: fallback",
    **dict.fromkeys(QUOTA, _QUOTAS),
    ADDRESSES: "set outbound_access: nat_gateway, or ask for more public addresses",
    "SubnetIsFull": "choose a larger subnet",
    **dict.fromkeys(THROTTLED, "wait a minute; other programs in this subscription may be using up the limit"),
    **dict.fromkeys(DENIED, _POLICY),
    **dict.fromkeys(BUSY, "try again; another program changes the same thing"),
    **dict.fromkeys(NEW, "try again in a few minutes"),
    "RequestDisallowedByPolicy": "an Azure policy forbids it: change the option that it names, or ask for an exemption",
    "ScopeLocked": "remove the lock, or choose another resource_group",
    "ResourcePurchaseValidationFailed": "accept the image's terms by: az vm image terms accept",
    "MarketplacePurchaseEligibilityFailed": "accept the image's terms by: az vm image terms accept",
    "OSProvisioningTimedOut": "change image (vm_image): it must be a Linux with cloud-init",
    "OSProvisioningClientError": "change image (vm_image): it must be a Linux with cloud-init",
    "SubscriptionNotFound": "change subscription_id, or log in to another tenant",
    "InvalidSubscriptionId": "change subscription_id",
    "LocationNotAvailableForResourceType": "change region (location)",
    "InvalidAuthenticationToken": "log in again by az login",
    "ExpiredAuthenticationToken": "log in again by az login",
}
# Parts of Azure's messages and targets, the more special first -> what to change.
_FIELDS = {
    "identity": "change identity",
    "plan": "set marketplace_plan",
    "imagereference": "change image (vm_image)",
    "platformimage": "change image (vm_image)",
    "image": "change image (vm_image)",
    "hypervgeneration": "change image (vm_image) or machine_type (vm_size)",
    "hypervisor generation": "change image (vm_image) or machine_type (vm_size)",
    "disksize": "raise disk_size",
    "disk size": "raise disk_size",
    "storageaccounttype": "change disk_type",
    "storage account type": "change disk_type",
    "premium": "change disk_type or machine_type (vm_size)",
    "vmsize": "change machine_type (vm_size)",
    "vm size": "change machine_type (vm_size)",
    "availability zone": "change zone",
    "zone": "change zone",
    "maxprice": "change max_price",
    "max price": "change max_price",
    "spot": "change spot",
    "adminusername": "change admin_username",
    "ssh": "change ssh_public_key",
    "customdata": "shorten env_vars or extra_bootstrap",
    "tag": "change instance_tags (tags)",
    "securitygroup": "change security_group",
    "subnet": "change subnet or vnet",
    "virtualnetwork": "change vnet",
    "publicip": "change outbound_access or public_ingress",
    "resource group": "change resource_group",
    "location": "change region (location)",
}
# What OperationNotAllowed means, by its message.
_MEANT = {TOO_DEAR: "max price .* lower than the current spot price", "QuotaExceeded": "quota"}
_ACTION = re.compile(r"perform action '([\w./]+)'(?:.* over scope '([^']+)')?|linked scope\(s\) '([^']+)'", re.S)
_NAMESPACE = re.compile(r"namespace '([\w.]+)'")


def code(error: BaseException | None) -> str:
    """Azure's reason of a translated error, ``""`` for other errors."""
    return str(error.facts.get("code", "")) if isinstance(error, CloudVMError) else ""


def of_place(error: CloudError) -> bool:
    """Whether another zone or size may do: there is no room, or no quota."""
    return code(error) in CAPACITY | SPOT | QUOTA


def gone(error: CloudError) -> bool:
    """Whether there is no such thing (any more); each kind of thing has codes of its own for that."""
    return code(error) in GONE or (_status(error) == 404 and code(error) not in NOWHERE)


def taken(error: CloudError) -> bool:
    """Whether there is such a thing already."""
    return code(error) in TAKEN or _status(error) == 412


def used(error: CloudError) -> bool:
    """Whether it cannot be removed since something else needs it."""
    return bool(re.search("InUse|CannotBeDeleted|CannotDelete", code(error), re.I))


def denied(error: CloudError) -> bool:
    """Whether its user has no right to it."""
    return code(error) in DENIED


def busy(error: CloudError) -> bool:
    """Whether another program changes the same at this moment."""
    return code(error) in BUSY


def _status(error: CloudError) -> int:
    return int(error.facts.get("status", 0))


def unlucky(error: CloudError, others: bool) -> bool:
    """Whether the next try may well succeed; ``others`` is whether machines of the same kind were made."""
    return code(error) in INTERNAL or (others and code(error) in SLOW)


def doubtful(error: CloudError) -> bool:
    """Whether what was asked for may happen in spite of it."""
    return _status(error) >= 500


def refused(answer: Any, status: int, doing: str, wait: float = 0) -> CloudError:
    """A CloudError for an answer of HTTP status ``status``, which is Azure's JSON or a proxy's text.

    ``wait`` is after how many seconds it may be tried again.
    """
    error = answer.get("error", answer) if isinstance(answer, Mapping) else {"message": answer}
    if not isinstance(error, Mapping):
        error = {"message": error}
    said = {"code": str(status), "message": f"HTTP status {status}", **_said(error)}
    if wait:
        said["message"] = f"{_short(str(said['message']))}; it may be tried again after {wait:g} seconds"
    return _made(doing, said, status)


def of_operation(operation: Mapping[str, Any], doing: str) -> CloudError:
    """Why an operation failed."""
    error = _said(operation.get("error") or operation.get("properties", {}).get("error") or {})
    return _made(doing, {"code": "Failed", "message": f"it {operation.get('status', 'failed').lower()}", **error}, 0)


def of_statuses(statuses: Sequence[Mapping[str, Any]], doing: str) -> CloudError:
    """Why a machine failed, by the statuses in its instance view: ``ProvisioningState/failed/AllocationFailed``."""
    for each in statuses:
        kind, _, reason = str(each.get("code", "")).partition("/failed/")
        if kind == "ProvisioningState" and reason:
            return _made(doing, {"code": reason, "message": each.get("message") or reason}, 0)
    return _made(doing, {"code": "AllocationFailed", "message": "a machine is gone again as soon as it was made"}, 0)


def _said(error: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in error.items() if value}


def _reasons(error: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(code, message) of an error and of those inside it, the innermost first."""
    for inner in error.get("details") or ():
        if isinstance(inner, Mapping) and inner.get("code"):
            yield from _reasons(inner)
    yield str(error.get("code", "")), str(error.get("message", ""))


def _made(doing: str, error: Mapping[str, Any], status: int) -> CloudError:
    found = list(_reasons(error))
    telling = [each for each in found if each[0] not in _WRAPPERS] or found
    reason, message = telling[0]
    if reason == "OperationNotAllowed":
        reason = next((name for name, said in _MEANT.items() if re.search(said, message, re.I | re.S)), reason)
    if reason.lower().endswith(ADDRESSES.lower()):
        reason = ADDRESSES
    texts = dict.fromkeys(f"{_short(text)} ({why})" for why, text in telling)
    what = "; ".join(list(texts)[:3])
    hint = _hint(reason, f"{message} {error.get('target', '')}")
    return CloudError(doing=doing, what=what, hint=hint, code=reason, message=message, status=status)


def _short(message: str) -> str:
    """Without the long links into the portal."""
    text = re.sub(r" *(Submit a request|Setup Alerts|Learn more|Please read more)[^\n]*", "", message.strip())
    return text.strip().rstrip(".").replace("\r", "").replace("\n", " ")


def _hint(reason: str, message: str) -> str:
    if reason in DENIED and (missing := _ACTION.search(message)):
        where = f" on {missing[2] or missing[3]}" if missing[2] or missing[3] else ""
        return f"grant {missing[1] or 'access'}{where}; {_POLICY}"
    if reason in UNREGISTERED:
        named = _NAMESPACE.search(message)
        return f"register it by: az provider register --namespace {named[1] if named else 'Microsoft.Compute'}"
    if reason in _HINTS:
        return _HINTS[reason]
    lower = message.lower()
    for part, hint in _FIELDS.items():
        if part in lower:
            return hint
    return "see the message; 'dask-cloudvm doctor azure' checks the subscription"


def hint_of_quota(name: str) -> str:
    """What to do about a quota of this name."""
    return _HINTS[ADDRESSES] if "publicip" in name.lower() else _QUOTAS


# What the chain says of ways to log in that nobody has set up.
_ABSENT = re.compile(r"(?i)unavailable|requires the|not found on path|could not be found|not installed|troubleshoot")


def not_logged_in(doing: str, error: Exception) -> CloudError:
    """What azure-identity raised, in one message."""
    said = [line.strip() for line in str(error).splitlines() if ": " in line and not _ABSENT.search(line)]
    what = said[0].rstrip(".") if said and "DefaultAzureCredential" not in said[0] else "there are no credentials"
    hint = "log in by az login, or set AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_CLIENT_SECRET"
    return CloudError(doing=doing, what=what, hint=hint, code="authError")
