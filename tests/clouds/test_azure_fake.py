"""The fake refuses what Azure's models do not allow, and asks for nothing that they do not have."""

from __future__ import annotations

import copy
import json
import urllib.error
import urllib.request

import pytest
from azure_contract import ROUTES, compute, fields
from azure_fake import SUBSCRIPTION, TOKEN
from suite import run, subject, workers

from dask_cloudvm.clouds import azure_versions

ROOT = f"/subscriptions/{SUBSCRIPTION}"
GROUP = f"{ROOT}/resourceGroups/my-group/providers"
NSG = f"{GROUP}/Microsoft.Network/networkSecurityGroups/x?api-version=2025-05-01"
MACHINES = f"{GROUP}/Microsoft.Compute/virtualMachines"
GALLERY = f"{GROUP}/Microsoft.Compute/galleries/g/images/i"
RULE = {"protocol": "Tcp", "access": "Allow", "direction": "Inbound", "priority": 100, "sourceAddressPrefixes": []}


@pytest.fixture
def ask(azure, azure_server):
    def ask(verb, path, body=None, token=TOKEN, **headers):
        request = urllib.request.Request(f"{azure_server[1]}{path}", method=verb, headers=headers)
        request.add_header("Authorization", f"Bearer {token}")
        try:
            with urllib.request.urlopen(request, json.dumps(body).encode() if body else None) as answer:
                return answer.status, json.load(answer) if answer.headers["Content-Length"] != "0" else None
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)["error"]

    azure.network()
    return ask


def nsg(**changes):
    return {"location": "eastus", "properties": {"securityRules": [{"name": "a", "properties": {**RULE, **changes}}]}}


@pytest.mark.parametrize(
    ("verb", "path", "body", "said"),
    [
        ("PUT", NSG, nsg(colour="red"), "Could not find member 'colour'"),
        ("PUT", NSG, nsg(source_address_prefix="*"), "Could not find member 'source_address_prefix'"),
        ("PUT", NSG, nsg(priority="high"), "securityRules[0].properties.priority"),
        ("PUT", NSG, nsg(priority=True), "securityRules[0].properties.priority"),
        ("PUT", NSG, nsg(access="Perhaps"), "The value 'Perhaps'"),
        ("PUT", NSG, nsg(sourceAddressPrefixes="*"), "an array is expected"),
        ("PUT", NSG, nsg(sourceAddressPrefixes=["10.0.0.0/8", "::/0"]), "cannot be combined"),
        ("PUT", NSG, nsg(provisioningState="Succeeded"), "Could not find member 'provisioningState'"),
        ("PUT", NSG, {"location": "eastus", "properties": []}, "an object is expected"),
        ("PUT", NSG, {"location": "eastus", "tags": {"a": 1}}, "parameters.tags.a"),
        ("PUT", NSG, None, "request content was invalid"),
        ("PUT", NSG.partition("?")[0], nsg(), "api-version query parameter"),
        ("PUT", f"{NSG}&colour=red", nsg(), "'colour' is not known"),
        ("PUT", NSG.replace("2025-05-01", "2015-01-01"), nsg(), "supported api-versions"),
        ("GET", f"{GROUP}/Microsoft.Network/nonesuch/x?api-version=2025-05-01", None, "could not be found"),
        ("GET", f"{MACHINES}?api-version=2025-05-01", None, "supported api-versions"),
        ("GET", f"{GALLERY}?api-version=2025-04-01", None, "supported api-versions"),
        ("GET", f"{MACHINES}?api-version=2025-03-03", None, "supported api-versions"),
        ("GET", f"{ROOT}/providers/Microsoft.Compute/skus?api-version=2025-04-01", None, "supported api-versions"),
        ("PUT", f"{MACHINES}/x?api-version=2025-04-01", {"properties": {}}, "'parameters.location' is missing"),
    ],
)
def test_what_the_models_do_not_allow_is_refused(ask, verb, path, body, said):
    status, error = ask(verb, path, body)
    assert status in (400, 404) and said in error["message"], error


def test_what_they_allow_is_not(ask):
    assert ask("PUT", NSG, nsg())[0] == 201
    assert ask("PUT", NSG, nsg())[0] == 200
    assert ask("DELETE", NSG)[0] == 202 and ask("DELETE", NSG)[0] == 204


def test_a_token_is_needed(ask):
    assert ask("PUT", NSG, nsg(), token="another")[0] == 401


def test_bodies_as_dask_cloudprovider_sends_them_are_refused(ask):
    """Its names are those of SDKs before 2026."""
    status, error = ask("PUT", f"{MACHINES}/x?api-version=2025-04-01", {"location": "eastus", "os_profile": {}})
    assert status == 400 and "Could not find member 'os_profile'" in error["message"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"evictionPolicy": "Delete"}, "Spot"),
        ({"osProfile": {"linuxConfiguration": {"disablePasswordAuthentication": False}}}, "SSH keys only"),
        ({"osProfile": {"computerName": "-x"}}, "The name"),
        ({"networkProfile": {"networkApiVersion": "2024-01-01"}}, "networkApiVersion"),
        ({"hardwareProfile": {"vmSize": "Standard_X"}}, "is not available in location"),
        ({"osProfile": {"adminPassword": "x"}}, "SSH keys only"),
    ],
)
def test_what_azure_refuses_although_the_models_allow_it(ask, azure, change, said):
    it = subject("azure", region="eastus")
    run(it.cluster(1))
    body = copy.deepcopy(azure.sent()[1][1])
    for key, value in change.items():
        inner = body["properties"].setdefault(key, {}) if isinstance(value, dict) else body["properties"]
        for name, each in (value if isinstance(value, dict) else {key: value}).items():
            inner[name] = {**inner[name], **each} if isinstance(each, dict) else each
    path = f"{ROOT}/resourceGroups/dask-cloudvm-eastus/providers/Microsoft.Compute/virtualMachines/other"
    status, error = ask("PUT", f"{path}?api-version=2025-04-01", body)
    assert status in (400, 409) and said in error["message"], error
    assert workers(1)[0] in azure.there()


def test_resources_without_a_delete_option_stay(ask, azure):
    it = subject("azure", region="eastus")
    made = run(it.cluster(1))
    for each in azure.resources.values():
        if "_with" in each["properties"]:
            each["properties"]["_with"][1] = "Detach"
    run(it.cloud.delete(made))
    assert len(azure.leftovers()) == 2 * 3


def test_every_version_of_ours_is_one_that_the_packages_name():
    for name, route in ROUTES.items():
        if name == "operations.get":
            continue
        for path in (route.path, route.path.lower(), route.path.upper()):
            assert azure_versions.version(path.replace("{namespace}", "x")) in route.versions, name


def test_the_models_have_the_names_of_the_wire():
    known = fields(compute.VirtualMachine)
    assert known["properties"][1] and not known["properties"][2]
    assert known["location"][2] and not known["id"][1]
