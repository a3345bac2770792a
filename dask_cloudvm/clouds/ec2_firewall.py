"""The shared security group: its name and its rules. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any


def group_name(ports: Sequence[int], networks: Sequence[str]) -> str:
    """The same for the same setting, so that its clusters share a group."""
    setting = json.dumps([list(ports), list(networks)])
    return f"dask-cloudvm-{hashlib.sha256(setting.encode()).hexdigest()[:12]}"


def rules_of(ports: Sequence[int], networks: Sequence[str]) -> list[dict[str, Any]]:
    """Ingress rules as AuthorizeSecurityGroupIngress takes them; the one without ports is for the group itself."""
    v4 = [{"CidrIp": n} for n in networks if ":" not in n]
    v6 = [{"CidrIpv6": n} for n in networks if ":" in n]
    sources = {**({"IpRanges": v4} if v4 else {}), **({"Ipv6Ranges": v6} if v6 else {})}
    opened = [{"IpProtocol": "tcp", "FromPort": p, "ToPort": p, **sources} for p in ports] if sources else []
    return [*opened, {"IpProtocol": "-1"}]


def missing_rules(rules: Sequence[Mapping[str, Any]], group: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Those of ``rules`` that a group, as DescribeSecurityGroups shows it, does not have in full."""
    have = {key for rule in group.get("IpPermissions", ()) for key in _sources(rule, group["GroupId"])}
    return [rule for rule in rules if not set(_sources(rule, group["GroupId"])) <= have]


def _sources(rule: Mapping[str, Any], own: str) -> list[tuple[Any, ...]]:
    if rule["IpProtocol"] == "-1":
        pairs = rule.get("UserIdGroupPairs", [{"GroupId": own}])
        return [("-1", pair["GroupId"]) for pair in pairs]
    where = [*(r["CidrIp"] for r in rule.get("IpRanges", ())), *(r["CidrIpv6"] for r in rule.get("Ipv6Ranges", ()))]
    return [(rule["IpProtocol"], rule["FromPort"], rule["ToPort"], network) for network in where]
