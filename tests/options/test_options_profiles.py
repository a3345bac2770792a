"""Profiles: positions, several at once, named ones; and what is made of the resolved options."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from dask_cloudvm import options, schema
from dask_cloudvm import profile as reader
from dask_cloudvm.errors import ProfileError

CONFIG = schema.folder("config")


@pytest.mark.parametrize("path", sorted(CONFIG.glob("*.yaml")), ids=lambda path: path.name)
def test_every_ready_made_profile_is_valid(path):
    options.validate(path)


def test_profiles_merge_left_to_right_and_the_origin_of_everything_is_known(profile):
    base = profile(
        """\
        # the base
        cloudprovider:
          cluster: {n_workers: 2, instance_tags: {team: data, tier: low}}
          ec2:
            zone: [a, b]
            firewall:
              ports: [22]
        """,
        "base.yaml",
    )
    gpu = profile(
        """\
        cloudprovider:
          ec2:
            instance_tags: {tier: high}
            worker_instance_type: g6.xlarge
            zone:
              - c
        """,
        "gpu.yaml",
    )
    resolved = options.resolve(base, gpu, environ={})
    assert resolved["instance_tags"] == {"team": "data", "tier": "high"}
    assert resolved["zone"] == ["c"] and resolved["n_workers"] == 2
    assert {name: origin for name, origin in resolved.origins.items() if origin != "default"} == {
        "n_workers": f"{base}:3:13",
        "instance_tags": f"{gpu}:3:5, {base}:3:27",
        "zone": f"{gpu}:5:5",
        "firewall": f"{base}:6:5",
        "worker_machine_type": f"{gpu}:4:5",
    }


def test_two_sections_of_one_file_that_both_say_something_are_both_named(profile):
    path = profile("cloudprovider:\n  cluster: {env_vars: {A: x}}\n  ec2: {env_vars: {B: y}}\n")
    resolved = options.resolve(path, environ={})
    assert resolved["env_vars"] == {"A": "x", "B": "y"}
    assert resolved.origins["env_vars"] == f"{path}:3:9, {path}:2:13"


def test_a_profile_may_hold_other_sections_and_be_json(profile):
    path = profile('{"distributed": {"a": 1}, "cloudprovider": {"ec2": {"zone": "a"}}}', "p.json")
    options.validate(path)
    assert options.resolve(path, environ={})["zone"] == "a"


def test_a_byte_order_mark_is_no_part_of_a_profile(tmp_path):
    (tmp_path / "p.yaml").write_bytes(b"\xef\xbb\xbfcloudprovider: {ec2: {zone: a}}")
    assert options.resolve(tmp_path / "p.yaml", environ={}).origins["zone"] == f"{tmp_path / 'p.yaml'}:1:23"


# Positions


def test_positions_count_characters_and_merged_keys_are_where_they_are_written():
    text = 'é: {😀: 1, "b c": [x, {y: 2}]}\nbase: &base {k: 1, l: 2}\nuse: {<<: *base, l: 3}\n'
    tree, where = reader.parse(text, "f")
    assert tree == {"é": {"😀": 1, "b c": ["x", {"y": 2}]}, "base": {"k": 1, "l": 2}, "use": {"k": 1, "l": 3}}
    assert where["é", "😀"] == "f:1:5" and where["é", "b c"] == "f:1:11"
    assert where["é", "b c", "1"] == "f:1:22" and where["é", "b c", "1", "y"] == "f:1:23"
    assert where["use", "k"] == "f:2:14" and where["use", "l"] == "f:3:18"


@given(
    st.dictionaries(st.text("abcé😀", min_size=1), st.lists(st.integers(), max_size=3), min_size=1), st.integers(1, 4)
)
def test_every_position_is_that_of_its_key(tree, indent):
    text = yaml.safe_dump({"top": tree}, indent=indent, allow_unicode=True)
    lines = text.split("\n")
    found, where = reader.parse(text, "file")
    assert found == {"top": tree}
    for key in tree:
        _, line, column = where["top", key].split(":")
        assert lines[int(line) - 1][int(column) - 1 :].lstrip("'\"").startswith(key)


@given(st.lists(st.tuples(st.lists(st.integers(0, 9), max_size=4), st.sampled_from("abc"), st.integers()), max_size=6))
def test_merged_keys_are_what_yaml_makes_of_them(entries):
    lines = []
    for i, (bases, key, value) in enumerate(entries):
        inherited = ", ".join(f"*a{base}" for base in bases if base < i)
        lines.append(f"a{i}: &a{i} {{x: {i}, <<: [{inherited}], {key}: {value}}}")
    text = "\n".join(lines) or "{}"
    assert reader.parse(text, "f")[0] == yaml.safe_load(text)


# Named profiles

NAMED = {"profiles": {"gpu": {"ec2": {"instance_type": "g6.xlarge"}}, "many": {"cluster": {"n_workers": 9}}}}


def test_a_name_is_looked_up_in_dasks_configuration(dask_yaml):
    file = dask_yaml({"cluster": {"n_workers": 1, "debug": True}, **NAMED})
    resolved = options.resolve("gpu", "many", environ={})
    assert (resolved.cloud, resolved["machine_type"], resolved["n_workers"]) == ("ec2", "g6.xlarge", 9)
    assert resolved["debug"] is True
    assert resolved.origins["machine_type"] == f"{file}:8:9"


def test_a_name_is_looked_up_in_the_profiles_to_its_left_the_nearest_first(profile, dask_yaml):
    dask_yaml(NAMED)
    path = profile({"profiles": {"gpu": {"gcp": {}}, "inner": {"profiles": {"deep": {"cluster": {"n_workers": 5}}}}}})
    assert options.resolve("gpu", environ={}).cloud == "ec2"
    assert options.resolve(path, "gpu", environ={}).cloud == "gcp"
    assert options.resolve(path, "gpu", "many", environ={})["n_workers"] == 9
    assert options.resolve(path, "inner", "deep", environ={})["n_workers"] == 5
    with pytest.raises(ProfileError, match="there is gpu, many; did you mean many"):
        options.resolve("man", path, environ={})


def test_a_named_profile_that_is_not_asked_for_says_nothing(dask_yaml):
    dask_yaml(NAMED)
    assert set(options.resolve(environ={}).origins.values()) == {"default"}


def test_a_file_is_read_where_the_name_is_a_path(profile, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    profile({"ec2": {}}, "plain")
    assert options.resolve("plain", environ={}).cloud == "ec2"
    assert options.resolve(Path("plain"), environ={}).cloud == "ec2"


# Resolved options


def resolved(**keywords):
    return options.resolve(cloud="ec2", keywords=keywords, environ={})


def test_every_option_has_a_value_and_an_origin():
    for cloud in schema.clouds():
        one = options.resolve(cloud=cloud, environ={})
        assert one.values.keys() == one.origins.keys() == schema.options(cloud).keys()
        assert one.values == {name: option.default for name, option in schema.options(cloud).items()}


def test_equal_options_have_equal_digests_however_they_were_given(profile):
    tags = {"instance_tags": {"a": "1", "b": "2"}, "zone": ["a"], "idle_timeout": 90, "disk_size": 50}
    path = profile(
        {
            "cluster": {"idle_timeout": 90, "instance_tags": {"b": "2"}},
            "ec2": {"availability_zone": ["a"], "instance_tags": {"a": "1"}},
        }
    )
    environ = {"DASK_CLOUDPROVIDER__EC2__DISK_SIZE": "50", "DASK_CLOUDPROVIDER__CLUSTER__IDLE_TIMEOUT": "90"}
    other = options.resolve(path, environ=environ)
    assert other.values == resolved(**tags).values
    assert other.digest() == resolved(**tags).digest() and len(other.digest()) == 12
    assert other.differences(resolved(**tags).identity()) == []


def test_live_options_are_no_part_of_the_identity():
    live = {"name": "etl", "n_workers": 5, "adaptive": {"maximum": 3}, "start_timeout": "1s", "debug": True}
    live |= {"shutdown_on_close": False, "replacements": 1}
    assert {o.name for o in schema.options("ec2").values() if o.live} == set(live)
    assert resolved(**live).digest() == resolved().digest()
    assert resolved(**live).differences(resolved().values) == []


@pytest.mark.parametrize(
    "name, value",
    [
        ("zone", "a"),
        ("instance_tags", {"a": True}),
        ("idle_timeout", None),
        ("worker_machine_type", "t3.nano"),
        ("spot", True),
    ],
)
def test_any_other_option_changes_the_digest_and_is_named(name, value):
    one = resolved(**{name: value})
    if value is None:
        one = options.resolve(cloud="ec2", sets=[f"{name}=null"], environ={})
    assert one.digest() != resolved().digest()
    assert one.differences(resolved().values) == [name]
    through_json = json.loads(json.dumps(one.identity()))
    assert one.differences(through_json) == []


def test_true_and_1_differ_for_the_digest_and_are_named():
    one, other = resolved(instance_tags={"a": True}), resolved(instance_tags={"a": 1})
    assert one.digest() != other.digest() and one.differences(other.identity()) == ["instance_tags"]


def test_the_cloud_is_part_of_the_digest_and_the_secret_is_not():
    gcp = options.resolve(cloud="gcp", environ={})
    secret = options.resolve(cloud="gcp", keywords={"service_account_credentials": {"private_key": "x"}}, environ={})
    assert gcp.digest() == secret.digest()
    assert len({options.resolve(cloud=cloud, environ={}).digest() for cloud in schema.clouds()}) == len(schema.clouds())


def test_explain_has_a_row_an_option_with_value_and_origin(profile):
    path = profile({"ec2": {"zone": "a"}})
    rows = options.resolve(path, keywords={"n_workers": 3}, environ={}).explain()
    assert [row["option"] for row in rows] == list(schema.options("ec2"))
    by_name = {row["option"]: row for row in rows}
    assert by_name["zone"] == {"option": "zone", "value": "a", "origin": f"{path}:3:5"}
    assert by_name["n_workers"] == {"option": "n_workers", "value": 3, "origin": "keyword"}
    assert by_name["spot"] == {"option": "spot", "value": False, "origin": "default"}


def test_an_address_with_a_password_is_a_secret():
    index = "https://me:hunter2@example.com/simple"
    found = resolved(
        runtime="uv", packages=[f"--index-url {index}", "s3fs"], env_vars={"UV_INDEX_URL": index, "A": "b"}
    )
    shown = {row["option"]: row["value"] for row in found.explain()}
    assert shown["packages"] == ["***", "s3fs"] and shown["env_vars"] == {"UV_INDEX_URL": "***", "A": "b"}
    assert index in found.secrets()


def test_explain_shows_no_secret():
    hidden = {
        "AWS_SECRET_ACCESS_KEY": "s3cr3t-1",
        "MY_KEY": "s3cr3t-2",
        "Db_Password": "s3cr3t-3",
        "api_token": "s3cr3t-4",
    }
    keywords = {
        "env_vars": {**hidden, "PATH": "/bin"},
        "service_account_credentials": {"private_key": "s3cr3t-5"},
        "extra_vm_options": {"osProfile": [{"adminPassword": "s3cr3t-6", "KeyName": "shown"}]},
    }
    one = options.resolve(cloud="gcp", keywords=keywords, environ={})
    text = json.dumps(one.explain())
    assert "s3cr3t" not in text
    assert "/bin" in text and "shown" in text
    assert one["env_vars"]["MY_KEY"] == "s3cr3t-2", "only what is shown is hidden"
    assert {"s3cr3t-1", "s3cr3t-2", "s3cr3t-3", "s3cr3t-4", "s3cr3t-6"} <= set(one.secrets())
    assert not {"/bin", "shown"} & set(one.secrets())


def test_with_values_is_a_copy():
    one = resolved()
    other = one.with_values("cluster etl", n_workers=3)
    assert (one["n_workers"], other["n_workers"]) == (0, 3)
    assert other.origins["n_workers"] == "cluster etl" and not one.given("n_workers")
