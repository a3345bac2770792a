"""``policy gcp`` is enough for the whole life of a cluster, and not more; ``doctor gcp`` says what is missing."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from gcp_fake import HOST_PROJECT, PROJECT, Fault
from suite import CLUSTER, run, subject, workers

from dask_cloudvm.cli import doctor, plan, policy
from dask_cloudvm.clouds import gcp_policy
from dask_cloudvm.errors import CloudVMError

PARTS = gcp_policy.policies()
ACCOUNT = "123-compute@developer.gserviceaccount.com"
LAUNCHER = {p for part in ("setup", "ongoing", "account") for p in PARTS[part]["includedPermissions"]}
DOCTORS = {"compute.regions.get"}


async def life(region=None, **settings):
    """Everything a launcher does in the life of a cluster, zonal and regional, with every kind of option."""
    settings = {"spot": True, "image": "my-family", "machine_type": "e2-custom-4-8192", **settings}
    it = subject("gcp", region=region, **settings)
    assert await it.cloud.list(CLUSTER) == []
    scheduler, *_ = await it.cluster(2)
    scheduler = await it.cloud.locate(scheduler)
    await subject("gcp", region=region, **settings).create("worker", workers(1, first=5), scheduler)
    console = await it.cloud.console(scheduler)
    assert not console.startswith("("), console
    await it.cloud.delete(await it.cloud.list(CLUSTER))


def lives(gcp):
    """The images and networks of one's own, too, and the removal of what clusters share."""
    for settings in (
        {},
        {"region": "us-east1", "image": "mine"},
        {"subnet": "default", "machine_type": "e2-standard-2"},
    ):
        gcp.instances.clear()
        gcp.firewalls.clear()
        run(life(**settings))
    run(collect())


async def collect(**settings):
    it = subject("gcp", **settings)
    for part in await it.cloud.parts():
        assert await it.cloud.remove(part)


@pytest.fixture
def project(gcp):
    gcp.images[PROJECT, "mine"] = ("my-family", 10, "X86_64")
    gcp.takes, gcp.poll = 0.02, 0.1  # so that operations are awaited
    return gcp


def test_the_roles_are_enough(project):
    project.permissions = LAUNCHER - DOCTORS
    lives(project)


def test_the_roles_are_enough_for_the_rules_of_a_shared_vpc(project):
    project.guests = {HOST_PROJECT: [PROJECT]}
    project.permissions = LAUNCHER - DOCTORS
    run(life(network_projectid=HOST_PROJECT))
    run(collect(projectid=HOST_PROJECT))
    assert not project.firewalls and project.count()["projects.getXpnResources"] == 1


def test_without_the_first_part_later_clusters_work(project):
    project.permissions = LAUNCHER
    run(life())
    project.instances.clear()
    project.permissions = LAUNCHER - set(PARTS["setup"]["includedPermissions"])
    run(life())
    project.instances.clear()
    with pytest.raises(CloudVMError, match=r"grant compute\.firewalls\.create"):
        run(life(firewall={"ports": [22]}))


@pytest.mark.parametrize("permission", sorted(LAUNCHER))
def test_every_permission_is_needed(project, permission):
    project.permissions = LAUNCHER - {permission}
    if permission in DOCTORS:
        assert not all(check.ok for check in run(subject("gcp").cloud.doctor()))
        return
    with pytest.raises((CloudVMError, AssertionError)) as caught:
        lives(project)
    assert permission in str(caught.value) or permission == "iam.serviceAccounts.actAs", str(caught.value)


def test_the_machines_role_is_what_their_script_needs():
    assert PARTS["machines"]["includedPermissions"] == ["compute.instances.delete"]


def cli(command, *arguments):
    done = CliRunner().invoke(command.command, list(arguments))
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


def test_the_verb_prints_roles_to_paste():
    assert json.loads(cli(policy, "gcp").output) == PARTS
    role = json.loads(cli(policy, "gcp", "--part", "machines").output)
    assert set(role) == {"title", "description", "stage", "includedPermissions"}
    assert all(len(part["description"]) <= 256 for part in PARTS.values())
    assert "have the parts setup, ongoing" in cli(policy, "ec2", "--part", "machines").output


