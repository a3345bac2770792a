"""``policy azure`` is enough for the whole life of a cluster, and not more; ``doctor azure`` says what is missing."""

from __future__ import annotations

import json

import pytest
from azure_fake import ADDRESSES, SUBSCRIPTION, WHO, Fault
from click.testing import CliRunner
from suite import CLUSTER, run, subject, workers

from dask_cloudvm.cli import doctor, plan, policy
from dask_cloudvm.clouds import azure_policy
from dask_cloudvm.errors import CloudVMError

PARTS = azure_policy.policies(None)
ACTIONS = {name: set(part["Actions"]) for name, part in PARTS.items()}
LAUNCHER = ACTIONS["setup"] | ACTIONS["ongoing"] | ACTIONS["identity"]
DOCTORS = {
    "Microsoft.Authorization/roleDefinitions/read",
    "Microsoft.Compute/locations/usages/read",
    "Microsoft.Network/locations/usages/read",
    "Microsoft.Resources/subscriptions/providers/read",
}
ROLES = "Microsoft.Authorization/"


async def life(**settings):
    """Everything a launcher does in the life of a cluster."""
    settings = {"region": "eastus", "spot": True, **settings}
    it = subject("azure", **settings)
    assert await it.cloud.list(CLUSTER) == []
    scheduler, *_ = await it.cluster(2)
    scheduler = await it.cloud.locate(scheduler)
    await subject("azure", **settings).create("worker", workers(1, first=5), scheduler)
    console = await it.cloud.console(scheduler)
    assert not console.startswith("("), console
    await it.cloud.delete(await it.cloud.list(CLUSTER))


async def collect():
    it = subject("azure", region="eastus")
    for part in await it.cloud.parts():
        assert await it.cloud.remove(part)


def lives(azure):
    """With networks and images of one's own, too, machines that fail, and the removal of what clusters share."""
    id = azure.add("images", "mine", "my-group", storageProfile={"osDisk": {"osType": "Linux", "diskSizeGB": 30}})
    gallery = azure.add("galleries", "g/images/i", "my-group", osType="Linux")
    version = azure.add("galleries", "g/images/i/versions/1", "my-group")
    run(life())
    run(life(outbound_access="nat_gateway"))
    azure.capacity = {("Standard_D2s_v5", None, True): 0}
    run(life(spot="fallback"))
    for image in (id, version, gallery):
        run(life(resource_group="my-group", vnet="my-vnet", security_group="my-nsg", image=image))
    run(collect())


@pytest.fixture
def subscription(azure):
    azure.network()
    return azure


def test_the_roles_are_enough(subscription):
    subscription.permissions = LAUNCHER - DOCTORS
    lives(subscription)


def test_without_the_parts_of_the_first_cluster_later_ones_work(subscription):
    run(life())
    subscription.permissions = ACTIONS["ongoing"]
    run(life())
    with pytest.raises(CloudVMError, match=r"grant Microsoft\.Network/networkSecurityGroups/write"):
        run(life(firewall={"ports": [22]}))


def test_without_the_part_for_the_identity_clusters_work(subscription):
    subscription.permissions = ACTIONS["setup"] | ACTIONS["ongoing"]
    run(life())
    assert "roleAssignments.create" not in subscription.writes()


@pytest.mark.parametrize("kind", ["condition", "group"])
def test_who_may_grant_on_conditions_or_in_the_group_only_gets_clusters_without_an_identity(subscription, kind):
    """The role belongs to the subscription, so the owner of the group cannot make it."""
    run(life(identity="none"))
    if kind == "condition":
        subscription.conditional = {f"{ROLES}roleAssignments/write"}
    else:
        subscription.permissions = LAUNCHER - ACTIONS["identity"]
        subscription.in_group["dask-cloudvm-eastus"] = ACTIONS["identity"]
    subscription.calls.clear()
    run(life())
    assert not any("identity" in body for _, body in subscription.sent())
    assert not [name for name in subscription.writes() if name.startswith(("role", "userAssigned"))]


@pytest.mark.parametrize("step", ["roleDefinitions.createOrUpdate", "roleAssignments.create"])
@pytest.mark.parametrize("code", ["AuthorizationFailed", "RequestDisallowedByPolicy"])
def test_a_right_to_grant_that_turns_out_to_be_none_is_said_and_the_cluster_works(subscription, step, code):
    subscription.faults = [Fault(step, "no", code, 403, times=9)]
    with pytest.warns(UserWarning, match="Azure bills them until 'dask-cloudvm down': .*no"):
        run(life())
    assert subscription.count()[step] == 1 and subscription.assigned == []


