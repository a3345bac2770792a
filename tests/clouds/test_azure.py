"""Azure's own ways: places, network, capacity, operations, what is sent. All through real azure-identity over HTTP."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import time

import pytest
from azure_boot import cloud_config, files
from azure_fake import Fault, user_data
from azure_mgmt import snake_case
from suite import CLUSTER, run, subject, workers

from dask_cloudvm import plan as planning
from dask_cloudvm import tls
from dask_cloudvm.clouds import azure as azure_module
from dask_cloudvm.clouds import azure_gone, azure_identity, azure_maker, azure_session
from dask_cloudvm.errors import CloudVMError
from dask_cloudvm.userdata import pack

SCHEDULER = planning.scheduler_name(CLUSTER)
MACHINE = "virtualMachines.createOrUpdate"
GROUP, NETWORK = "resourceGroups.createOrUpdate", "virtualNetworks.createOrUpdate"
SHARED = [
    GROUP, "userAssignedIdentities.createOrUpdate", "roleDefinitions.createOrUpdate", "roleAssignments.create",
    "networkSecurityGroups.createOrUpdate", NETWORK,
]  # fmt: skip
D2, D4, D4A = "Standard_D2s_v5", "Standard_D4s_v5", "Standard_D4as_v5"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Looks often."""
    for module in (azure_session, azure_maker, azure_module):
        monkeypatch.setattr(module, "LOOK", (0.05, 0.1))
    monkeypatch.setattr(azure_session, "PAUSE", 0.01)


def on_azure(**settings):
    return subject("azure", **{"region": "eastus", **settings})


def scheduler(**settings):
    [vm] = run(on_azure(**settings).create("scheduler", [SCHEDULER]))
    return vm


def refused(message, **settings):
    with pytest.raises(CloudVMError) as caught:
        run(on_azure(**settings).cluster(2))
    assert message in str(caught.value), str(caught.value)
    return str(caught.value)


def bodies(azure):
    return [body for _, body in azure.sent()]


def properties(azure):
    """The machines' properties in the order of the calls."""
    return [body["properties"] for body in bodies(azure)]


def card(body):
    return body["properties"]["networkProfile"]["networkInterfaceConfigurations"][0]["properties"]


# Number of calls


def test_a_machine_is_one_write_and_the_reads_do_not_grow(azure):
    """The first cluster of a region makes what all of them share."""
    reads = set()
    for n in (1, 10, 100):
        azure.calls.clear()
        made = run(on_azure().cluster(n))
        assert len(made) == n + 1
        assert azure.writes()[-n - 1 :] == [MACHINE] * (n + 1)
        assert azure.writes()[: -n - 1] == ([] if reads else SHARED)
        if n > 1:
            reads.add(len(azure.reads()))
        run(on_azure().cloud.delete(made))
        reads = reads or {0}
    assert len(reads - {0}) == 1


def test_polling_does_not_grow_with_the_machines(azure):
    scheduler()
    looks = []
    for n in (1, 40):
        it = on_azure()
        azure.takes = 0.5
        azure.calls.clear()
        run(it.create("worker", workers(n, first=10 * n)))
        looks.append(azure.count()["virtualMachines.list"])
        assert azure.count()["operations.get"] == azure.count()["virtualMachines.get"] == 0
        azure.takes = 0
    assert 2 <= looks[0] <= 12 and 2 <= looks[1] <= 12


def test_a_machine_brings_its_card_its_address_and_its_disk_and_takes_them_away(azure):
    made = run(on_azure().cluster(2))
    assert len(azure.leftovers()) == 3 * 4
    azure.calls.clear()
    run(on_azure().cloud.delete(made))
    assert azure.leftovers() == [] and azure.writes() == ["virtualMachines.delete"] * 3
    assert all(p["forceDeletion"] == "true" for p, _ in azure.sent("virtualMachines.delete"))


def test_a_list_is_four_calls_however_many_machines(azure):
    run(on_azure().cluster(5))
    azure.calls.clear()
    assert len(run(on_azure().cloud.list())) == 6
    assert sorted(azure.reads()) == [
        "networkInterfaces.listAll", "publicIPAddresses.listAll", "subscriptions.list",
        "virtualMachines.listAll", "virtualMachines.listAll",
    ]  # fmt: skip
    azure.page = 2
    assert len(run(on_azure().cloud.list(CLUSTER))) == 6


