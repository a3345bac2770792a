"""Compute Engine whose machines boot: cloud-init's own datasource reads the user-data of each launch from the metadata.

A machine that ends deletes itself: it calls the fake at the API's own name, with a token that its metadata give it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gcp_fake import PROJECT, Fake

from tests.lab.consoles import Consoles
from tests.lab.lab import Lab
from tests.lab.machine import Machine, Seed
from tests.lab.metadata import GCP


class Site:
    """Lets a fake boot its machines in the lab."""

    def __init__(self, lab: Lab, fake: Fake, variables: Mapping[str, str], url: str) -> None:
        self.lab, self.fake, self.variables = lab, fake, variables
        self.addresses: dict[str, str] = {}  # of instances, by name
        fake.on_run, fake.on_end, fake.consoles = self.run, self.end, Consoles(lab, self.addresses)
        lab.targets["compute.googleapis.com"] = url

    def run(self, body: Any, name: str) -> None:
        [instance] = [i for i in self.fake.instances.values() if i["name"] == name]
        address = self.addresses[name] = self.lab.address()
        [interface] = instance["networkInterfaces"]
        interface["networkIP"] = address
        for outside in interface.get("accessConfigs", ()):
            outside["natIP"] = address
        attributes = {item["key"]: item["value"] for item in instance["metadata"]["items"]}
        seed = Seed("datasource_list: [GCE]\n", {"system-product-name": "Google Compute Engine"})
        self.lab.start(address, seed, GCP(instance, attributes, PROJECT), lambda: self.fake.ended(name))

    def end(self, name: str) -> None:
        self.lab.stop(self.addresses[name])

    def notice(self, machine: Machine) -> None:
        """https://cloud.google.com/compute/docs/instances/spot#preemption-process"""
        identity = self.lab.identities[machine.address]
        assert isinstance(identity, GCP)
        identity.preempt()

    def there(self) -> int:
        """How many machines the cloud has, those that are off but still cost included."""
        return len(self.fake.instances)
