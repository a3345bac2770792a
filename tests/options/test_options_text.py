"""Text from the environment and ``--set`` is read by the type that the schema gives the option."""

from __future__ import annotations

import json
import warnings
from datetime import timedelta

import dask.utils
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from dask_cloudvm import options, schema
from dask_cloudvm.errors import ProfileError
from dask_cloudvm.text import NotPlain, Text, plain, read

READ = [
    ("gcp", "GCP__PROJECTID", "123456", "projectid", "123456"),
    ("gcp", "GCP__PROJECTID", "0x10", "projectid", "0x10"),
    ("gcp", "GCP__PROJECTID", "", "projectid", None),
    ("gcp", "GCP__PROJECTID", "'quoted'", "projectid", "quoted"),
    ("gcp", "GCP__INSTANCE_SCOPES", "1, 2", "instance_scopes", ["1", "2"]),
    ("gcp", "GCP__PREEMPTIBLE", "Yes", "spot", True),
    ("gcp", "GCP__NGPUS", "none", "ngpus", None),
    ("azure", "AZURE__ZONE", "1,3", "zone", ["1", "3"]),
    ("azure", "AZURE__IDENTITY", "system", "identity", "system"),
    ("azure", "AZURE__IDENTITY", "type: SystemAssigned", "identity", {"type": "SystemAssigned"}),
    ("azure", "AZURE__AZUREVM__VM_IMAGE__sharedGalleryImageId", "/x", "image", {"sharedGalleryImageId": "/x"}),
    *[("ec2", "CLUSTER__SECURITY", word, "security", False) for word in ("off", "no", "0", "False", "FALSE", " off ")],
    *[("ec2", "CLUSTER__DEBUG", word, "debug", True) for word in ("on", "yes", "1", "True", "true")],
    ("ec2", "CLUSTER__SPOT", "fallback", "spot", "fallback"),
    ("ec2", "CLUSTER__SPOT", "1", "spot", True),
    ("ec2", "CLUSTER__N_WORKERS", " 7 ", "n_workers", 7),
    ("ec2", "CLUSTER__MAX_PRICE", "0.25", "max_price", 0.25),
    ("ec2", "CLUSTER__IDLE_TIMEOUT", "90", "idle_timeout", 90),
    ("ec2", "CLUSTER__IDLE_TIMEOUT", "1.5 hours", "idle_timeout", "1.5 hours"),
    ("ec2", "CLUSTER__IDLE_TIMEOUT", "null", "idle_timeout", None),
    ("ec2", "CLUSTER__DOCKER_ARGS", "null", "docker_args", "null"),
    ("ec2", "CLUSTER__DOCKER_ARGS", "", "docker_args", ""),
    ("ec2", "CLUSTER__DOCKER_IMAGE", "a:1", "docker_image", "a:1"),
    ("ec2", "EC2__ZONE", "us-east-1a", "zone", "us-east-1a"),
    ("ec2", "EC2__ZONE", "us-east-1a, us-east-1b", "zone", ["us-east-1a", "us-east-1b"]),
    ("ec2", "EC2__ZONE", "['us-east-1a']", "zone", ["us-east-1a"]),
    ("ec2", "EC2__ZONE", '["us-east-1a"]', "zone", ["us-east-1a"]),
    ("ec2", "EC2__ZONE", "[us-east-1a, us-east-1b]", "zone", ["us-east-1a", "us-east-1b"]),
    ("ec2", "EC2__ZONE", "- us-east-1a\n- us-east-1b", "zone", ["us-east-1a", "us-east-1b"]),
    ("ec2", "EC2__SECURITY_GROUPS", "sg-1,", "security_group", ["sg-1"]),
    ("ec2", "EC2__SECURITY_GROUPS", "[]", "security_group", []),
    ("ec2", "EC2__INSTANCE_TAGS", "{'Team': 'x'}", "instance_tags", {"Team": "x"}),
    ("ec2", "EC2__INSTANCE_TAGS", '{"Team": true}', "instance_tags", {"Team": True}),
    ("ec2", "EC2__INSTANCE_TAGS", "Team: x\nDay: 2026-01-01", "instance_tags", {"Team": "x", "Day": "2026-01-01"}),
    ("ec2", "EC2__INSTANCE_TAGS", "{1: a}", "instance_tags", {"1": "a"}),
    ("ec2", "EC2__INSTANCE_TAGS__createdBy", "1e5", "instance_tags", {"createdBy": "1e5"}),
    ("ec2", "ec2__instance_tags__CREATEDBY", "Me", "instance_tags", {"CREATEDBY": "Me"}),
    ("ec2", "EC2__IAM_INSTANCE_PROFILE__ARN", "arn:aws:x", "iam_instance_profile", {"Arn": "arn:aws:x"}),
    ("ec2", "CLUSTER__ENV_VARS__aB_C", "off", "env_vars", {"aB_C": "off"}),
    ("ec2", "CLUSTER__ADAPTIVE__MAXIMUM", "4", "adaptive", {"maximum": 4}),
    ("ec2", "CLUSTER__ADAPTIVE", "{maximum: 4, interval: 2s}", "adaptive", {"maximum": 4, "interval": "2s"}),
    ("ec2", "CLUSTER__FIREWALL__PORTS", "22,8786", "firewall", {"ports": [22, 8786], "cidr": "me"}),
    (
        "ec2",
        "CLUSTER__FIREWALL__CIDR",
        "10.0.0.0/8, me",
        "firewall",
        {"ports": [8786, 8787], "cidr": ["10.0.0.0/8", "me"]},
    ),
    ("ec2", "CLUSTER__SCHEDULER_OPTIONS__PORT", "0", "scheduler_options", {"port": 0}),
    ("ec2", "CLUSTER__SCHEDULER_OPTIONS__dashboard", "false", "scheduler_options", {"dashboard": False}),
    ("ec2", "CLUSTER__WORKER_OPTIONS__nthreads", "0x10", "worker_options", {"nthreads": 16}),
    ("ec2", "CLUSTER__WORKER_OPTIONS__resources", "{GPU: 1}", "worker_options", {"resources": {"GPU": 1}}),
    ("ec2", "CLUSTER__WORKER_OPTIONS__name", "a b", "worker_options", {"name": "a b"}),
    ("ec2", "CLUSTER__WORKER_OPTIONS__mode", "off", "worker_options", {"mode": "off"}),
    ("ec2", "CLUSTER__WORKER_OPTIONS__x", "null", "worker_options", {"x": None}),
    ("ec2", "CLUSTER__EXTRA_BOOTSTRAP", "pip install a, b", "extra_bootstrap", ["pip install a, b"]),
    ("ec2", "CLUSTER__EXTRA_BOOTSTRAP", "date\nls -l", "extra_bootstrap", ["date", "ls -l"]),
    ("ec2", "CLUSTER__EXTRA_BOOTSTRAP", "['a, b', c]", "extra_bootstrap", ["a, b", "c"]),
    ("local", "LOCAL__MEMORY_LIMIT", "2 GiB", "memory_limit", "2 GiB"),
    ("local", "LOCAL__MEMORY_LIMIT", "1000000", "memory_limit", 1000000),
]