def test_the_event_loop_is_never_blocked(azure):
    """The bound is generous, as fake and launcher share an interpreter: a call takes a second, and would block for it.

    benchmarks/azure_vms.py measures with the fake in a process of its own.
    """
    longest = 0.0

    async def watch():
        nonlocal longest
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0.005)
            longest = max(longest, time.perf_counter() - before)

    async def both():
        it = on_azure()
        [first] = await it.create("scheduler", [SCHEDULER])
        azure.latency = 1.0
        watching = asyncio.create_task(watch())
        made = await on_azure().create("worker", workers(20), first)
        await it.cloud.delete(made)
        watching.cancel()
        return len(made)

    assert run(both()) == 20
    assert longest < 0.7, longest


# What is sent


def test_the_body_of_a_scheduler_and_its_workers(azure):
    made = run(on_azure(security=True, instance_tags={"Cost centre": 7, "keep": True}).cluster(2))
    assert [vm.name for vm in made] == [SCHEDULER, *workers(2)]
    first, *others = bodies(azure)
    assert sorted(body["properties"]["osProfile"]["computerName"] for body in others) == workers(2)
    for body in (first, *others):
        name = body["properties"]["osProfile"]["computerName"]
        assert body["tags"]["Cost centre"] == "7" and body["tags"]["keep"] == "true"
        disk = body["properties"]["storageProfile"]["osDisk"]
        public = card(body)["ipConfigurations"][0]["properties"]["publicIPAddressConfiguration"]
        assert disk["deleteOption"] == card(body)["deleteOption"] == public["properties"]["deleteOption"] == "Delete"
        assert public["name"] == f"{name}-ip" and public["sku"]["name"] == "Standard"
        [network] = body["properties"]["networkProfile"]["networkInterfaceConfigurations"]
        assert public["tags"] == network["tags"] == body["tags"] and body["tags"]["dask-cloudvm-cluster"] == CLUSTER
        assert body["properties"]["diagnosticsProfile"] == {"bootDiagnostics": {"enabled": True}}
        assert body["properties"]["storageProfile"]["imageReference"]["offer"] == "ubuntu-26_04-lts"
        assert "adminPassword" not in body["properties"]["osProfile"]
        assert "priority" not in body["properties"] and "zones" not in body
    assert others[0]["properties"]["osProfile"]["customData"] == others[1]["properties"]["osProfile"]["customData"]


def test_what_a_plan_shows_is_what_is_sent(azure):
    it = on_azure()

    async def both():
        facts = await it.cloud.facts(None)
        requests = it.wanted(facts, "scheduler", [SCHEDULER])
        for request in requests:
            await it.cloud.create(request)
        return requests

    requests = run(both())
    [sent] = bodies(azure)
    shown = json.loads(json.dumps(requests[-1].body["resource"]).replace("<name>", SCHEDULER))
    assert shown["properties"]["osProfile"]["customData"] == user_data(sent)
    sent["properties"]["osProfile"]["customData"] = shown["properties"]["osProfile"]["customData"]
    assert sent == shown
    assert [r.operation for r in requests] == azure.writes()
    shared = [body for name, _, body in azure.calls if name in SHARED]
    for request, body in zip(requests, shared, strict=False):
        assert request.body["resource"] == body or azure_identity.PRINCIPAL in str(request.body)


def test_every_machine_learns_its_own_name(azure):
    run(on_azure().cluster(2))
    for body in bodies(azure)[1:]:
        name = body["properties"]["osProfile"]["computerName"]
        assert json.loads(files(body)["worker.json"])["opts"]["name"] == name


def test_workers_join_by_the_private_address_and_clients_by_the_public_one(azure):
    vm = run(on_azure().cloud.locate(scheduler()))
    assert vm.address == f"tcp://{vm.private_ip}:8786" and vm.external_address == f"tcp://{vm.public_ip}:8786"
    assert vm.private_ip.startswith("10.") and vm.public_ip.startswith("20.")


