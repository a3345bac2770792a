"""Every option of cloudprovider.gcp reaches the wire: the value in the table changes some call, or the reason is said.

A new option in the schema without a line here, or whose value changes nothing that is sent, makes this fail.
"""

from __future__ import annotations

import pytest
import shared_options
from gcp_fake import HOST_PROJECT, PROJECT, user_data
from shared_options import IN_USER_DATA
from suite import run, subject

from dask_cloudvm import options, schema
from dask_cloudvm.clouds import gcp_options
from dask_cloudvm.errors import CloudError

OTHER = "my-image"
N1 = {"machine_type": "n1-standard-1"}
EXTRA = {"instanceProperties": {"minCpuPlatform": "Intel Skylake"}}
# option -> a value that is not its default; what it must change in: scheduler, worker, both, rules; with which others
WIRE = {
    "projectid": ("other-project", "both"),
    "region": ("us-east1", "both"),
    "zone": ("us-east1-b", "both"),
    "machine_type": ("n2-standard-4", "both"),
    "scheduler_machine_type": ("n2-standard-4", "scheduler"),
    "worker_machine_type": (["n2-standard-4", "e2-standard-2"], "worker"),
    "ngpus": (2, "both", {**N1, "gpu_type": "nvidia-tesla-t4"}),
    "scheduler_ngpus": (2, "scheduler", {**N1, "gpu_type": "nvidia-tesla-t4"}),
    "worker_ngpus": (2, "worker", {**N1, "gpu_type": "nvidia-tesla-t4"}),
    "gpu_type": ("nvidia-tesla-v100", "both", {**N1, "ngpus": 1, "gpu_type": "nvidia-tesla-t4"}),
    "scheduler_gpu_type": ("nvidia-tesla-v100", "scheduler", {**N1, "ngpus": 1, "gpu_type": "nvidia-tesla-t4"}),
    "worker_gpu_type": ("nvidia-tesla-v100", "worker", {**N1, "ngpus": 1, "gpu_type": "nvidia-tesla-t4"}),
    "image": (OTHER, "both"),
    "scheduler_image": (OTHER, "scheduler"),
    "worker_image": (OTHER, "worker"),
    "disk_size": (55, "both"),
    "scheduler_disk_size": (55, "scheduler"),
    "worker_disk_size": (55, "worker"),
    "disk_type": ("pd-ssd", "both"),
    "scheduler_disk_type": ("pd-ssd", "scheduler"),
    "worker_disk_type": ("pd-ssd", "worker"),
    "vnet": ("mine", "both"),
    "subnet": ("my-subnet", "both"),
    "network_projectid": (HOST_PROJECT, "both"),
    "network_tags": (["mine"], "both"),
    "public_ingress": (False, "both", {"firewall": {"cidr": "10.0.0.0/8"}}),
    "scheduler_public_ingress": (False, "scheduler", {"firewall": {"cidr": "10.0.0.0/8"}}),
    "worker_public_ingress": (False, "worker", {"firewall": {"cidr": "10.0.0.0/8"}}),
    "service_account": ("dask@my-project.iam.gserviceaccount.com", "both"),
    "instance_scopes": (["cloud-platform"], "both"),
    "on_host_maintenance": ("terminate", "both"),
    "secure_boot": (True, "both"),
    "max_run_time": ("1 hour", "both"),
    "instance_tags": ({"team": "x"}, "both"),
    "spot": (True, "worker"),
    "firewall": ({"ports": [22], "cidr": "10.0.0.0/8"}, "rules"),
    "extra_vm_options": (EXTRA, "both"),
    "scheduler_extra_vm_options": (EXTRA, "scheduler"),
    "worker_extra_vm_options": (EXTRA, "worker"),
    **IN_USER_DATA,
}
NOT_SENT = {
    **shared_options.NOT_SENT,
    "max_price": "Google has no such thing: refused, see test_gcp.py",
    "service_account_credentials": "who asks; see test_a_key_as_a_keyword in test_gcp.py",
}