# doctor


def lines(*arguments):
    done = cli(doctor, *arguments)
    return done.exit_code, {line[6:].split("  ")[0].strip(): line for line in done.output.splitlines()}


def grant(gcp, role="roles/editor", account=ACCOUNT):
    gcp.policy = {"bindings": [{"role": role, "members": [f"serviceAccount:{account}"]}]}


def test_a_healthy_project(gcp):
    grant(gcp)
    code, found = lines("gcp", "--set", "n_workers=10")
    assert code == 0, found
    assert list(found) == [
        "options", "credentials", "project", "machine types", "image", "network", "permissions", "quota", "removal",
    ]  # fmt: skip
    assert all(line.startswith("ok") for line in found.values())
    assert "launcher@my-project.iam.gserviceaccount.com" in found["credentials"] and PROJECT in found["project"]
    assert "e2-standard-2 (2 CPUs, 8 GiB, X86_64)" in found["machine types"]
    assert "22 of 500 left (CPUS)" in found["quota"]
    assert "machines delete themselves" in found["removal"] and ACCOUNT in found["removal"]
    assert gcp.writes() == []


def test_machines_that_would_stop(gcp):
    code, found = lines("gcp")
    assert code == 1 and "machines stop when Dask ends on them" in found["removal"]
    assert "policy gcp --part machines" in found["removal"]
    code, found = lines("gcp", "--set", "instance_scopes=[logging.write]")
    assert code == 0 and "instance_scopes has no compute" in found["removal"]
    grant(gcp, "projects/my-project/roles/own", "dask@x")
    code, found = lines("gcp", "--set", "service_account=dask@x")
    assert code == 0 and "if projects/my-project/roles/own has compute.instances.delete" in found["removal"]
    gcp.permissions = LAUNCHER
    code, found = lines("gcp")
    assert code == 0 and "policy cannot be read" in found["removal"]


def test_too_small_a_quota(gcp):
    grant(gcp)
    gcp.quota = 8
    code, found = lines("gcp", "--set", "n_workers=10")
    assert code == 1 and "22 CPUs are wanted, the quota CPUS of us-east1 has 8 left" in found["quota"]


def test_missing_permissions(gcp):
    grant(gcp)
    gcp.permissions = LAUNCHER - {"compute.instances.setTags", "compute.firewalls.create"}
    code, found = lines("gcp")
    assert code == 1 and "2 of" in found["permissions"]
    assert "compute.firewalls.create, compute.instances.setTags" in found["permissions"]


def test_what_is_wrong_is_said_where_it_is(gcp, monkeypatch):
    grant(gcp)
    for settings, where, what in (
        (["zone=[us-east1-b, europe-west1-b]"], "options", "in different regions"),
        (["machine_type=e2-nonesuch-2"], "machine types", "change machine_type"),
        (["image=nonesuch"], "image", "change image"),
        (["vnet=nonesuch"], "network", "was not found"),
    ):
        code, found = lines("gcp", *(part for s in settings for part in ("--set", s)))
        assert code == 1 and found[where].startswith("FAIL") and what in found[where], found
    gcp.faults = [Fault("projects.get", "Compute Engine API has not been used", "accessNotConfigured", 403)]
    code, found = lines("gcp")
    assert code == 1 and "gcloud services enable" in found["project"] and list(found)[-1] == "project"
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS")
    code, found = lines("gcp")
    assert code == 1 and "gcloud auth application-default login" in found["credentials"]


# plan


def test_a_plan_says_what_becomes_of_the_machines(gcp, tmp_path):
    profile = tmp_path / "p.yaml"
    profile.write_text("cloudprovider: {gcp: {}}")
    assert (
        "machines delete themselves when Dask ends on them, if service account default"
        in cli(plan, str(profile)).output
    )
    stops = cli(plan, str(profile), "--offline", "--set", "instance_scopes=[logging.write]").output
    assert "machines stop when Dask ends on them" in stops
    shown = json.loads(cli(plan, str(profile), "-o", "json").output)
    assert shown["notes"] and HOST_PROJECT not in str(shown)
    assert gcp.writes() == []