def test_images_in_any_form(azure):
    azure.images["me", "mine", "one", "1.0.0"] = (30, "x64", "V2")
    azure.images["Canonical", "ubuntu-26_04-lts", "minimal", "1.0.0"] = (30, "x64", "V2")
    own = azure.add("images", "mine", "my-group", storageProfile={"osDisk": {"osType": "Linux", "diskSizeGB": 45}})
    disk = {"sizeInGB": 45}
    of_gallery = azure.add("galleries", "g/images/i", "my-group", architecture="x64", osType="Linux")
    version = azure.add("galleries", "g/images/i/versions/1", "my-group", storageProfile={"osDiskImage": disk})
    parts = {"publisher": "me", "offer": "mine", "sku": "one"}
    for image, reference in (
        ({**parts, "version": "1.0.0"}, {**parts, "version": "1.0.0"}),
        (parts, {**parts, "version": "latest"}),
        ("me:mine:one:1.0.0", {**parts, "version": "1.0.0"}),
        ("me:mine:one", {**parts, "version": "latest"}),
        (
            {"sku": "minimal"},
            {"publisher": "Canonical", "offer": "ubuntu-26_04-lts", "sku": "minimal", "version": "latest"},
        ),
        (own, {"id": own}),
        (version, {"id": version}),
        (of_gallery, {"id": of_gallery}),
        ({"id": own}, {"id": own}),
        (version.lower(), {"id": version.lower()}),
        ("/sharedGalleries/g/images/i/versions/1", {"sharedGalleryImageId": "/sharedGalleries/g/images/i/versions/1"}),
        ("/communityGalleries/g/images/i", {"communityGalleryImageId": "/communityGalleries/g/images/i"}),
    ):
        azure.calls.clear()
        run(on_azure().cloud.delete([scheduler(vm_image=image)]))
        assert properties(azure)[0]["storageProfile"]["imageReference"] == reference


def test_images_that_cannot_be(azure):
    own = azure.add("images", "mine", "my-group", storageProfile={"osDisk": {"osType": "Linux", "diskSizeGB": 45}})
    refused("change image (vm_image), or leave it out", image="me:nonesuch:one")
    refused("neither a resource id nor the parts", image="nonesuch")
    refused("set disk_size to 45 or more", image=own, disk_size=40)
    refused("there is no image", image=f"{own}x")
    refused("check the resource ids among the options", image=own.replace("Microsoft.Compute", "Contoso.Compute"))
    refused("leave image (vm_image) out", image="Canonical:ubuntu-26_04-lts:server-arm64")


def test_the_image_suits_architecture_and_generation(azure):
    run(on_azure(worker_machine_type="Standard_D2ps_v5", scheduler_machine_type="Standard_DS1_v2").cluster(1))
    assert [p["storageProfile"]["imageReference"]["sku"] for p in properties(azure)] == ["server-gen1", "server-arm64"]


def test_an_older_ubuntu_where_the_newest_is_not_there_yet(azure):
    azure.images = {key: value for key, value in azure.images.items() if "26" not in key[1]}
    scheduler()
    assert properties(azure)[0]["storageProfile"]["imageReference"]["offer"] == "ubuntu-24_04-lts"


def test_a_marketplace_plan_names_the_image_too(azure):
    plan = {"name": "ngc-base", "publisher": "nvidia", "product": "ngc_azure"}
    azure.images["nvidia", "ngc_azure", "ngc-base", "21.2.2"] = (30, "x64", "V2")
    azure.plans["nvidia", "ngc_azure", "ngc-base"] = plan
    refused("set marketplace_plan: {name: ngc-base", image="nvidia:ngc_azure:ngc-base")
    scheduler(marketplace_plan=plan)
    reference = {"publisher": "nvidia", "offer": "ngc_azure", "sku": "ngc-base", "version": "latest"}
    assert bodies(azure)[0]["plan"] == plan
    assert properties(azure)[0]["storageProfile"]["imageReference"] == reference


@pytest.mark.parametrize("size", ["Standard_NC4as_T4_v3", "Standard_NV6ads_A10_v5"])
def test_gpus_are_found_by_the_size(azure, size):
    """Some sizes have a sixth of one."""
    run(on_azure(worker_machine_type=size).cluster(1))
    first, second = bodies(azure)
    made = files(second)
    assert json.loads(made["worker.json"])["cls"] == "dask_cuda.CUDAWorker"
    assert "nvidia-container-toolkit" in made["install"] and "--gpus" in json.loads(made["run.json"])["argv"]
    assert "nvidia" not in user_data(first)
    refused("worker_machine_type name one kind", worker_machine_type=["Standard_NC4as_T4_v3", D4])


