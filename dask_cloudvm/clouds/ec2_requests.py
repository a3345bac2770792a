"""The bodies of the calls that make a cluster's machines and its security group, as they are sent. Pure.

https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_RunInstances.html, in boto3's spelling. ``UserData`` is
readable text here; it is compressed when it is sent.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from dask_cloudvm import userdata
from dask_cloudvm._version import __version__
from dask_cloudvm.bootstrap import protocol
from dask_cloudvm.checks import merge
from dask_cloudvm.clouds import ec2_options
from dask_cloudvm.clouds import names as naming
from dask_cloudvm.clouds.base import ENDED, PENDING, RUNNING, VM
from dask_cloudvm.clouds.common import PORT, listed
from dask_cloudvm.clouds.ec2_facts import TAG, EC2Facts, Group, Image, Subnet, Type
from dask_cloudvm.errors import CloudError
from dask_cloudvm.plan import Machine, Request

RUN, GROUP, RULES = "RunInstances", "CreateSecurityGroup", "AuthorizeSecurityGroupIngress"
LIMIT = 16 << 10  # bytes of user-data
MOST = 1000  # instances that one call may ask for at once: as many as its rate limit lets through
TAG_LENGTH = 256
INDEX = "ds.meta_data.ami_launch_index"
STATES = {"pending": PENDING, "running": RUNNING}  # anything else has ended, or soon will have


def requests(machines: Sequence[Machine], facts: EC2Facts) -> list[Request]:
    """The calls that make machines of one role; the scheduler's come with those for the security group."""
    first = machines[0]
    found = list(group_requests(facts.shared)) if facts.shared and first.role == "scheduler" else []
    for names in naming.split([m.name for m in machines], TAG_LENGTH, MOST):
        bodies = list(_bodies(first, names, facts))
        userdata.check_size(bodies[0]["UserData"], LIMIT)
        found.append(Request(RUN, names, bodies[0], tuple(_difference(bodies[0], b) for b in bodies[1:])))
    return found


def bodies(request: Request) -> Iterator[dict[str, Any]]:
    """The body of a request, and those to try for what it leaves over."""
    for change in ({}, *request.alternatives):
        yield {key: value for key, value in {**request.body, **change}.items() if value is not None}


def place(body: Mapping[str, Any]) -> str:
    """What a body asks for and where, for a message."""
    spot = "spot " if "InstanceMarketOptions" in body else ""
    subnet = body["NetworkInterfaces"][0].get("SubnetId", "")
    return f"{spot}{body['InstanceType']} in {subnet}"


