"""EC2 whose machines boot: cloud-init's own datasource reads the user-data of each launch from the metadata service."""

from __future__ import annotations

import base64
import uuid
from collections.abc import Mapping
from typing import Any

from ec2_fake import Fake, Parameters

from tests.lab.consoles import Consoles
from tests.lab.lab import Lab
from tests.lab.machine import Machine, Seed
from tests.lab.metadata import EC2


class Site:
    """Lets a fake boot its machines in the lab."""

    def __init__(self, lab: Lab, fake: Fake, variables: Mapping[str, str]) -> None:
        self.lab, self.fake, self.variables = lab, fake, variables
        self.addresses: dict[str, str] = {}  # of instances
        fake.on_run, fake.on_end, fake.consoles = self.run, self.end, Consoles(lab, self.addresses)

    def run(self, parameters: Parameters, ids: list[str]) -> Mapping[str, str]:
        user_data = base64.b64decode(parameters["UserData"])
        changed = {}
        for index, id in enumerate(ids):
            address = self.addresses[id] = self.lab.address()
            changed |= _move(self.fake.backend.get_instance(id), address)
            identity = EC2(id, index, address, user_data, parameters["InstanceType"])
            self.lab.start(address, seed(), identity, lambda id=id: self.fake.ended(id))
        return changed

    def end(self, ids: list[str]) -> None:
        for id in ids:
            self.lab.stop(self.addresses[id])

    def notice(self, machine: Machine) -> None:
        """https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html"""
        identity = self.lab.identities[machine.address]
        assert isinstance(identity, EC2)
        identity.notice = {"action": "terminate", "time": "2017-09-18T08:22:00Z"}

    def there(self) -> int:
        """How many machines the cloud has."""
        return len(self.fake.instances())


def seed() -> Seed:
    """What AWS's images and firmware say."""
    unique = f"ec2{uuid.uuid4()!s:.33}"
    return Seed("datasource_list: [Ec2]\n", {"system-uuid": unique, "system-serial-number": unique})


def _move(instance: Any, address: str) -> dict[str, str]:
    """Gives an instance its address in the lab, for all purposes; returns it by what it replaces."""
    [nic] = instance.nics.values()
    old, nic.private_ip_address = nic.private_ip_address, address
    nic.private_ip_addresses[0]["PrivateIpAddress"] = address
    if nic.public_ip:
        nic.public_ip = address
    return {old: address}