def test_the_ssh_key(azure, tmp_path):
    keys = []
    for key in ("ssh-ed25519 AAAAC3Nza me@here", str(tmp_path / "id.pub"), None, None):
        (tmp_path / "id.pub").write_text("ssh-rsa AAAAB3Nza me@there\n")
        run(on_azure().cloud.delete([scheduler(ssh_public_key=key, admin_username="me")]))
        linux = properties(azure)[-1]["osProfile"]["linuxConfiguration"]
        assert linux["disablePasswordAuthentication"] is True
        [given] = linux["ssh"]["publicKeys"]
        assert given["path"] == "/home/me/.ssh/authorized_keys"
        keys.append(given["keyData"])
    assert keys[:2] == ["ssh-ed25519 AAAAC3Nza me@here", "ssh-rsa AAAAB3Nza me@there"]
    assert keys[2].startswith("ssh-rsa AAAA") and keys[2] != keys[3]
    azure.calls.clear()
    refused("change ssh_public_key", ssh_public_key=str(tmp_path / "none.pub"))
    for path in ("~nobody-has-this-name/x", "a\0b"):
        refused("change ssh_public_key", ssh_public_key=path)
    for kind in ("ecdsa-sha2-nistp256", "sk-ssh-ed25519@openssh.com", "ssh-dss"):
        (tmp_path / "id.pub").write_text(f"{kind} AAAAB3Nza me@there\n")
        for key in (f"{kind} AAAAB3Nza me@there", str(tmp_path / "id.pub")):
            assert f"{kind} is no kind of SSH keys that Azure takes" in refused("ssh-ed25519", ssh_public_key=key)
    (tmp_path / "id.pub").write_text("-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n")
    assert "AAAA\n" not in refused("-----BEGIN is no kind", ssh_public_key=str(tmp_path / "id.pub"))
    assert azure.writes() == []


def test_what_can_be_known_to_be_wrong_makes_no_call(azure):
    own = {"vnet": "my-vnet"}
    for message, settings in {
        "Azure allows none of": {"instance_tags": {"a/b": "x"}},
        "its value 256": {"instance_tags": {"a": "x" * 257}},
        "capitals make no difference": {"instance_tags": {"A": "1", "a": "2"}},
        "kept for": {"instance_tags": {"dask-cloudvm-role": "x"}},
        "Azure allows 42": {"instance_tags": {f"a{i}": "x" for i in range(43)}},
        "change admin_username": {"admin_username": "root"},
        "the network is yours": {**own, "outbound_access": "nat_gateway"},
        "no network is given": {"outbound_access": "existing"},
        "set outbound_access: nat_gateway": {"public_ingress": False},
        "identity 'me' is not known": {"identity": "me"},
    }.items():
        refused(message, **settings)
    refused("set region (location)", region=None)
    assert azure.writes() == [] and set(azure.reads()) <= {"subscriptions.list"}


def test_fields_that_azure_does_not_know_are_refused_in_its_words(azure):
    message = refused("Could not find member 'colour'", extra_vm_options={"properties": {"colour": "red"}})
    assert "InvalidRequestContent" in message and azure.there() == {}


# The user's own part of the body


def test_extra_options_are_merged_deeply_and_by_role(azure):
    extra = {"properties": {"osProfile": {"linuxConfiguration": {"provisionVMAgent": True}}}, "zones": ["2"]}
    run(on_azure(worker_extra_vm_options=extra).cluster(1))
    first, second = bodies(azure)
    linux = second["properties"]["osProfile"]["linuxConfiguration"]
    assert linux["provisionVMAgent"] is True and linux["ssh"] and second["zones"] == ["2"]
    assert "provisionVMAgent" not in str(first) and "zones" not in first


def test_cards_of_ones_own_have_the_machines_tags_besides_theirs(azure):
    run(on_azure().cloud.delete([scheduler()]))
    [usual] = bodies(azure)[0]["properties"]["networkProfile"]["networkInterfaceConfigurations"]
    cards = [{**usual, "name": "mine", "tags": {"a": "3"}}]
    extra = {"properties": {"networkProfile": {"networkInterfaceConfigurations": cards}}}
    scheduler(instance_tags={"a": "1", "b": "2"}, extra_vm_options=extra)
    [card] = bodies(azure)[-1]["properties"]["networkProfile"]["networkInterfaceConfigurations"]
    assert card["name"] == "mine" and card["tags"] == {**bodies(azure)[-1]["tags"], "a": "3"}


