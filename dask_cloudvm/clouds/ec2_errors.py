"""What AWS says when it refuses, as one message with the option or the permission to change.

Codes: https://docs.aws.amazon.com/AWSEC2/latest/APIReference/errors-overview.html
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from dask_cloudvm.errors import CloudError, CloudVMError

# No place for (more of) these machines here and now: the next zone or type may have it.
CAPACITY = {
    "InsufficientInstanceCapacity",
    "InsufficientCapacity",
    "InsufficientHostCapacity",
    "InsufficientReservedInstanceCapacity",
    "InsufficientFreeAddressesInSubnet",
    "InsufficientAddressCapacity",
    "SpotMaxPriceTooLow",
    "Unsupported",  # the zone does not offer the type
}
# A limit of the account: other types count against another one, and so does spot.
QUOTA = {"VcpuLimitExceeded", "InstanceLimitExceeded", "MaxSpotInstanceCountExceeded"}
THROTTLED = {"RequestLimitExceeded", "Throttling", "ThrottlingException", "TooManyRequestsException"}
DENIED = {"UnauthorizedOperation", "AccessDenied", "AccessDeniedException", "UnauthorizedAccess"}
# The region is not for this user: it is not enabled, or a policy of the organization closes it.
CLOSED = DENIED | {"AuthFailure", "OptInRequired", "InvalidClientTokenId", "UnrecognizedClientException"}
EXPIRED = {"RequestExpired", "ExpiredToken", "ExpiredTokenException"}

_LOG_IN = "log in again (aws sso login, aws configure), or renew AWS_SESSION_TOKEN"
HINTS = {
    **dict.fromkeys(CAPACITY, "give more entries in zone or machine_type, or use spot: fallback"),
    **dict.fromkeys(QUOTA, "ask for more at the Service Quotas console, or use fewer or smaller machines"),
    **dict.fromkeys(THROTTLED, "wait a minute; other programs in this account and region may be using up the limit"),
    **dict.fromkeys(EXPIRED, _LOG_IN),
    "SpotMaxPriceTooLow": "raise max_price or leave it out, or use spot: fallback",
    "Unsupported": "change zone or machine_type",
    "InsufficientFreeAddressesInSubnet": "give more subnets or zones",
    "AuthFailure": "check the AWS credentials, and that region is enabled for the account",
    "InvalidClientTokenId": "check the AWS credentials, and that region is enabled for the account",
    "UnrecognizedClientException": "check the AWS credentials, and that region is enabled for the account",
    "SignatureDoesNotMatch": "check AWS_SECRET_ACCESS_KEY and this computer's clock",
    "OptInRequired": "enable the region for the account, or change cloudprovider.ec2.region",
    "Blocked": "ask AWS Support to verify the account",
    "PendingVerification": "wait for AWS to verify the account, then try again",
    "InvalidAMIID.NotFound": "change image (ami): ids differ from region to region; or leave it out",
    "InvalidAMIID.Malformed": "change image (ami)",
    "InvalidAMIID.Unavailable": "change image (ami)",
    "InvalidInstanceType": "change machine_type (instance_type)",
    "InvalidSubnetID.NotFound": "change subnet (subnet_id) or region",
    "InvalidSubnet": "change subnet (subnet_id)",
    "InvalidVpcID.NotFound": "change vnet (vpc) or region",
    "InvalidGroup.NotFound": "change security_group (security_groups) or region",
    "InvalidGroupId.Malformed": "change security_group (security_groups)",
    "InvalidSecurityGroupID.NotFound": "change security_group (security_groups) or region",
    "InvalidSecurity.RequestHasExpired": "set this computer's clock",
    "InvalidKeyPair.NotFound": "change key_name: key pairs differ from region to region",
    "InvalidZone.NotFound": "change zone or region",
    "VPCIdNotSpecified": "choose one by vnet (vpc) or subnet (subnet_id)",
    "SecurityGroupLimitExceeded": "remove unused groups tagged dask-cloudvm:network, or choose a security_group",
    "RulesPerSecurityGroupLimitExceeded": "open fewer ports or networks by firewall, or choose a security_group",
    "InvalidBlockDeviceMapping": "raise disk_size, or change image",
    "VolumeTypeNotAvailableInZone": "change disk_type or zone",
    "MaxIOPSLimitExceeded": "ask for more at the Service Quotas console",
    "VolumeLimitExceeded": "ask for more at the Service Quotas console, or lower disk_size",
    "AddressLimitExceeded": "ask for more at the Service Quotas console, or use use_private_ip",
    "IdempotentParameterMismatch": "try again",
}
_TECHNICAL = {
    "NoCredentialsError": ("there are no AWS credentials", "log in by aws sso login or aws configure"),
    "PartialCredentialsError": ("the AWS credentials are incomplete", "set both key id and secret key"),
    "CredentialRetrievalError": ("the AWS credentials cannot be had", _LOG_IN),
    "TokenRetrievalError": ("the AWS login has expired", _LOG_IN),
    "SSOTokenLoadError": ("the AWS login has expired", _LOG_IN),
    "UnauthorizedSSOTokenError": ("the AWS login has expired", _LOG_IN),
    "ResponseParserError": ("the answer is not AWS's", "check the network, and the proxies in between"),
    "NoRegionError": ("no AWS region is chosen", "set cloudprovider.ec2.region or AWS_DEFAULT_REGION"),
}
_UNREACHED = {"EndpointConnectionError", "ConnectTimeoutError", "ReadTimeoutError", "ConnectionClosedError"}
_ENCODED = re.compile(r"\s*Encoded authorization failure message:\s*(\S+)")
_INSTANCE = re.compile(r"\bi-[0-9a-f]+\b")
_PERMISSION = re.compile(r"\b[a-z0-9-]+:[A-Z][A-Za-z]+\b")


def code(error: BaseException) -> str:
    """AWS's code of a translated error, ``""`` for other errors."""
    return str(error.facts.get("code", "")) if isinstance(error, CloudVMError) else ""