@pytest.mark.parametrize("action", sorted(LAUNCHER))
def test_every_permission_is_needed(subscription, action):
    if action in ACTIONS["identity"] | {f"{ROLES}permissions/read"}:
        subscription.permissions = LAUNCHER - {action}
        run(life())
        assert not any("identity" in body for _, body in subscription.sent()), "machines are billed on"
        return
    if action in (f"{ROLES}roleAssignments/read", "Microsoft.ManagedIdentity/userAssignedIdentities/read"):
        run(life())
        subscription.permissions = LAUNCHER - ACTIONS["identity"]
        run(life())
        assert all("identity" in body for _, body in subscription.sent())
        subscription.permissions -= {action}
        run(life())
        assert not any("identity" in body for _, body in subscription.sent()[-4:]), "machines are billed on"
        return
    subscription.permissions = LAUNCHER - {action}
    if action in DOCTORS:
        assert not all(check.ok for check in run(subject("azure", region="eastus").cloud.doctor()))
        return
    with pytest.raises((CloudVMError, AssertionError)) as caught:
        lives(subscription)
    assert action in str(caught.value), str(caught.value)


def test_the_machines_role_is_what_their_script_needs(subscription):
    subscription.permissions = LAUNCHER
    run(life())
    [role] = subscription.roles.values()
    assert role["properties"]["permissions"][0]["actions"] == PARTS["machines"]["Actions"]
    assert role["properties"]["assignableScopes"] == [f"/subscriptions/{SUBSCRIPTION}"]


def cli(command, *arguments):
    done = CliRunner().invoke(command.command, list(arguments))
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


def test_the_verb_prints_roles_to_paste():
    assert json.loads(cli(policy, "azure").output) == PARTS
    role = json.loads(cli(policy, "azure", "--part", "machines").output)
    assert set(role) == {"Name", "IsCustom", "Description", "Actions", "NotActions", "AssignableScopes"}
    assert all(role["AssignableScopes"] for role in PARTS.values())
    assert "have the parts setup, ongoing" in cli(policy, "ec2", "--part", "identity").output


# doctor


def lines(*arguments):
    done = cli(doctor, "azure", "--set", "region=eastus", *(part for a in arguments for part in ("--set", a)))
    return done.exit_code, {line[6:].split("  ")[0].strip(): line for line in done.output.splitlines()}


def test_a_healthy_subscription(azure):
    code, found = lines("n_workers=10")
    assert code == 0, found
    assert list(found) == [
        "options", "credentials", "subscription", "providers", "place", "machine types", "image", "network",
        "permissions", "quota", "removal",
    ]  # fmt: skip
    assert all(line.startswith("ok") for line in found.values())
    assert WHO in found["credentials"]
    assert SUBSCRIPTION in found["subscription"] and "dask-cloudvm-eastus, to be made" in found["place"]
    assert "Standard_D2s_v5 (2 CPUs, 8 GiB, x64)" in found["machine types"]
    assert "22 of 350 left (cores), 22 of 350 left (standardDSv5Family)" in found["quota"]
    assert "11 of 1000 left (IPv4StandardSkuPublicIpAddresses)" in found["quota"]
    assert "StandardSkuPublicIpAddresses" not in found["quota"].replace("IPv4StandardSku", "")
    assert "machines delete themselves when Dask ends on them" in found["removal"]
    assert azure.writes() == []


def test_providers_that_are_not_registered(azure):
    for name in sorted(azure.registered):
        azure.registered = azure.registered - {name}
        code, found = lines()
        assert code == 1 and f"az provider register --namespace {name}" in found["providers"]
        with pytest.raises(CloudVMError, match=f"(?i)az provider register --namespace {name}"):
            run(life())
        azure.registered = azure.registered | {name}
    azure.registered.remove("Microsoft.ManagedIdentity")
    assert lines("identity=system")[1]["providers"].startswith("ok")
    run(life(identity="none"))


def test_too_small_a_quota(azure):
    azure.quota["standardDSv5Family"] = 8
    code, found = lines("n_workers=10")
    assert code == 1 and "22 of standardDSv5Family are wanted in eastus, 8 are left" in found["quota"]
    azure.quota = {"lowPriorityCores": 4}
    code, found = lines("n_workers=10", "spot=true")
    assert code == 1 and "20 of lowPriorityCores are wanted in eastus, 4 are left" in found["quota"]
    for name in ADDRESSES:
        azure.quota = {name: 5}
        code, found = lines("n_workers=10")
        assert code == 1 and f"11 of {name} are wanted" in found["quota"]
        assert "outbound_access: nat_gateway" in found["quota"]
        assert lines("n_workers=10", "outbound_access=nat_gateway")[0] == 0


def test_missing_permissions(azure):
    missing = {"Microsoft.Network/networkSecurityGroups/write", "Microsoft.Compute/virtualMachines/write"}
    azure.permissions = LAUNCHER - missing
    code, found = lines()
    assert code == 1 and "2 of" in found["permissions"] and ", ".join(sorted(missing)) in found["permissions"]


def test_only_the_permissions_that_the_profile_needs_are_wanted(azure):
    azure.permissions = {each for each in LAUNCHER if "natGateways" not in each}
    assert lines()[1]["permissions"].startswith("ok")
    assert "Microsoft.Network/natGateways/write" in lines("outbound_access=nat_gateway")[1]["permissions"]
    run(life())
    azure.permissions = ACTIONS["ongoing"]
    assert lines()[1]["permissions"].startswith("ok")
    assert "networkSecurityGroups/write" in lines("firewall={ports: [22]}")[1]["permissions"]


