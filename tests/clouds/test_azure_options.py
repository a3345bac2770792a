"""Every option of cloudprovider.azure reaches the wire: the value in the table changes some call, or it says why.

A new option in the schema without a line here, or whose value changes nothing that is sent, makes this fail.
"""

from __future__ import annotations

import pytest
from azure_fake import SUBSCRIPTION, user_data
from shared_options import IN_USER_DATA, NOT_SENT
from suite import run, subject

from dask_cloudvm import options, schema

OWN = {"resource_group": "my-group", "vnet": "my-vnet", "security_group": "my-nsg"}
IMAGE = "me:mine:one:1.0.0"
PLAN = {"name": "paid", "publisher": "me", "product": "mine"}
KEY = "ssh-ed25519 AAAAC3Nza me@here"
EXTRA = {"properties": {"licenseType": "SLES_BYOS"}}
D4 = "Standard_D4s_v5"
# option -> a value that is not its default; what it must change in: scheduler, worker, both, shared; with which others
WIRE = {
    "subscription_id": (SUBSCRIPTION, "none"),
    "region": ("westeurope", "both"),
    "zone": (["2", 1], "both"),
    "resource_group": ("my-group", "both"),
    "machine_type": (D4, "both"),
    "scheduler_machine_type": (D4, "scheduler"),
    "worker_machine_type": ([D4, "Standard_D2s_v5"], "worker"),
    "image": (IMAGE, "both"),
    "scheduler_image": ({"publisher": "me", "offer": "mine", "sku": "one"}, "scheduler"),
    "worker_image": (IMAGE, "worker"),
    "marketplace_plan": (PLAN, "both"),
    "disk_size": (55, "both"),
    "scheduler_disk_size": (55, "scheduler"),
    "worker_disk_size": (55, "worker"),
    "disk_type": ("Premium_LRS", "both"),
    "vnet": ("my-vnet", "both", {"resource_group": "my-group"}),
    "subnet": ("second", "both", OWN),
    "security_group": ("my-nsg", "both", {"resource_group": "my-group"}),
    "public_ingress": (False, "scheduler", OWN),
    "outbound_access": ("public_ip", "worker", OWN),
    "identity": ("system", "both"),
    "admin_username": ("me", "both"),
    "ssh_public_key": (KEY, "both"),
    "instance_tags": ({"team": "x"}, "both"),
    "spot": (True, "worker"),
    "max_price": (0.5, "worker", {"spot": True}),
    "firewall": ({"ports": [22], "cidr": "10.0.0.0/8"}, "shared"),
    "extra_vm_options": (EXTRA, "both"),
    "scheduler_extra_vm_options": (EXTRA, "scheduler"),
    "worker_extra_vm_options": (EXTRA, "worker"),
    **IN_USER_DATA,
}


def sent(azure, **settings):
    """What the calls for a scheduler and a worker hold, user-data readable, without what differs each time."""
    azure.calls.clear()
    settings = {"ssh_public_key": "ssh-rsa AAAAB3Nza", **settings}
    settings |= {} if "location" in settings else {"region": settings.get("region", "eastus")}
    it = subject("azure", **settings)
    made = run(it.cluster(1))
    scheduler, worker = (_comparable(*call) for call in azure.sent())
    shared = [body["properties"]["securityRules"] for _, body in azure.sent("networkSecurityGroups.createOrUpdate")]
    run(it.cloud.delete(made))
    for part in run(it.cloud.parts()):
        run(it.cloud.remove(part))
    return {"shared": shared, "scheduler": scheduler, "worker": worker}


