"""What resolving does not do twice, and what checking a file does not import."""

from __future__ import annotations

import collections
import subprocess
import sys

import pytest

from dask_cloudvm import options, profile, schema


def test_validate_imports_neither_dask_nor_distributed_nor_a_cloud_sdk(profile):
    path = profile({"ec2": {"zone": "a", "firewall": {"cidr": "10.0.0.0/8"}}})
    code = f"import sys, dask_cloudvm.options as o; o.validate({str(path)!r}); print(*sys.modules)"
    loaded = set(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    )
    assert "jsonschema" in loaded
    assert not loaded & {"dask", "distributed", "dask_cloudprovider", "boto3", "google.auth", "azure.core", "numpy"}


def test_resolve_imports_dask_but_not_distributed(profile):
    path = profile({"ec2": {"zone": "a"}})
    code = f"import sys, dask_cloudvm.options as o; o.resolve({str(path)!r}); print(*sys.modules)"
    loaded = set(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    )
    assert "dask.config" in loaded
    assert not loaded & {"distributed", "dask_cloudprovider", "boto3", "numpy"}


@pytest.fixture
def opened(monkeypatch):
    """How often each file is opened."""
    count: collections.Counter[str] = collections.Counter()
    load = profile.load
    monkeypatch.setattr(profile, "load", lambda file: (count.update([str(file)]), load(file))[1])
    return count


def test_each_file_is_read_once(opened, world):
    world.resolve(dask_yaml={"cluster": {"n_workers": 1}}, profiles=[{"ec2": {}}, {"cluster": {"n_workers": 2}}])
    assert opened == dict.fromkeys(map(str, [world.dask_yaml, *world.profiles]), 1)


def test_each_validator_is_made_once(world):
    said = {"cluster": {"n_workers": 1, "debug": True, "adaptive": {"maximum": 2}}, "ec2": {"zone": "a", "spot": True}}
    schema.validator.cache_clear()
    for _ in range(3):
        world.resolve(dask_yaml=said, profiles=[said, said], keywords={"zone": "b"}, cloud="ec2")
    made = schema.validator.cache_info().misses
    assert made == 2 * 5, "one for each layer's part of the five options, one for the whole"


def test_nothing_is_checked_that_nobody_said(world):
    schema.validator.cache_clear()
    options.resolve(cloud="ec2", environ={})
    assert schema.validator.cache_info().misses == 0