def test_what_machines_may_do_to_themselves_depends_on_role_and_scope(azure):
    id = azure.add("userAssignedIdentities", "mine", "my-group", principalId="p", clientId="c")
    azure.network()
    own = ["resource_group=my-group", "vnet=my-vnet", "security_group=my-nsg", f"identity={id}"]
    group = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/my-group"
    for actions, scope, said in (
        (["Microsoft.Compute/virtualMachines/*"], group.upper(), "ok    removal        machines delete themselves"),
        (["*/delete"], f"{group}/", "ok    removal        machines delete themselves"),
        (["*"], "/", "ok    removal        machines delete themselves"),
        (["*"], "/providers/Microsoft.Management/managementGroups/g", "ok    removal        machines delete"),
        (["*/deallocate/action"], group, "ok    removal        machines deallocate themselves"),
        (["*/read"], group, "FAIL  removal        identity mine may not delete"),
        (["*"], group[:-1], "FAIL  removal        identity mine may not delete"),
        (["*"], f"{group}/providers/Microsoft.Compute/virtualMachines/x", "FAIL  removal        identity mine may not"),
    ):
        azure.roles["r"] = {"properties": {"permissions": [{"actions": actions, "notActions": []}]}}
        granted = {"principalId": "p", "roleDefinitionId": "/x/r", "scope": scope}
        azure.assigned = [{"name": "a", "properties": granted}]
        assert lines(*own)[1]["removal"].startswith(said), scope


def test_machines_that_would_be_billed_on(azure):
    azure.permissions = LAUNCHER - {"Microsoft.Authorization/roleAssignments/write"}
    code, found = lines()
    assert code == 1 and "Azure bills them until 'dask-cloudvm down'" in found["removal"]
    assert "policy azure --part machines" in found["removal"]
    azure.permissions = None
    azure.network()
    own = ["resource_group=my-group", "vnet=my-vnet", "security_group=my-nsg"]
    assert "resource group of yours" in lines(*own)[1]["removal"]
    assert "use a user-assigned one" in lines("identity=system")[1]["removal"]
    id = azure.add("userAssignedIdentities", "mine", "my-group", principalId="p", clientId="c")
    assert "identity mine may not delete machines in my-group" in lines(*own, f"identity={id}")[1]["removal"]
    assert "there is no identity" in lines(f"identity={id}x")[1]["removal"]
    azure.roles["r"] = {"properties": {"permissions": [{"actions": ["Microsoft.Compute/*"], "notActions": []}]}}
    scope = f"/subscriptions/{SUBSCRIPTION}"
    granted = {"principalId": "p", "roleDefinitionId": "/x/r", "scope": scope}
    azure.assigned.append({"name": "a", "properties": granted})
    code, found = lines(*own, f"identity={id}")
    assert code == 0 and "machines delete themselves" in found["removal"]
    azure.roles["r"]["properties"]["permissions"][0]["notActions"] = ["*/delete"]
    assert "machines deallocate themselves" in lines(*own, f"identity={id}")[1]["removal"]
    assert "auto_shutdown is off" in lines("auto_shutdown=false")[1]["removal"]


def test_what_is_wrong_is_said_where_it_is(azure, monkeypatch):
    for settings, where, what in (
        (["instance_tags={a/b: c}"], "options", "Azure allows none of"),
        (["resource_group=nonesuch"], "place", "there is no resource group nonesuch"),
        (["machine_type=Standard_X"], "machine types", "change machine_type"),
        (["image=a:b:c"], "image", "change image"),
        (["security_group=nonesuch"], "network", "change security_group"),
    ):
        code, found = lines(*settings)
        assert code == 1 and found[where].startswith("FAIL") and what in found[where], found
    azure.faults = [Fault("subscriptions.list", "expired", "ExpiredAuthenticationToken", 401)]
    code, found = lines()
    assert code == 1 and "az login" in found["subscription"] and list(found)[-1] == "subscription"
    monkeypatch.setenv("AZURE_TOKEN_CREDENTIALS", "EnvironmentCredential")
    code, found = lines()
    assert code == 1 and "az login" in found["credentials"] and WHO not in str(found)


# plan


def test_a_plan_says_what_becomes_of_the_machines(azure, tmp_path):
    profile = tmp_path / "p.yaml"
    profile.write_text("cloudprovider: {azure: {region: eastus}}")
    assert "machines delete themselves when Dask ends on them" in cli(plan, str(profile)).output
    stops = cli(plan, str(profile), "--offline", "--set", "identity=none").output
    assert "Azure bills them until 'dask-cloudvm down'" in stops
    azure.permissions = LAUNCHER - ACTIONS["identity"]
    assert "you may not grant" in json.loads(cli(plan, str(profile), "-o", "json").output)["notes"][0]
    assert azure.writes() == []
