"""Where Azure's machines are made: subscription, region, network, capacity, quota, and what goes wrong there."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import re
from unittest.mock import AsyncMock

import pytest
from azure_fake import ADDRESSES, OTHER, SIZES, SUBSCRIPTION, Fault
from suite import CLUSTER, alive, run, subject, workers
from test_azure import (
    D2,
    D4,
    D4A,
    MACHINE,
    SCHEDULER,
    bodies,
    card,
    on_azure,
    properties,
    quick,  # noqa: F401
    refused,
    scheduler,
)

from dask_cloudvm import api, leftovers, places
from dask_cloudvm.clouds import azure as azure_module
from dask_cloudvm.clouds import azure_leftovers, azure_maker, azure_session
from dask_cloudvm.clouds.azure import Azure
from dask_cloudvm.clouds.base import RUNNING, VM
from dask_cloudvm.errors import AmbiguousName, CloudError, NameTaken

GROUP = "networkSecurityGroups.createOrUpdate"


# Subscription, region, zone


def test_the_subscription_of_the_option_of_the_environment_or_the_only_one(azure, monkeypatch, tmp_path):
    azure.subscriptions[OTHER] = "Production"
    message = refused("there are 2 subscriptions: Research")
    assert "set subscription_id or AZURE_SUBSCRIPTION_ID" in message
    (tmp_path / "azureProfile.json").write_text(
        "\ufeff" + json.dumps({"subscriptions": [{"id": SUBSCRIPTION, "isDefault": True}, {"id": OTHER}]})
    )
    for variable, value in (("AZURE_CONFIG_DIR", str(tmp_path)), ("AZURE_SUBSCRIPTION_ID", SUBSCRIPTION)):
        with monkeypatch.context() as patch:
            patch.setenv(variable, value)
            run(on_azure().cloud.delete([scheduler()]))
    run(on_azure().cloud.delete([scheduler(subscription_id=SUBSCRIPTION)]))
    assert {p["subscriptionId"] for p, _ in azure.sent()} == {SUBSCRIPTION}
    refused("change subscription_id", subscription_id="44444444-4444-4444-4444-444444444444")
    azure.subscriptions.clear()
    refused("log in to another tenant")


def test_the_region_is_that_of_the_group_where_none_is_given(azure):
    azure.network(location="westeurope")
    vm = scheduler(region=None, resource_group="my-group", vnet="my-vnet", security_group="my-nsg")
    assert bodies(azure)[0]["location"] == "westeurope"
    assert "/resourceGroups/my-group/" in vm.id and azure.count()["resourceGroups.createOrUpdate"] == 0
    refused("there is no resource group nonesuch", resource_group="nonesuch")


def test_a_region_as_the_portal_spells_it(azure):
    scheduler(region="East US")
    assert bodies(azure)[0]["location"] == "eastus"


def test_zones(azure):
    made = run(on_azure(zone=[1, "2"], worker_machine_type=D4A).cluster(2))
    assert [vm.zone for vm in made] == ["1"] * 3
    assert "no zone of 3 offers Standard_D4as_v5" in refused("change zone (1, 2 offer it)", zone=3, machine_type=D4A)
    refused("change zone (none offer it)", zone=1, region="northcentralus")


def test_sizes_that_are_not_there_or_not_for_this_subscription(azure):
    refused("region eastus has no VM size Standard_X1", machine_type="Standard_X1")
    place = {"type": "Location", "values": ["eastus"], "reasonCode": "NotAvailableForSubscription"}
    azure.restricted[D4] = [place]
    refused("Standard_D4s_v5 is not available to this subscription in eastus", machine_type=D4)
    zones = {"type": "Zone", "restrictionInfo": {"zones": ["1", "2"]}, "reasonCode": "NotAvailableForSubscription"}
    azure.restricted[D4] = [zones]
    refused("change zone (3 offer it)", machine_type=D4, zone=1)


def test_of_a_list_of_sizes_those_that_are_offered_are_tried(azure):
    azure.restricted[D4] = [{"type": "Location", "values": ["eastus"], "reasonCode": "NotAvailableForSubscription"}]
    it = on_azure(worker_machine_type=["Standard_X1", D4, D4A])
    made = run(it.cluster(2))
    assert len(made) == 3 and it.cloud.shortfall == ""
    sizes = [each["hardwareProfile"]["vmSize"] for each in properties(azure)]
    assert sizes == [D2, D4A, D4A]
    first, *others = run(on_azure(worker_machine_type=[D4, D4A]).cloud.facts(None)).notes
    assert "delete themselves" in first and others == [
        "Standard_D4s_v5 is not available to this subscription in eastus (NotAvailableForSubscription); "
        "the others in machine_type are used"
    ]
    assert others[0] in next(c.text for c in run(it.cloud.doctor()) if c.what == "machine types")
    refused("region eastus has no VM size Standard_X1", worker_machine_type=["Standard_X1", D4])
    assert run(on_azure(zone=3, machine_type=[D4A, D2]).cloud.facts(None)).types.keys() == {D2}


# Network


def test_a_group_a_network_and_a_security_group_are_made_once(azure):
    firewall = {"ports": [22, 8786], "cidr": ["10.1.2.3/8", "2001:db8::/32", "me"]}
    for cidr in (firewall["cidr"], ["me", "2001:db8::/32", "10.0.0.0/8"]):
        run(on_azure().cloud.delete([scheduler(firewall={**firewall, "cidr": cidr})]))
    [group] = azure.of("networkSecurityGroups")
    [network] = azure.of("virtualNetworks")
    assert azure.count()[GROUP] == azure.count()["virtualNetworks.createOrUpdate"] == 1
    assert azure.count()["resourceGroups.createOrUpdate"] == 1
    assert re.fullmatch("dask-cloudvm-eastus-[0-9a-f]{12}", group["name"])
    four, six = (rule["properties"] for rule in group["properties"]["securityRules"])
    assert four["sourceAddressPrefixes"] == ["10.0.0.0/8", "203.0.113.7/32"]
    assert six["sourceAddressPrefixes"] == ["2001:db8::/32"] and six["destinationPortRanges"] == ["22", "8786"]
    [subnet] = network["properties"]["subnets"]
    assert subnet["properties"]["addressPrefix"].endswith("/16")
    assert subnet["properties"]["defaultOutboundAccess"] is False
    assert all(each["tags"] == {"dask-cloudvm-network": "shared"} for each in (group, network))


def test_another_firewall_has_another_group(azure):
    for settings in ({}, {"firewall": {"ports": [8786], "cidr": "0.0.0.0/0"}}, {"scheduler_options": {"port": 9000}}):
        run(on_azure().cloud.delete([scheduler(**settings)]))
    groups = azure.of("networkSecurityGroups")
    assert len({group["name"] for group in groups}) == 3
    assert groups[2]["properties"]["securityRules"][0]["properties"]["destinationPortRanges"] == ["8787", "9000"]


def test_launchers_at_once_share_what_they_make(azure):
    azure.takes = 0.2

    async def both():
        made = (on_azure().create("scheduler", [f"{CLUSTER}{i}-scheduler"]) for i in range(4))
        return await asyncio.gather(*made)

    assert len({vm.id for [vm] in run(both())}) == 4
    assert len(azure.of("networkSecurityGroups")) == len(azure.of("virtualNetworks")) == 1
    assert len(azure.of("userAssignedIdentities")) == len(azure.assigned) == 1


def test_launchers_at_once_do_not_cancel_each_other_in_turns(azure):
    """The later change cancels the earlier one, whose launcher takes what the other makes."""
    scheduler()
    azure.takes = 0.8
    azure.calls.clear()

    async def both():
        made = (on_azure(firewall={"ports": [22]}).create("scheduler", [f"{CLUSTER}{i}-scheduler"]) for i in range(3))
        return await asyncio.gather(*made)

    assert len(run(both())) == 3
    assert 2 <= azure.count()[GROUP] <= 3 and "canceled" in str(azure.operations)


def test_a_change_that_was_canceled_for_another_one_is_made_again_where_that_failed(azure, monkeypatch):
    said = [{"code": "CanceledAndSupersededDueToAnotherOperation", "message": "Operation was canceled and superseded."}]
    canceled = {"status": "Canceled", "error": {"code": "Canceled", "message": "it was canceled", "details": said}}
    real, answers = azure._on_operations_get, [canceled]

    def get(p):
        for each in azure.of("networkSecurityGroups"):
            each["properties"]["provisioningState"] = "Failed" if answers else "Succeeded"
        return answers.pop() if answers else real(p)

    monkeypatch.setattr(azure, "_on_operations_get", get, raising=False)
    scheduler()
    assert azure.count()[GROUP] == 2 and len(azure.there()) == 1


def test_a_role_that_not_all_of_azure_knows_yet_is_waited_for(azure, monkeypatch):
    azure.propagation = 3
    scheduler()
    assert azure.count()["roleAssignments.create"] == 4 and len(azure.assigned) == 1
    monkeypatch.setattr(azure_module, "NEWS", 0.1)
    azure.propagation = 10**6
    refused("RoleDefinitionDoesNotExist", region="westeurope")


@pytest.mark.parametrize("by_id", [False, True])
def test_a_network_of_ones_own(azure, by_id):
    azure.network("my-group", subnets=("default", "second"))
    azure.network("other-group", subnets=("default", "second"))
    [vnet] = [each["id"] for each in azure.of("virtualNetworks") if "/other-group/" in each["id"]]
    nsg = vnet.replace("virtualNetworks/my-vnet", "networkSecurityGroups/my-nsg")
    settings = {"vnet": vnet, "security_group": nsg} if by_id else {"vnet": "my-vnet", "security_group": "my-nsg"}
    inside = f"/{'other-group' if by_id else 'my-group'}/providers/Microsoft.Network"
    for subnet, name in ((None, "default"), ("second", "second")):
        azure.calls.clear()
        run(on_azure().cloud.delete(run(on_azure(resource_group="my-group", subnet=subnet, **settings).cluster(1))))
        for body in bodies(azure):
            address = card(body)["ipConfigurations"][0]["properties"]
            assert address["subnet"]["id"].endswith(f"{inside}/virtualNetworks/my-vnet/subnets/{name}")
            assert card(body)["networkSecurityGroup"]["id"].endswith(f"{inside}/networkSecurityGroups/my-nsg")
        assert azure.writes()[0] == MACHINE
    azure.calls.clear()
    scheduler(resource_group="my-group", subnet=f"{vnet}/subnets/second", security_group="my-nsg")
    assert card(bodies(azure)[0])["ipConfigurations"][0]["properties"]["subnet"]["id"] == f"{vnet}/subnets/second"


def test_networks_that_cannot_be(azure):
    azure.network("my-group")
    azure.network("far-group", location="westeurope")
    far = next(each["id"] for each in azure.of("virtualNetworks") if "/far-group/" in each["id"])
    own = {"resource_group": "my-group"}
    refused("there is no /subscriptions/", **own, vnet="nonesuch")
    refused("change subnet: default", **own, vnet="my-vnet", subnet="nonesuch")
    refused("give its full resource id, or vnet", **own, subnet="default")
    refused("is in westeurope, the machines will be in eastus", **own, vnet=far)
    refused("change security_group", **own, security_group="nonesuch")
    assert azure.writes() == []


def test_how_machines_reach_the_internet(azure):
    """Azure's own implicit way is retired: without an address, a gateway or a network of one's own there is none."""
    azure.network("my-group")
    own = {"resource_group": "my-group", "vnet": "my-vnet", "security_group": "my-nsg"}
    public = {"firewall": {"cidr": "10.0.0.0/8"}}
    for settings, addresses in (
        ({}, [True, True]),
        ({"outbound_access": "nat_gateway"}, [True, False]),
        ({"outbound_access": "nat_gateway", "public_ingress": False, **public}, [False, False]),
        (own, [True, False]),
        ({**own, "public_ingress": False}, [False, False]),
        ({**own, "outbound_access": "public_ip"}, [True, True]),
    ):
        azure.calls.clear()
        made = run(on_azure(**settings).cluster(1))
        assert ["publicIPAddressConfiguration" in str(body) for body in bodies(azure)] == addresses, settings
        assert [bool(vm.public_ip) for vm in made] == addresses
        run(on_azure().cloud.delete(made))
    assert {each["name"] for each in azure.of("natGateways")} == {"dask-cloudvm-eastus-nat"}
    [network] = [each for each in azure.of("virtualNetworks") if each["name"].endswith("-nat")]
    assert network["properties"]["subnets"][0]["properties"]["natGateway"]["id"].endswith("/dask-cloudvm-eastus-nat")


def test_workers_that_another_launcher_adds_come_to_where_the_scheduler_is(azure):
    azure.network("my-group", location="westeurope")
    vm = scheduler(region=None, resource_group="my-group", vnet="my-vnet", security_group="my-nsg")
    azure.me = "198.51.100.1"  # its own group would be another
    azure.calls.clear()
    run(on_azure().create("worker", workers(1), vm))
    [body] = bodies(azure)
    assert azure.writes() == [MACHINE] and body["location"] == "westeurope"
    assert card(body)["networkSecurityGroup"]["id"].endswith("/my-nsg")
    assert azure.sent()[0][0]["resourceGroupName"] == "my-group"


def test_leftovers_are_what_nobody_uses(azure, monkeypatch):
    monkeypatch.setattr(leftovers, "GRACE", float("-inf"))
    azure.network("my-group")
    made = run(on_azure(outbound_access="nat_gateway").cluster(1))
    assert run(leftovers.find("azure", network=True)).popitem()[1] == []
    run(on_azure().cloud.delete(made))
    [(cloud, found)] = run(leftovers.find("azure", network=True)).items()
    assert [each.it.kind for each in found] == ["security group", "virtual network", "NAT gateway", "public address"]
    assert all(each.it.created > 1.7e9 for each in found)
    assert run(leftovers.remove(cloud, found)) == []
    assert {each["name"] for kind in ("virtualNetworks", "networkSecurityGroups") for each in azure.of(kind)} == {
        "my-vnet",
        "my-nsg",
    }
    assert azure.of("natGateways") == azure.of("publicIPAddresses") == []


def test_a_part_that_is_in_use_after_all_stays(azure, monkeypatch):
    monkeypatch.setattr(azure_leftovers, "AGAIN", (0.0, 0.01))
    made = run(on_azure(outbound_access="nat_gateway").cluster(1))
    parts = run(on_azure().cloud.parts())
    assert {part.kind for part in parts} >= {"NAT gateway", "public address", "security group", "virtual network"}
    for part in parts:
        assert part.used and not run(on_azure().cloud.remove(part))
        assert not run(on_azure().cloud.remove(dataclasses.replace(part, used=False)))
    run(on_azure().cloud.delete(made))


def test_an_address_whose_gateway_was_just_removed_is_tried_again(azure, monkeypatch):
    monkeypatch.setattr(azure_leftovers, "AGAIN", (0.0, 0.01, 0.01))
    run(on_azure().cloud.delete(run(on_azure(outbound_access="nat_gateway").cluster(1))))
    azure.faults = [Fault("publicIPAddresses.delete", "in use", "PublicIPAddressCannotBeDeleted", 400, times=2)]
    assert all(run(on_azure().cloud.remove(part)) for part in run(on_azure().cloud.parts()))
    assert azure.of("publicIPAddresses") == []


# Capacity and quota


def capacity(azure, **settings):
    it = on_azure(**settings)
    made = run(it.cluster(10))
    return it, made[1:]


def asked(azure):
    """(zone, size) -> how many machines were asked for."""
    found: dict[tuple[str | None, str], int] = {}
    for body in bodies(azure)[1:]:
        key = (next(iter(body.get("zones", ())), None), body["properties"]["hardwareProfile"]["vmSize"])
        found[key] = found.get(key, 0) + 1
    return found


def test_what_one_place_leaves_over_the_next_one_takes(azure):
    azure.capacity = {(D4, "1", False): 4, (D4, "2", False): 0, (D4A, "1", False): 5}
    it, made = capacity(azure, zone=[1, 2], worker_machine_type=[D4, D4A])
    assert [vm.name for vm in made] == workers(10) and it.cloud.shortfall == ""
    assert asked(azure) == {("1", D4): 10, ("2", D4): 6, ("1", D4A): 6, ("2", D4A): 1}
    assert len(azure.there()) == 11 and len(azure.leftovers()) == 11 * 4


def test_failures_take_time_and_what_failed_is_removed(azure):
    vm = scheduler()
    azure.takes = 0.3
    azure.capacity = {(D4, None, False): 1}
    azure.calls.clear()
    made = run(on_azure(worker_machine_type=[D4, D4A]).create("worker", workers(3), vm))
    assert [vm.state for vm in made] == ["running"] * 3 and len(azure.leftovers()) == 4 * 4
    assert azure.count()["operations.get"] == 2  # only those that failed are asked why
    assert azure.writes() == [MACHINE] * 3 + ["virtualMachines.delete"] * 2 + [MACHINE] * 2


def test_a_shortfall_is_no_error_and_is_explained(azure):
    azure.capacity = {(D4, "1", False): 3}
    it, made = capacity(azure, zone=1, worker_machine_type=D4)
    assert len(made) == 3 and len(azure.leftovers()) == 4 * 4
    assert "Standard_D4s_v5 in eastus zone 1: Allocation failed" in it.cloud.shortfall
    assert "ZonalAllocationFailed" in it.cloud.shortfall and "give more entries in zone" in it.cloud.shortfall
    azure.capacity = {}
    vm = next(vm for vm in run(it.cloud.list(CLUSTER)) if vm.role == "scheduler")
    assert len(run(it.create("worker", workers(7, first=20), vm))) == 7 and it.cloud.shortfall == ""


def test_quota_in_azures_words(azure):
    azure.quota["standardDSv5Family"] = 10
    it, made = capacity(azure, machine_type=D2)
    assert len(made) == 4
    assert "exceeding approved standardDSv5Family Cores quota" in it.cloud.shortfall
    assert "Current Limit: 10" in it.cloud.shortfall and "page Quotas" in it.cloud.shortfall
    assert "https" not in it.cloud.shortfall


def test_another_family_has_a_quota_of_its_own(azure):
    azure.quota["standardDSv5Family"] = 2 + 4 * 4
    it, made = capacity(azure, worker_machine_type=[D4, D4A])
    assert len(made) == 10 and it.cloud.shortfall == ""


@pytest.mark.parametrize("name", ADDRESSES)
def test_too_few_public_addresses_name_the_other_way(azure, name):
    azure.quota[name] = 3
    it, made = capacity(azure)
    assert len(made) == 2 and "set outbound_access: nat_gateway" in it.cloud.shortfall


def test_spot_is_for_workers_only(azure):
    it, _ = capacity(azure, spot=True, max_price=0.25)
    first, second = properties(azure)[:2]
    assert "priority" not in first and second["priority"] == "Spot" and second["evictionPolicy"] == "Delete"
    assert second["billingProfile"] == {"maxPrice": 0.25}
    assert all(vm.spot == (vm.role == "worker") for vm in run(it.cloud.list(CLUSTER)))


def test_spot_without_a_highest_price_costs_at_most_what_on_demand_does(azure):
    capacity(azure, spot=True)
    assert properties(azure)[1]["billingProfile"] == {"maxPrice": -1}


def test_spot_with_fallback_takes_on_demand_where_there_is_none(azure):
    azure.capacity = {(D2, None, True): 4}
    it, made = capacity(azure, spot="fallback")
    assert len(made) == 10 and sum(vm.spot for vm in run(it.cloud.list(CLUSTER))) == 4
    assert "evictionPolicy" not in properties(azure)[-1] and "billingProfile" not in properties(azure)[-1]


def test_a_spot_price_above_the_highest_is_like_no_capacity(azure):
    azure.price = 0.5
    it, made = capacity(azure, spot=True, max_price=0.25)
    assert made == [] and "lower than the current spot price '0.5 USD'" in it.cloud.shortfall
    assert it.cloud.shortfall.endswith("raise max_price, or use spot: fallback")
    run(it.cloud.delete(run(it.cloud.list())))
    it, made = capacity(azure, spot="fallback", max_price=0.25)
    assert len(made) == 10 and not any(vm.spot for vm in run(it.cloud.list(CLUSTER)))
    run(it.cloud.delete(run(it.cloud.list())))
    assert len(capacity(azure, spot=True, max_price=0.5)[1]) == 10


@pytest.mark.parametrize("code", ["AzureSpotFeatureNotEnabledForSubscription", "AzureSpotIsNotSupportedForThisVMSize"])
def test_no_spot_for_a_size_or_a_subscription_is_like_no_capacity(azure, code):
    vm = scheduler()
    azure.faults = [Fault(MACHINE, "no", code, 409, times=3)]
    it = on_azure(spot="fallback")
    made = run(it.create("worker", workers(3), vm))
    assert len(made) == 3 and it.cloud.shortfall == "" and not any(vm.spot for vm in made)


def test_no_capacity_for_the_scheduler_is_said(azure):
    azure.capacity = {(D2, None, False): 0}
    it = on_azure()
    assert run(it.create("scheduler", [SCHEDULER])) == []
    assert "AllocationFailed" in it.cloud.shortfall and azure.leftovers() == []


# What goes wrong


def test_reasons_of_operations_reach_the_user(azure):
    for code, message, hint in (
        ("OSProvisioningTimedOut", "OS Provisioning for VM 'x' did not finish in the allotted time.", "cloud-init"),
        ("LinkedAuthorizationFailed",
         "It may not perform action 'Microsoft.Network/x/join/action' on the linked scope(s) '/s/g'",
         "grant Microsoft.Network/x/join/action"),
    ):  # fmt: skip
        azure.faults = [Fault(MACHINE, message, code, later=True)]
        said = refused(message.rstrip("."))
        assert code in said and hint in said and azure.leftovers() == []


def test_policies_locks_and_terms_are_named(azure):
    for code, message, hint in (
        ("RequestDisallowedByPolicy", "Resource 'x' was disallowed by policy 'No public IP'.", "an Azure policy"),
        ("ScopeLocked", "The scope cannot perform write operation because it is locked.", "remove the lock"),
        ("MarketplacePurchaseEligibilityFailed", "Legal terms have not been accepted.", "az vm image terms accept"),
        ("MissingSubscriptionRegistration", "The subscription is not registered to use namespace 'Microsoft.Compute'.",
         "az provider register --namespace Microsoft.Compute"),
        ("InvalidParameter", "The value of parameter adminUsername is invalid.", "change admin_username"),
    ):  # fmt: skip
        azure.faults = [Fault(MACHINE, message, code, 403, times=1)]
        assert hint in refused(message.rstrip("."))


def test_what_is_wrong_for_one_is_not_asked_for_all(azure):
    vm = scheduler()
    azure.calls.clear()
    azure.faults = [Fault(MACHINE, "no", "RequestDisallowedByPolicy", 403, times=1000)]
    with pytest.raises(CloudError, match="RequestDisallowedByPolicy"):
        run(on_azure().create("worker", workers(200), vm))
    assert azure.count()[MACHINE] <= 2 * azure_session.CONCURRENT


def test_throttling_waits_as_long_as_it_is_told(azure, monkeypatch):
    waits = []
    from azure.core.pipeline.transport import RequestsTransport

    monkeypatch.setattr(RequestsTransport, "sleep", lambda self, seconds: waits.append(seconds))
    azure.faults = [
        Fault(MACHINE, "slow", "TooManyRequests", 429, retry_after="17"),
        Fault("virtualMachines.list", "slow", "OperationNotAllowed", 429, retry_after="3"),
        Fault("skus.list", "oh", "InternalServerError", 503),
    ]
    scheduler()
    assert 17 in waits and 3 in waits and len(azure.there()) == 1
    azure.faults = [Fault("virtualMachines.delete", "slow", "TooManyRequests", 429, retry_after="5", times=3)]
    run(on_azure().cloud.delete(run(on_azure().cloud.list())))
    assert waits.count(5) == 3 and azure.there() == {}


def test_throttling_for_longer_than_anybody_waits_is_said(azure):
    azure.faults = [Fault("skus.list", "slow", "TooManyRequests", 429, retry_after="1800")]
    assert "wait a minute" in refused("slow; it may be tried again after 1800 seconds")
    assert azure.count()["skus.list"] == 1


def test_operations_are_looked_at_as_seldom_as_azure_asks_for_up_to_a_limit(azure, monkeypatch):
    monkeypatch.setattr(azure_session, "LOOK", (0.01, 0.4))
    azure.takes = 1.0
    scheduler()
    operations = len([name for name in azure.writes() if name in (GROUP, "virtualNetworks.createOrUpdate")])
    assert operations == 2 and azure.count()["operations.get"] <= 5 * operations


def test_throttling_for_ever_is_said(azure, monkeypatch):
    from azure.core.pipeline.transport import RequestsTransport

    monkeypatch.setattr(RequestsTransport, "sleep", lambda self, seconds: None)
    azure.faults = [Fault(MACHINE, "The request is being throttled.", "TooManyRequests", 429, times=99)]
    refused("other programs in this subscription may be using up the limit")


def test_an_answer_that_is_lost_makes_no_second_machine(azure, monkeypatch):
    """The call is repeated by azure-core, and Azure says that there is such a machine."""
    it = on_azure()
    real, lost = azure._act, []

    def act(name, *rest):
        found = real(name, *rest)
        if name == MACHINE and not lost:
            lost.append(name)
            from azure_contract import Refused

            raise Refused(503, "ServiceUnavailable", "lost")
        return found

    monkeypatch.setattr(azure, "_act", act)
    [vm] = run(it.create("scheduler", [SCHEDULER]))
    assert vm.alive and len(azure.there()) == 1 and azure.count()[MACHINE] == 2


def test_a_machine_that_is_made_in_spite_of_errors_is_removed(azure, monkeypatch):
    vm, [bad] = scheduler(), workers(1)
    real, seen = azure._act, []

    def act(name, p, *rest):
        if name == MACHINE and p["vmName"] == bad:
            if not seen:
                real(name, p, *rest)
            seen.append(name)
            from azure_contract import Refused

            raise Refused(500, "InternalServerError", "lost")
        return real(name, p, *rest)

    monkeypatch.setattr(azure, "_act", act)
    with pytest.raises(CloudError, match="lost"):
        run(on_azure().create("worker", [bad], vm))
    assert len(seen) > 1 and set(azure.there()) == {SCHEDULER}


def test_a_machine_of_another_launcher_is_not_removed_for_an_error(azure):
    vm = scheduler()
    run(on_azure().create("worker", workers(1), vm))
    azure.faults = [Fault(MACHINE, "lost", "InternalServerError", 500, times=99)]
    with pytest.raises(CloudError, match="lost"):
        run(on_azure().create("worker", workers(1), vm))
    assert set(azure.there()) == {SCHEDULER, *workers(1)}


@pytest.mark.parametrize("later", [True, False])
@pytest.mark.parametrize(
    "code", ["InternalExecutionError", "NetworkingInternalOperationError", "OSProvisioningTimedOut"]
)
def test_the_bad_luck_of_one_machine_does_not_stop_the_others(azure, code, later):
    vm = scheduler()
    azure.takes = 0.2
    azure.faults = [Fault(MACHINE, "no luck", code, 409, later=later, times=2)]
    it = on_azure()
    made = run(it.create("worker", workers(5), vm))
    assert len(made) == 5 and it.cloud.shortfall == "" and azure.count()[MACHINE] == 1 + 5 + 2
    assert len(azure.leftovers()) == 6 * 4


def test_the_same_bad_luck_again_and_again_is_said(azure):
    vm = scheduler()
    azure.faults = [Fault(MACHINE, "no luck", "InternalExecutionError", 409, later=True, times=99)]
    with pytest.raises(CloudError, match="no luck"):
        run(on_azure().create("worker", workers(2), vm))
    assert azure.count()[MACHINE] == 1 + 2 * 2 and set(azure.there()) == {SCHEDULER}


def test_a_network_card_that_is_still_kept_for_the_failed_machine_is_waited_for(azure):
    said = "Nic(s) in request is reserved for another Virtual Machine for 180 seconds."
    azure.faults = [Fault(MACHINE, said, "NicReservedForAnotherVm", 409, times=3)]
    assert scheduler().alive and azure.count()[MACHINE] == 4


def test_the_same_request_makes_the_same_machines(azure):
    it = on_azure()

    async def twice():
        facts = await it.cloud.facts(None)
        request = it.wanted(facts, "scheduler", [SCHEDULER])[-1]
        for each in it.wanted(facts, "scheduler", [SCHEDULER])[:-1]:
            await it.cloud.create(each)
        return await it.cloud.create(request), await it.cloud.create(request)

    [one], [two] = run(twice())
    assert one.id == two.id and len(azure.there()) == 1


def test_a_name_that_another_launcher_has_just_taken(azure):
    scheduler()
    with pytest.raises(NameTaken):
        scheduler()
    assert len(azure.there()) == 1


def test_a_cluster_of_the_same_name_waits_for_the_end_of_the_earlier_one(azure):
    one = scheduler()
    azure.takes = 1.5
    run(on_azure().cloud.delete([one]))
    two = scheduler()
    assert two.alive and len(azure.leftovers()) == 4 and azure.count()[MACHINE] > 2


def test_machines_that_were_switched_off_count_as_ended_and_make_room(azure):
    one = scheduler()
    azure.resources[one.id.lower()]["properties"]["_power"] = "stopped"
    [again] = run(on_azure().cloud.list(CLUSTER))
    assert not again.alive
    two = scheduler()
    assert two.alive and len(azure.leftovers()) == 4


def test_machines_that_are_gone_already(azure):
    it = on_azure()
    made = run(it.cluster(2))
    stranger = dataclasses.replace(made[0], id=made[0].id.replace("suite", "other"))
    nowhere = dataclasses.replace(made[0], id=made[0].id.replace("dask-cloudvm-eastus", "nonesuch"))
    run(it.cloud.delete([stranger, nowhere, made[1]]))
    assert alive(run(it.cloud.list(CLUSTER))) == {made[0].name, made[2].name}


def test_a_delete_that_fails_is_said_and_the_others_are_done(azure):
    it = on_azure()
    made = run(it.cluster(3))
    azure.faults = [Fault("virtualMachines.delete", "The scope is locked.", "ScopeLocked", 409)]
    with pytest.raises(CloudError, match="remove the lock"):
        run(it.cloud.delete(made))
    assert len(azure.there()) == 1
    run(it.cloud.delete(made))
    assert azure.leftovers() == []


def test_deleted_machines_count_as_ended_at_once(azure):
    it = on_azure()
    made = run(it.cluster(1))
    azure.takes = 5
    run(it.cloud.delete(made))
    assert alive(run(it.cloud.list(CLUSTER))) == set() == alive(run(on_azure().cloud.list(CLUSTER)))


def test_machines_that_do_not_become_ready(azure, monkeypatch):
    monkeypatch.setattr(azure_maker, "LIMIT", 0.3)
    vm = scheduler()
    azure.takes = 60
    with pytest.raises(CloudError, match=r"it is not ready after 0\.3 seconds"):
        run(on_azure().create("worker", workers(2), vm))
    azure.takes = 0
    assert alive(run(on_azure().cloud.list())) == {SCHEDULER}


def test_the_console_of_a_machine(azure):
    vm = scheduler()
    it = on_azure()
    azure.consoles[SCHEDULER] = "[  OK  ] Started Dask"
    assert "Started Dask" in run(it.cloud.console(vm))
    azure.faults = [Fault("virtualMachines.retrieveBootDiagnosticsData", "Boot diagnostics is not enabled", "X", 409)]
    assert run(it.cloud.console(vm)).startswith("(cannot read the log: Boot diagnostics is not enabled")
    run(it.cloud.delete([vm]))
    assert run(it.cloud.console(vm)) == ""


# Credentials


def test_no_credentials(azure, monkeypatch):
    monkeypatch.setenv("AZURE_TOKEN_CREDENTIALS", "EnvironmentCredential")
    refused("az login")


def test_nothing_that_could_log_in_is_one_message(azure, monkeypatch, tmp_path, capfd):
    for variable in ("AZURE_TOKEN_CREDENTIALS", "IDENTITY_ENDPOINT", "IDENTITY_HEADER"):
        monkeypatch.delenv(variable)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(azure_session, "READ", 0.2)
    message = refused("cannot find the subscription: there are no credentials; log in by az login")
    assert "broker" not in message and capfd.readouterr().err == ""


def test_azure_identity_that_is_not_installed(azure, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "azure.identity", None)
    refused("pip install 'dask-cloudvm[azure]'")


def test_a_token_that_is_refused(azure):
    azure.faults = [Fault("subscriptions.list", "The access token has expired.", "ExpiredAuthenticationToken", 401)]
    refused("log in again by az login")


def test_a_host_that_does_not_answer(azure, monkeypatch):
    monkeypatch.setenv(azure_session.OVERRIDE, "http://127.0.0.1:9")
    refused("no answer from 127.0.0.1:9")


def test_a_token_goes_nowhere_in_clear(azure, monkeypatch):
    monkeypatch.setenv(azure_session.OVERRIDE, "http://management.example.com")
    refused("no answer from management.example.com (ServiceRequestError)")
    assert azure.calls == []


def test_a_page_on_another_host_is_not_asked_for(azure, monkeypatch):
    real = azure._on_subscriptions_list
    monkeypatch.setattr(
        azure, "_on_subscriptions_list", lambda p: {**real(p), "nextLink": "https://evil.example.com/x"}, raising=False
    )
    refused("Azure points to another host (evil.example.com)")


@pytest.mark.parametrize(
    ("link", "same"),
    [
        ("https://management.azure.com/x", True),
        ("https://management.azure.com:443/x", True),
        ("HTTPS://Management.Azure.com/x", True),
        ("http://management.azure.com/x", False),
        ("http://management.azure.com:443/x", False),
        ("https://management.azure.com:8443/x", False),
        ("https://management.azure.com:x/x", False),
        ("https://management.azure.com.evil.example.com/x", False),
        ("https://management.azure.com@evil.example.com/x", False),
        ("https://evil.example.com/https://management.azure.com/x", False),
    ],
)
def test_an_address_of_azures_own_counts_however_it_is_written(link, same):
    assert (azure_session.origin(link) == azure_session.origin(azure_session.PUBLIC)) == same


def test_other_clouds_of_azure(monkeypatch):
    monkeypatch.delenv(azure_session.OVERRIDE, raising=False)
    monkeypatch.setenv("AZURE_AUTHORITY_HOST", "https://login.microsoftonline.us")
    assert azure_session.Session(None).endpoint == "https://management.usgovcloudapi.net"
    monkeypatch.delenv("AZURE_AUTHORITY_HOST")
    assert azure_session.Session(None).endpoint == "https://management.azure.com"


def test_whether_this_computer_has_azure_credentials(tmp_path, monkeypatch):
    for name in azure_session.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AZURE_CONFIG_DIR", str(tmp_path))
    monkeypatch.setattr(azure_session, "CHASSIS", (tmp_path / "chassis", "7783"))
    assert not azure_session.looks_configured()
    (tmp_path / "azureProfile.json").write_text('{"subscriptions": []}')
    assert not azure_session.looks_configured()
    (tmp_path / "chassis").write_text("7783\n")
    assert azure_session.looks_configured()
    (tmp_path / "chassis").unlink()
    (tmp_path / "azureProfile.json").write_text('{"subscriptions": [{"id": "x"}]}')
    assert azure_session.looks_configured()


def test_a_user_who_sees_one_group_only(azure):
    azure.network("my-group")
    own = {"resource_group": "my-group", "vnet": "my-vnet", "security_group": "my-nsg"}
    run(on_azure(**own).cluster(1))
    message = "does not have authorization to perform action 'Microsoft.Compute/virtualMachines/read' over scope '/s'"
    azure.faults = [Fault("virtualMachines.listAll", message, "AuthorizationFailed", 403, times=9)]
    assert len(run(on_azure(**own).cloud.list(CLUSTER))) == 2
    with pytest.raises(CloudError, match=r"grant Microsoft\.Compute/virtualMachines/read on /s"):
        run(on_azure().cloud.list(CLUSTER))


def test_machines_whose_addresses_may_not_be_seen_can_be_removed(azure):
    it = on_azure()
    run(it.cluster(1))
    for kind in ("networkInterfaces", "publicIPAddresses"):
        azure.faults = [Fault(f"{kind}.listAll", f"perform action '{kind}/read'", "AuthorizationFailed", 403, times=99)]
        found = run(on_azure().cloud.list(CLUSTER))
        assert alive(found) == {SCHEDULER, *workers(1)} and found[0].private_ip == ""
        with pytest.raises(CloudError, match=f"grant {kind}/read"):
            run(on_azure().cloud.locate(found[0]))
    run(it.cloud.delete(found))
    assert azure.leftovers() == []


def test_the_sizes_of_the_fake_have_that_of_the_default(azure):
    assert subject("azure", region="eastus").options["machine_type"] in SIZES


def test_a_name_in_two_subscriptions_asks_which(azure, monkeypatch):
    places.remember("azure", OTHER)
    there = [VM("1", "both-scheduler", "both", "scheduler", RUNNING, "azure", "10.0.0.4")]
    monkeypatch.setattr(Azure, "list", AsyncMock(return_value=there))
    asked = rf"'both' on subscription_id {OTHER} and subscription_id {SUBSCRIPTION}; choose one by \$"
    with pytest.raises(AmbiguousName, match=asked + "DASK_CLOUDPROVIDER__AZURE__SUBSCRIPTION_ID"):
        run(api.find("both"))
    monkeypatch.setenv("DASK_CLOUDPROVIDER__AZURE__SUBSCRIPTION_ID", OTHER)
    home, found = run(api.find("both"))
    assert run(home.home()) == OTHER and found == there