@pytest.mark.parametrize("cloud, variable, text, option, value", READ)
def test_a_variable(cloud, variable, text, option, value):
    resolved = options.resolve(cloud=cloud, environ={f"DASK_CLOUDPROVIDER__{variable}": text})
    assert resolved[option] == value and type(resolved[option]) is type(value)
    assert resolved.given(option)


@pytest.mark.parametrize(
    "cloud, variable, text, option, value",
    [row for row in READ if row[1].isupper() and "__" not in row[1].partition("__")[2]],
)
def test_a_set_is_read_alike(cloud, variable, text, option, value):
    key = variable.partition("__")[2].lower()
    resolved = options.resolve(cloud=cloud, sets=[f"{key}={text}"], environ={})
    assert resolved[option] == value and type(resolved[option]) is type(value)


def test_a_backslash_is_no_reason_for_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resolved = options.resolve(environ={"DASK_CLOUDPROVIDER__CLUSTER__ENV_VARS": r"{'RE': '\d+'}"})
    assert resolved["env_vars"] == {"RE": r"\d+"}


scalars = st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9)
data = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=5), data, max_size=3), st.sampled_from([str, json.dumps, yaml.safe_dump]))
def test_what_is_written_as_python_json_or_yaml_is_read_back(value, write):
    assert read({"type": "object"}, Text(write(value))) == value
    assert read({"type": ["string", "array"]}, Text(write([value]))) == [value]


@given(data)
def test_plain_data_stays_as_it_is(value):
    assert plain(value) == value and type(plain(value)) is type(value)


@pytest.mark.parametrize("value", [object(), {1, 2}, b"x", 1j, float("nan"), float("inf"), print], ids=str)
def test_what_no_profile_could_hold_is_refused_with_its_place(value):
    with pytest.raises(NotPlain) as caught:
        plain({"a": [0, value]}, ("ec2",))
    assert caught.value.path == ("ec2", "a", "1")


def test_a_value_in_itself_is_refused():
    loop: dict = {}
    loop["again"] = [loop]
    with pytest.raises(ProfileError, match=r"^keyword: worker_options.loop: nested too deeply$"):
        options.resolve(keywords={"worker_options": {"loop": loop}}, environ={})


# What the schema lets through, Dask's own readers must understand.


@given(st.from_regex(schema.load("cluster")["$defs"]["duration"]["pattern"].replace("$", r"\Z")))
def test_every_duration_that_the_schema_allows_is_one_to_dask(text):
    assert dask.utils.parse_timedelta(text) >= 0


@given(st.from_regex(schema.load("local")["properties"]["memory_limit"]["pattern"].replace("$", r"\Z")))
def test_every_memory_limit_that_the_schema_allows_is_one_to_dask(text):
    assert text.strip() == "auto" or dask.utils.parse_bytes(text) >= 0


def test_a_timedelta_is_seconds():
    assert plain(timedelta(minutes=1)) == 60