def test_extra_options_as_dask_cloudproviders_users_write_them(azure):
    """Flat and with underscores, as its SDK took them."""
    extra = {
        "priority": "Spot", "eviction_policy": "Delete", "billing_profile": {"max_price": 0.1}, "zones": ["1"],
        "storage_profile": {"os_disk": {"disk_size_gb": 77}}, "tags": {"my_tag": "x"},
    }  # fmt: skip
    scheduler(extra_vm_options=extra)
    [body] = bodies(azure)
    assert body["properties"]["evictionPolicy"] == "Delete"
    assert body["properties"]["billingProfile"] == {"maxPrice": 0.1}
    assert body["properties"]["storageProfile"]["osDisk"]["diskSizeGB"] == 77
    assert body["zones"] == ["1"] and body["tags"]["my_tag"] == "x"


def test_every_name_of_azures_models_with_underscores_is_understood():
    from dask_cloudvm.clouds.azure_options import camel

    names = snake_case()
    assert len(names) > 300
    assert {name: wire for name, wire in names.items() if camel(name) != wire} == {}


@pytest.mark.parametrize("form", ["old", "new", "option"])
def test_the_documented_form_of_an_identity(azure, form):
    """``{"identity": identity.as_dict()}``, by the SDKs of 2021 and of today, and as an option."""
    from azure.mgmt.compute.models import VirtualMachineIdentity

    id = azure.add("userAssignedIdentities", "mine", "my-group", principalId="p", clientId="c")
    if form == "old":
        given = {"type": "UserAssigned", "user_assigned_identities": {id: {}}}
    else:
        given = VirtualMachineIdentity(type="UserAssigned", user_assigned_identities={id: {}}).as_dict()
    settings = {"identity": id} if form == "option" else {"extra_vm_options": {"identity": given}}
    run(on_azure(**settings).cluster(1))
    for body in bodies(azure):
        assert body["identity"] == {"type": "UserAssigned", "userAssignedIdentities": {id: {}}}
        assert id in files(body)["gone"]
    assert "roleAssignments.create" not in azure.writes()


# User-data


def test_user_data_has_its_limit(azure):
    noise = "".join(random.Random(0).choices("0123456789abcdefghijklmnopqrstuvwxyz", k=120_000))
    assert "65,535 are allowed" in refused("user-data has", env_vars={"NOISE": noise})
    assert azure.there() == {}
    it = on_azure(security=True)
    [request] = it.wanted(it.cloud.offline(), "worker", workers(1), certificates=tls.make(CLUSTER))
    assert len(pack(request.body["resource"]["properties"]["osProfile"]["customData"])) < 8 << 10


HOSTILE = {
    "QUOTES": 'it\'s "so" `id` $HOME $(id) \\',
    "LINES": "a: b\n- c\r\n# d\t\n",
    "JINJA": "{{ x }} {% if %} {# no #} {{{{ }}}} %} }}",
    "UNICODE": "ü 漢 🎉 \u2028 \x85",
    "NAME": "<name>",
    "EMPTY": "",
}


def test_hostile_values_arrive_unchanged(azure):
    run(on_azure(env_vars=HOSTILE).cluster(1))
    for body in bodies(azure):
        made = files(body)
        env = json.loads(made["run.json"])["env"]
        lines = dict(line.split("=", 1) for line in made["env"].split("\n") if line)
        assert {k: v for k, v in {**lines, **env}.items() if k in HOSTILE} == HOSTILE


# Removal


def test_a_machine_deletes_itself_where_it_may(azure):
    id = azure.add("userAssignedIdentities", "mine", "my-group", principalId="p", clientId="c")
    azure.network()
    for settings, itself, note in (
        ({}, True, "delete themselves when Dask ends on them"),
        ({"identity": "none"}, False, "identity is none"),
        ({"identity": "system"}, True, "if their identity may delete"),
        ({"identity": [id]}, True, "if their identity may delete"),
        ({"auto_shutdown": False}, False, "auto_shutdown is off"),
        ({"resource_group": "my-group"}, False, "since in a resource group of yours"),
    ):
        it = on_azure(**settings)
        facts = run(it.cloud.facts(None))
        text = str([r.body for r in it.wanted(facts, "worker", workers(1))])
        assert ("169.254.169.254" in text) == ("ExecStopPost" in text) == itself, settings
        assert note in facts.notes[0] and note in it.cloud.offline().notes[0]