def sent(gcp, **settings):
    """What the calls for a scheduler and a worker hold, user-data readable, without what differs each time."""
    gcp.calls.clear()
    gcp.instances.clear()
    gcp.firewalls.clear()
    run(subject("gcp", **settings).cluster(1))
    scheduler, worker = (_comparable(*call, settings) for call in gcp.sent())
    rules = [{k: v for k, v in body.items() if k not in TAGGED} for _, body in gcp.sent("firewalls.insert")]
    return {"rules": rules, "scheduler": scheduler, "worker": worker}


TAGGED = ("name", "targetTags", "sourceTags")


def _comparable(parameters, body, settings):
    """Without digests, also that of the firewall, whose change another line is about."""
    text = user_data(body)
    properties = {k: v for k, v in body["instanceProperties"].items() if k != "metadata"}
    labels = {k: v for k, v in properties.pop("labels").items() if k != "dask-cloudvm-options"}
    disks = [{**d, "initializeParams": {**d["initializeParams"], "labels": labels}} for d in properties.pop("disks")]
    tags = [t for t in properties.pop("tags")["items"] if not t.startswith("dask-cloudvm-")]
    where = {k: v for k, v in parameters.items() if k != "requestId"}
    return [where, properties, labels, disks, tags, text, {k: v for k, v in body.items() if k != "instanceProperties"}]


@pytest.fixture
def project(gcp):
    """Things for options to name."""
    gcp.images[PROJECT, OTHER] = ("my-family", 10, "X86_64")
    gcp.images["other-project", OTHER] = ("my-family", 10, "X86_64")
    gcp.networks |= {(PROJECT, "mine"): {"auto": True}, ("other-project", "default"): {"auto": True}}
    gcp.subnetworks |= {
        (PROJECT, "us-east1", "mine"): "mine",
        ("other-project", "us-east1", "default"): "default",
    }
    return gcp


def test_every_option_of_the_schema_is_in_the_table():
    assert {*WIRE, *NOT_SENT} == set(schema.options("gcp"))
    assert not set(WIRE) & set(NOT_SENT)


@pytest.mark.parametrize("option", WIRE)
def test_an_option_reaches_the_wire(project, option):
    value, where, extra = (*WIRE[option], {})[:3]
    if option == "subnet":
        project.subnetworks[PROJECT, "us-east1", "my-subnet"] = "mine"
    usual, got = sent(project, **extra), sent(project, **{**extra, option: value})
    changed = {label for label in ("scheduler", "worker") if got[label] != usual[label]}
    if where == "rules":
        changed = {"rules"} if got["rules"] != usual["rules"] else set()
    assert changed == {"both": {"scheduler", "worker"}}.get(where, {where})


def test_dask_cloudproviders_own_spellings_are_the_same(project):
    old = {
        "filesystem_size": 60,
        "source_image": OTHER,
        "network": "mine",
        "preemptible": True,
        "instance_labels": {"container_vm": "dask-cloudprovider"},
    }
    new = {
        "disk_size": 60,
        "image": OTHER,
        "vnet": "mine",
        "spot": True,
        "instance_tags": {"container_vm": "dask-cloudprovider"},
    }
    assert sent(project, **old) == sent(project, **new)


def test_no_service_account(project, tmp_path):
    """Null in a profile; as a keyword, None is not given."""
    profile = tmp_path / "p.yaml"
    profile.write_text("cloudprovider: {gcp: {service_account: null}}")
    values = options.resolve(profile, environ={}).values
    assert not gcp_options.deletes_itself(values) and "there is no service_account" in gcp_options.ending(values)


def test_what_becomes_of_a_machine_is_said():
    def said(**keywords):
        return gcp_options.ending(options.resolve(cloud="gcp", keywords=keywords, environ={}).values)

    assert "delete themselves" in said() and "service account default" in said()
    assert "instance_scopes has no compute" in said(instance_scopes=["logging.write"])
    assert "auto_shutdown is off" in said(auto_shutdown=False)


def test_labels():
    assert gcp_options.labels({"createdBy": "Me", "flag": True, "n": 3}) == {
        "createdby": "me",
        "flag": "true",
        "n": "3",
    }
    with pytest.raises(CloudError, match="there are 60 instance_tags"):
        gcp_options.labels({f"a{i}": "x" for i in range(60)})
