"""Azure whose machines boot: cloud-init's own datasource reads the custom data of each machine where Azure puts it.

That is a file on a disk that Azure attaches; the rest comes from the metadata service and from the wire server. A
machine that ends deletes itself: it calls the fake at the lab's gateway.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from azure_fake import TOKEN, Fake

from tests.lab.consoles import Consoles
from tests.lab.lab import Lab
from tests.lab.machine import Machine, Seed
from tests.lab.metadata import Azure

ASSET = "7783-7084-3265-9085-8269-3286-77"  # what Azure's firmware says of every machine
ENVIRONMENT = """\
<?xml version="1.0" encoding="utf-8"?>
<ns0:Environment xmlns:ns0="http://schemas.dmtf.org/ovf/environment/1"
 xmlns:ns1="http://schemas.microsoft.com/windowsazure">
  <ns1:ProvisioningSection>
    <ns1:Version>1.0</ns1:Version>
    <ns1:LinuxProvisioningConfigurationSet>
      <ns1:ConfigurationSetType>LinuxProvisioningConfiguration</ns1:ConfigurationSetType>
      <ns1:UserName>{user}</ns1:UserName>
      <ns1:DisableSshPasswordAuthentication>true</ns1:DisableSshPasswordAuthentication>
      <ns1:HostName>{host}</ns1:HostName>
      <ns1:CustomData>{data}</ns1:CustomData>
    </ns1:LinuxProvisioningConfigurationSet>
  </ns1:ProvisioningSection>
  <ns1:PlatformSettingsSection>
    <ns1:Version>1.0</ns1:Version>
    <ns1:PlatformSettings><ns1:ProvisionGuestAgent>false</ns1:ProvisionGuestAgent></ns1:PlatformSettings>
  </ns1:PlatformSettingsSection>
</ns0:Environment>
"""


class Site:
    """Lets a fake boot its machines in the lab."""

    def __init__(self, lab: Lab, fake: Fake, variables: Mapping[str, str], url: str) -> None:
        self.lab, self.fake = lab, fake
        trusted = {name: str(lab.certificate) for name in ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE")}
        endpoint = {"DASK_CLOUDVM_AZURE_ENDPOINT": f"https://{lab.space.gateway}"}
        self.variables = {**variables, **endpoint, **trusted}
        self.addresses: dict[str, str] = {}  # of machines, by name
        fake.on_run, fake.on_end, fake.consoles = self.run, self.end, Consoles(lab, self.addresses)
        lab.targets[lab.space.gateway] = url

    def run(self, body: Any, name: str) -> None:
        [machine] = [each for each in self.fake.of("virtualMachines") if each["name"] == name]
        address = self.addresses[name] = self.lab.address()
        self._move(machine["id"], address)
        profile = body["properties"]["osProfile"]
        user, host = profile["adminUsername"], profile["computerName"]
        seed = ENVIRONMENT.format(user=user, host=host, data=profile["customData"])
        firmware = {"chassis-asset-tag": ASSET, "system-uuid": str(uuid.uuid4())}
        files = {"/var/lib/cloud/seed/azure/ovf-env.xml": seed.encode()}
        identity = Azure(machine["id"], host, user, TOKEN)
        started = Seed("datasource_list: [Azure]\n", firmware, files)
        self.lab.start(address, started, identity, lambda: self.fake.ended(name))

    def _move(self, machine: str, address: str) -> None:
        """Gives a machine its address in the lab, for all purposes."""
        for resource in self.fake.resources.values():
            properties = resource["properties"]
            if properties.get("_with", [""])[0].lower() == machine.lower():
                for each in properties.get("ipConfigurations", ()):
                    each["properties"]["privateIPAddress"] = address
                if "ipAddress" in properties:
                    properties["ipAddress"] = address

    def end(self, name: str) -> None:
        self.lab.stop(self.addresses[name])

    def notice(self, machine: Machine) -> None:
        """https://learn.microsoft.com/azure/virtual-machines/linux/scheduled-events"""
        identity = self.lab.identities[machine.address]
        assert isinstance(identity, Azure)
        identity.preempted = True

    def there(self) -> int:
        """How many machines the cloud has, those that are off but still cost included."""
        return len(self.fake.of("virtualMachines"))