def of_region(error: CloudError, region: str) -> CloudError:
    """The same, where several regions were asked."""
    return CloudError(**{**error.facts, "doing": f"{error.facts['doing']} in {region}"})


def unknown_instances(error: BaseException) -> list[str]:
    """The instances that a translated error says do not exist."""
    return _INSTANCE.findall(str(error)) if code(error).startswith("InvalidInstanceID") else []


def translate(error: Any, doing: str, region: str, decode: Callable[[str], str] | None) -> CloudError:
    """A CloudError for what boto3 raised; ``decode`` reads encoded authorization messages."""
    response = getattr(error, "response", None)
    if response is None:
        what, hint = _technical(error, region)
        return CloudError(doing=doing, what=what, hint=hint, code=type(error).__name__)
    found = response.get("Error", {})
    name, message = found.get("Code", ""), found.get("Message", "").strip().rstrip(".")
    operation = getattr(error, "operation_name", "")
    if name in DENIED:
        what, hint = _denied(message, operation, decode)
    else:
        what, hint = f"{message} ({name})", _hint(name, message)
    return CloudError(doing=doing, what=what, hint=hint, code=name, message=message)


def _technical(error: Any, region: str) -> tuple[str, str]:
    kind = type(error).__name__
    if kind in _UNREACHED:
        what = f"no answer from AWS in region {region} ({error})"
        return what, "change cloudprovider.ec2.region, or check the network"
    return _TECHNICAL.get(kind, (f"{kind}: {error}", "see the message"))


def _hint(name: str, message: str) -> str:
    if name in HINTS:
        return HINTS[name]
    if name in ("InvalidParameterValue", "InvalidParameterCombination", "ValidationError", "InvalidParameter"):
        if "iaminstanceprofile" in message.lower().replace(" ", ""):
            return "change iam_instance_profile"
        if "filter" in message.lower() or "instance type" in message.lower():
            return "change machine_type (instance_type) or region"
        return "change the option that it names, or extra_vm_options"
    if name.startswith("AuthFailure.ServiceLinkedRole"):
        return "allow iam:CreateServiceLinkedRole once ('dask-cloudvm policy ec2 --part setup'), or use spot: false"
    return "see the message; 'dask-cloudvm doctor ec2' checks the account"


def _denied(message: str, operation: str, decode: Callable[[str], str] | None) -> tuple[str, str]:
    """The permission that is missing: from the message, the decoded message, or the operation's name."""
    encoded = _ENCODED.search(message)
    plain = _ENCODED.sub("", message).strip().rstrip(".")
    permission = f"ec2:{operation}"
    if encoded and decode:
        with suppress(CloudError, ValueError, KeyError):
            context = json.loads(decode(encoded[1]))["context"]
            permission = context["action"]
            plain += f"; missing is {permission} on {context['resource']}"
    if found := _PERMISSION.search(plain):
        permission = found[0]
    return plain, f"allow {permission}; 'dask-cloudvm policy ec2' prints all permissions that are needed"