def _comparable(parameters, body):
    """Without digests, also that of the firewall, whose change another line is about."""
    text = user_data(body)
    system = {key: value for key, value in body["properties"]["osProfile"].items() if key != "customData"}
    tags = {k: v for k, v in body["tags"].items() if k not in ("dask-cloudvm-options", "dask-cloudvm-launcher")}
    whole = body["properties"]["networkProfile"]["networkInterfaceConfigurations"][0]
    card = whole["properties"]
    whole.pop("tags")  # the machine's
    (card["ipConfigurations"][0]["properties"].get("publicIPAddressConfiguration") or {}).pop("tags", None)
    group = card["networkSecurityGroup"]["id"]
    if "/dask-cloudvm-" in group.rpartition("networkSecurityGroups")[2]:
        card["networkSecurityGroup"] = {"id": "shared"}
    where = {key: value for key, value in parameters.items() if key != "base"}
    return [where, {**body, "tags": tags, "properties": {**body["properties"], "osProfile": system}}, text]


@pytest.fixture
def subscription(azure):
    """Things for options to name."""
    azure.network(subnets=("default", "second"))
    azure.images["me", "mine", "one", "1.0.0"] = (30, "x64", "V2")
    azure.images["me", "mine", "paid", "1.0.0"] = (30, "x64", "V2")
    azure.plans["me", "mine", "paid"] = PLAN
    return azure


def test_every_option_of_the_schema_is_in_the_table():
    assert {*WIRE, *NOT_SENT} == set(schema.options("azure"))
    assert not set(WIRE) & set(NOT_SENT)


@pytest.mark.parametrize("option", WIRE)
def test_an_option_reaches_the_wire(subscription, option):
    value, where, extra = (*WIRE[option], {})[:3]
    usual, got = sent(subscription, **extra), sent(subscription, **{**extra, option: value})
    changed = {label for label in ("scheduler", "worker") if got[label] != usual[label]}
    if where == "shared":
        changed = {"shared"} if got["shared"] != usual["shared"] else set()
    assert changed == {"both": {"scheduler", "worker"}, "none": set()}.get(where, {where})


def test_no_identity_can_be_said_as_text():
    assert options.resolve(cloud="azure", sets=["identity=none"]).values["identity"] == "none"
    assert options.resolve(cloud="azure", sets=["identity=null"]).values["identity"] is None


def test_the_nat_gateway_is_another_subnet(subscription):
    got = sent(subscription, outbound_access="nat_gateway")
    assert "dask-cloudvm-eastus-nat/subnets/machines" in str(got["worker"])
    assert "publicIPAddressConfiguration" not in str(got["worker"])


def test_dask_cloudproviders_own_spellings_are_the_same(subscription):
    old = {
        "location": "westeurope", "vm_size": D4, "scheduler_vm_size": "Standard_D2s_v5", "filesystem_size": 60,
        "vm_image": {"publisher": "me", "offer": "mine", "sku": "one"}, "extra_options": EXTRA, "tags": {"a": "b"},
    }  # fmt: skip
    new = {
        "region": "westeurope", "machine_type": D4, "scheduler_machine_type": "Standard_D2s_v5", "disk_size": 60,
        "image": {"publisher": "me", "offer": "mine", "sku": "one"}, "extra_vm_options": EXTRA,
        "instance_tags": {"a": "b"},
    }  # fmt: skip
    one, two = sent(subscription, **old), sent(subscription, **new)
    assert one == two


def test_all_of_dask_cloudproviders_keywords_at_once(subscription):
    """Its own signature, each with a value."""
    vnet = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/my-group/providers/Microsoft.Network/virtualNetworks/my-vnet"
    got = sent(
        subscription, location="eastus", resource_group="my-group", vnet="my-vnet", security_group="my-nsg",
        subnet=f"{vnet}/subnets/second", public_ingress=True, vm_size=D4, scheduler_vm_size="Standard_D2s_v5",
        vm_image={"version": "latest"},
        disk_size=60, bootstrap=True, auto_shutdown=True, docker_image="a/b", debug=True, marketplace_plan={},
        subscription_id=SUBSCRIPTION, extra_vm_options={"zones": ["1"]}
    )  # fmt: skip
    where, body, text = got["worker"]
    assert where["resourceGroupName"] == "my-group" and body["zones"] == ["1"] and "a/b" in text
    assert body["properties"]["storageProfile"]["osDisk"]["diskSizeGB"] == 60 and "plan" not in body