def _difference(first: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """What turns ``first`` into ``other``; None takes a key away."""
    keys = [*first, *(key for key in other if key not in first)]
    return {key: other.get(key) for key in keys if key != "ClientToken" and first.get(key) != other.get(key)}


def _bodies(machine: Machine, names: Sequence[str], facts: EC2Facts) -> Iterator[dict[str, Any]]:
    places = _places(machine, facts)
    gpu = bool(places[0][0].gpus)
    spot = machine.options["spot"] if machine.role == "worker" else False
    setting = userdata.Setting(_naming(machine, names), gpu, notice="ec2" if spot else "")
    text = userdata.render(machine.launch, machine.options, setting)
    for market in {False: (False,), True: (True,), "fallback": (True, False)}[spot]:
        for type, subnet in places:
            body = _body(machine, names, facts, type, subnet) | {"UserData": text}
            if market:
                body["InstanceMarketOptions"] = _market(machine.options["max_price"])
            body = merge(body, machine.options["extra_vm_options"] or {})
            yield {**body, "ClientToken": client_token(body, facts.nonce)}


def _places(machine: Machine, facts: EC2Facts) -> list[tuple[Type, Subnet]]:
    """Machine types and subnets to try: each type in each zone before the next type."""
    types = [facts.types[name] for name in listed(machine.options["machine_type"])]
    subnets = facts.subnets[machine.role]
    found = [(t, s) for t in types for s in subnets if t.zones is None or s.zone in t.zones]
    wanted = ", ".join(t.name for t in types)
    if not found:
        what = f"no zone of {', '.join(s.zone for s in subnets)} offers {wanted}"
        offers = sorted({zone for t in types for zone in t.zones or ()})
        hint = f"change zone: {', '.join(offers)} offer it" if offers else "change machine_type (instance_type)"
        raise CloudError(doing=f"place the {machine.role}", what=what, hint=hint)
    if len({bool(t.gpus) for t, _ in found}) > 1:
        what = f"some of {wanted} have GPUs and some have not"
        hint = f"let {machine.role}_machine_type name one kind of machines"
        raise CloudError(doing=f"set up the {machine.role}", what=what, hint=hint)
    return found


def _body(
    machine: Machine, names: Sequence[str], facts: EC2Facts, type: Type, subnet: Subnet
) -> dict[str, Any]:  # fmt: skip
    options, image = machine.options, facts.images[machine.role, type.name]
    body: dict[str, Any] = {
        "ImageId": image.id,
        "InstanceType": type.name,
        "MinCount": 1,
        "MaxCount": len(names),
        "InstanceInitiatedShutdownBehavior": "terminate",
        "BlockDeviceMappings": [_disk(options, image)],
        "NetworkInterfaces": [_interface(options, facts, subnet)],
        "MetadataOptions": {"HttpEndpoint": "enabled", "HttpTokens": "required", "HttpPutResponseHopLimit": 1},
        "MaintenanceOptions": {"AutoRecovery": "disabled"},  # what was in its memory is lost: others replace it
        "Monitoring": {"Enabled": options["enable_detailed_monitoring"]},
        "TagSpecifications": tag_specifications(machine, names, facts),
    }
    if options["key_name"]:
        body["KeyName"] = options["key_name"]
    if profile := options["iam_instance_profile"]:
        kind = "Arn" if str(profile).startswith("arn:") else "Name"
        body["IamInstanceProfile"] = dict(profile) if isinstance(profile, Mapping) else {kind: profile}
    return body


def _disk(options: Mapping[str, Any], image: Image) -> dict[str, Any]:
    if options["disk_size"] < image.size:
        what = f"image {image.id} needs {image.size} GB, disk_size is {options['disk_size']}"
        raise CloudError(doing="make the root disk", what=what, hint=f"set disk_size to {image.size} or more")
    ebs = {
        "VolumeSize": options["disk_size"],
        "VolumeType": options["disk_type"],
        "Encrypted": True,
        "DeleteOnTermination": True,
    }
    return {"DeviceName": image.root, "Ebs": ebs}


def _interface(options: Mapping[str, Any], facts: EC2Facts, subnet: Subnet) -> dict[str, Any]:
    return {
        "DeviceIndex": 0,
        "SubnetId": subnet.id,
        "Groups": list(facts.groups) or ([facts.shared.reference] if facts.shared else []),
        "AssociatePublicIpAddress": not options["use_private_ip"],
        "DeleteOnTermination": True,
    }


def _market(max_price: float | None) -> dict[str, Any]:
    price = {} if max_price is None else {"MaxPrice": f"{max_price:.6f}".rstrip("0").rstrip(".")}
    spot = {"SpotInstanceType": "one-time", "InstanceInterruptionBehavior": "terminate", **price}
    return {"MarketType": "spot", "SpotOptions": spot}


def _naming(machine: Machine, names: Sequence[str]) -> str:
    runs = [(run.start, run.token, run.first) for run in naming.runs(names)] if machine.role == "worker" else []
    return userdata.numbered(naming.prefix(machine.cluster, machine.role), runs, INDEX)


def client_token(body: Mapping[str, Any], nonce: str) -> str:
    """The same for the same call of the same launcher: https://docs.aws.amazon.com/ec2/latest/devguide/ec2-api-idempotency.html"""
    plain = {key: value for key, value in body.items() if key != "ClientToken"}
    return hashlib.sha256(f"{nonce}{json.dumps(plain, sort_keys=True)}".encode()).hexdigest()[:32]


# Tags: all that is known about a machine later


def tag_specifications(machine: Machine, names: Sequence[str], facts: EC2Facts) -> list[dict[str, Any]]:
    """Our own tags, over those that the user gives, for all that RunInstances makes."""
    options = machine.options
    ours = {
        f"{TAG}cluster": machine.cluster,
        f"{TAG}role": machine.role,
        f"{TAG}names": naming.compact(names) if machine.role == "worker" else "",
        f"{TAG}options": machine.digest,
        f"{TAG}scheduler": f"{protocol(options)}:{facts.port}",
        f"{TAG}version": __version__,
    }
    name = {"Name": naming.prefix(machine.cluster, machine.role)}
    given = {"instance": "instance_tags", "volume": "volume_tags", "network-interface": "instance_tags"}
    return [{"ResourceType": kind, "Tags": tags({**name, **options[option], **ours})} for kind, option in given.items()]


def tags(values: Mapping[str, Any]) -> list[dict[str, str]]:
    """Tags in the API's form."""
    return [{"Key": key, "Value": value} for key, value in ec2_options.tags(values).items()]


def for_names(body: Mapping[str, Any], names: Sequence[str], nonce: str) -> dict[str, Any]:
    """``body`` for only these names of the request's, all of a worker's kind."""
    found = {t["Key"]: t["Value"] for t in body["TagSpecifications"][0]["Tags"]}
    cluster, role = found[f"{TAG}cluster"], found[f"{TAG}role"]
    runs = [(run.start, run.token, run.first) for run in naming.runs(names)] if role == "worker" else []
    text = userdata.renamed(body["UserData"], userdata.numbered(naming.prefix(cluster, role), runs, INDEX))
    compact = naming.compact(names) if role == "worker" else ""
    specifications = [
        {**s, "Tags": [{**t, "Value": compact} if t["Key"] == f"{TAG}names" else t for t in s["Tags"]]}
        for s in body["TagSpecifications"]
    ]
    changed = {**body, "MaxCount": len(names), "UserData": text, "TagSpecifications": specifications}
    return {**changed, "ClientToken": client_token(changed, nonce)}


def cluster_filter(cluster: str | None) -> dict[str, Any]:
    """Finds the machines of one cluster, or of all; ``*`` and ``?`` would stand for others.

    https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_Filter.html
    """
    if cluster is None:
        return {"Name": "tag-key", "Values": [f"{TAG}cluster"]}
    return {"Name": f"tag:{TAG}cluster", "Values": [re.sub(r"([*?\\])", r"\\\1", cluster)]}


@lru_cache(64)
def _expanded(text: str, cluster: str, role: str) -> tuple[str, ...]:
    return tuple(naming.expand(text, cluster, role))


def machine_of(instance: Mapping[str, Any]) -> VM | None:
    """The VM that an instance is, by its tags and its index; None where it is none of ours."""
    found = {t["Key"]: t["Value"] for t in instance.get("Tags", ())}
    cluster, role = found.get(f"{TAG}cluster"), found.get(f"{TAG}role")
    if not cluster or not role:
        return None
    scheme, _, number = found.get(f"{TAG}scheduler", "").partition(":")
    names = _expanded(found.get(f"{TAG}names", ""), cluster, role)
    index = instance.get("AmiLaunchIndex", 0)
    return VM(
        id=instance["InstanceId"],
        name=names[index] if index < len(names) else instance["InstanceId"],
        cluster=cluster,
        role=role,
        state=STATES.get(instance["State"]["Name"], ENDED),
        cloud="ec2",
        private_ip=instance.get("PrivateIpAddress", ""),
        public_ip=instance.get("PublicIpAddress"),
        protocol=scheme or "tls",
        port=int(number or PORT),
        zone=instance.get("Placement", {}).get("AvailabilityZone"),
        spot=instance.get("InstanceLifecycle") == "spot",
        options_digest=found.get(f"{TAG}options", ""),
        created=instance["LaunchTime"].timestamp() if "LaunchTime" in instance else 0.0,
    )


# The shared security group


def group_requests(group: Group) -> Iterator[Request]:
    """What makes the group, or what it lacks; nothing where it is complete."""
    if group.id is None:
        ours = tags({"Name": group.name, f"{TAG}network": "shared", f"{TAG}version": __version__})
        body = {
            "GroupName": group.name,
            "Description": "Dask clusters made by dask-cloudvm: scheduler and dashboard from outside, all inside",
            "VpcId": group.vpc,
            "TagSpecifications": [{"ResourceType": "security-group", "Tags": ours}],
        }
        yield Request(GROUP, (), body)
    if group.missing:
        rules = [to_itself(rule, group.reference) for rule in group.missing]
        yield Request(RULES, (), {"GroupId": group.reference, "IpPermissions": rules})


def to_itself(rule: Mapping[str, Any], own: str) -> dict[str, Any]:
    """A rule as it is sent, with the group itself as the source where a rule opens everything."""
    return {**rule, "UserIdGroupPairs": [{"GroupId": own}]} if rule["IpProtocol"] == "-1" else dict(rule)