def test_without_the_right_to_grant_roles_machines_get_no_identity_and_a_plan_says_so(azure):
    azure.permissions = everything() - {"Microsoft.Authorization/roleAssignments/write"}
    it = on_azure()
    facts = run(it.cloud.facts(None))
    assert "Azure bills them until 'dask-cloudvm down', since you may not grant" in facts.notes[0]
    assert "identity" not in it.wanted(facts, "worker", workers(1))[0].body["resource"]


def test_an_identity_that_an_owner_made_is_used_by_those_who_may_not(azure):
    run(on_azure().cloud.delete([scheduler()]))
    azure.permissions = everything() - {"Microsoft.Authorization/roleAssignments/write"}
    azure.calls.clear()
    run(on_azure().cluster(1))
    assert azure.writes() == [MACHINE] * 2
    assert all("userAssignedIdentities" in body["identity"] for body in bodies(azure))


def test_the_role_of_the_machines_is_made_once_for_two_regions(azure):
    for region in ("eastus", "westeurope"):
        run(on_azure().cloud.delete([scheduler(region=region)]))
    assert len(azure.roles) == 1 and len(azure.assigned) == 2
    [role] = azure.roles.values()
    assert "Microsoft.Compute/virtualMachines/delete" in role["properties"]["permissions"][0]["actions"]
    scopes = {each["properties"]["scope"].rpartition("/")[2] for each in azure.assigned}
    assert scopes == {"dask-cloudvm-eastus", "dask-cloudvm-westeurope"}
    assert {each["properties"]["principalType"] for each in azure.assigned} == {"ServicePrincipal"}


@pytest.mark.parametrize("identity", [None, "system"])
@pytest.mark.parametrize("allowed", ["delete", "deallocate", "nothing"])
def test_the_script_by_which_a_machine_removes_itself(azure, azure_server, monkeypatch, identity, allowed):
    monkeypatch.setattr(azure_gone, "PATIENCE", 0)
    scheduler(identity=identity)
    azure.permissions = {
        "delete": everything(),
        "deallocate": {"Microsoft.Compute/virtualMachines/deallocate/action"},
        "nothing": set(),
    }[allowed]
    done = gone(azure, azure_server)
    azure.permissions = None
    assert (azure.leftovers() == []) == (allowed == "delete")
    if allowed == "deallocate":
        [vm] = run(on_azure().cloud.list())
        assert not vm.alive
    assert ("is billed on" in done.stdout) == (allowed == "nothing")
    assert ("Microsoft.Compute/virtualMachines/deallocate/action" in done.stdout) == (allowed == "nothing")


def gone(azure, azure_server):
    """What becomes of the script of the first machine, whose metadata comes from the fake."""
    script = files(bodies(azure)[0])["gone"]
    assert script.count("http://169.254.169.254") == 1 and azure_server[1] in script
    script = script.replace("http://169.254.169.254", azure_server[1])
    return subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True, timeout=30)


@pytest.mark.parametrize(("status", "tries"), [(401, 3), (403, 3), (429, 3), (500, 3), (404, 1), (400, 1)])
def test_a_machine_goes_on_deleting_itself_while_its_role_may_not_be_known_yet(azure, azure_server, status, tries):
    """It takes minutes: whoever gives up before is billed on."""
    unit = files_by_path(scheduler_body(azure))["/etc/systemd/system/dask-cloudvm.service"]
    assert "TimeoutStopSec=15min" in unit and azure_gone.PATIENCE < 15 * 60
    kinds = ("virtualMachines.delete", "virtualMachines.deallocate")
    azure.faults = [Fault(kind, "no", "X", status, times=2, retry_after="1") for kind in kinds]
    began = time.monotonic()
    done = gone(azure, azure_server)
    assert azure.count()[kinds[0]] == tries and (time.monotonic() - began >= 2) == (tries == 3)
    assert (azure.leftovers() == []) == (tries == 3)
    assert ("is billed on" in done.stdout) == (status == 400)


def scheduler_body(azure):
    scheduler()
    return bodies(azure)[0]


def files_by_path(body):
    return {each["path"]: each["content"] for each in cloud_config(body)["write_files"]}


def everything():
    from dask_cloudvm.clouds import azure_policy

    return {action for part in azure_policy.policies(None).values() for action in part["Actions"]}
