"""The permissions that are needed, as two IAM policies: to set up the shared network, and for everything else. Pure.

https://docs.aws.amazon.com/service-authorization/latest/reference/list_amazonec2.html
"""

from __future__ import annotations

from typing import Any

from dask_cloudvm.clouds.ec2_facts import TAG

ARN = "arn:aws:ec2:*:*:"
MADE = ("instance", "volume", "network-interface")
_OURS = {"Null": {f"aws:ResourceTag/{TAG}cluster": "false"}}
_SHARED = {"Null": {f"aws:ResourceTag/{TAG}network": "false"}}


def _allow(sid: str, actions: str | list[str], resources: str | list[str], **condition: Any) -> dict[str, Any]:
    statement = {"Sid": sid, "Effect": "Allow", "Action": actions, "Resource": resources}
    return {**statement, "Condition": condition} if condition else statement


def _tagged(key: str) -> dict[str, dict[str, str]]:
    return {"Null": {f"aws:RequestTag/{TAG}{key}": "false"}}


def _policy(*statements: dict[str, Any]) -> dict[str, Any]:
    return {"Version": "2012-10-17", "Statement": list(statements)}


def set_up() -> dict[str, Any]:
    """For whoever starts the first cluster with a firewall setting, and the account's first spot machine."""
    groups = f"{ARN}security-group/*"
    spot = "arn:aws:iam::*:role/aws-service-role/spot.amazonaws.com/AWSServiceRoleForEC2Spot"
    of_spot = {"StringEquals": {"iam:AWSServiceName": "spot.amazonaws.com"}}
    made_by = {"StringEquals": {"ec2:CreateAction": "CreateSecurityGroup"}}
    change = ["ec2:AuthorizeSecurityGroupIngress", "ec2:DeleteSecurityGroup"]
    return _policy(
        _allow("MakeSharedGroups", "ec2:CreateSecurityGroup", groups, **_tagged("network")),
        _allow("MakeSharedGroupsInVpcs", "ec2:CreateSecurityGroup", f"{ARN}vpc/*"),
        _allow("TagSharedGroups", "ec2:CreateTags", groups, **made_by),
        _allow("OpenAndRemoveSharedGroups", change, groups, **_SHARED),
        _allow("SeeWhichGroupsAreUsed", "ec2:DescribeNetworkInterfaces", "*"),
        _allow("UseSpotTheFirstTime", "iam:CreateServiceLinkedRole", spot, **of_spot),
    )


def ongoing(role: str | None = None) -> dict[str, Any]:
    """For everyone who starts and removes clusters; with ``role``, the ARN of what the machines may be."""
    looks = ["Instances", "InstanceTypes", "InstanceTypeOfferings", "Images", "Subnets", "Vpcs", "SecurityGroups"]
    looks += ["Regions"]
    used = [f"{ARN}{kind}/*" for kind in ("subnet", "security-group", "key-pair", "spot-instances-request")]
    used += ["arn:aws:ec2:*::image/*", "arn:aws:ec2:*::snapshot/*"]
    made = [f"{ARN}{kind}/*" for kind in MADE]
    pass_on = {"StringEquals": {"iam:PassedToService": "ec2.amazonaws.com"}}
    statements = [
        _allow("Look", [f"ec2:Describe{what}" for what in looks], "*"),
        _allow("FindImages", "ssm:GetParameters", "arn:aws:ssm:*::parameter/aws/service/canonical/*"),
        _allow("ExplainRefusals", ["sts:DecodeAuthorizationMessage", "servicequotas:GetServiceQuota"], "*"),
        _allow("MakeMachinesOf", "ec2:RunInstances", used),
        _allow("MakeMachines", "ec2:RunInstances", made, **_tagged("cluster")),
        _allow("TagMachines", "ec2:CreateTags", made, StringEquals={"ec2:CreateAction": "RunInstances"}),
        _allow("RemoveMachines", ["ec2:TerminateInstances", "ec2:GetConsoleOutput"], f"{ARN}instance/*", **_OURS),
    ]
    return _policy(*statements, *([_allow("PassRole", "iam:PassRole", role, **pass_on)] if role else []))


def policies(role: str | None = None) -> dict[str, dict[str, Any]]:
    """Both parts by name."""
    return {"setup": set_up(), "ongoing": ongoing(role)}
