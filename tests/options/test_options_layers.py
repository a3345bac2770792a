"""Which layer wins and that its origin is told, against a model of a few lines; then every rule by itself."""

from __future__ import annotations

import copy
import itertools
import json
import os
from datetime import timedelta

import dask.config
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from dask_cloudvm import options, schema
from dask_cloudvm.errors import ProfileError

anew = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)  # World is made for that

# Lowest first. Keywords and --set name no section: they are the most specific.
LAYERS = ("dask yaml", "a.yaml", "b.yaml", "environment", "dask.config.set", "keyword", "--set")
SECTIONS = ("cluster", "azure", "azure.azurevm")
SPELLINGS = {
    "disk_size": ("disk_size", "filesystem_size"),
    "docker_image": ("docker_image",),
    "extra_bootstrap": ("extra_bootstrap",),
    "instance_tags": ("instance_tags", "tags"),
    "extra_vm_options": ("extra_vm_options", "extra_options"),
}
MAKE = {
    "disk_size": lambda i: i,
    "docker_image": lambda i: f"image:{i}",
    "extra_bootstrap": lambda i: [f"echo {i}", "date"],
    "instance_tags": lambda i: {"Same": str(i), f"key{i}": "x"},
    "extra_vm_options": lambda i: {"deep": {"same": i, f"key{i}": [i]}},
}


def sections_of(option: str) -> tuple[str, ...]:
    return SECTIONS if option in schema.options("cluster") else SECTIONS[1:]


def spellings_of(option: str, section: str) -> tuple[str, ...]:
    return SPELLINGS[option][:1] if section == "cluster" else SPELLINGS[option]


def sayings(option: str):
    """Layer -> section -> how the option is spelled there."""
    in_section = {s: st.none() | st.sampled_from(spellings_of(option, s)) for s in sections_of(option)}
    return st.dictionaries(st.sampled_from(LAYERS), st.fixed_dictionaries(in_section))


def put(tree: dict, path: str, value) -> None:
    *parents, last = path.split(".")
    for key in parents:
        tree = tree.setdefault(key, {})
    tree[last] = value


def tell(said: dict) -> tuple[dict[str, dict], dict[str, list]]:
    """What each layer holds, and of each option what was said where, lowest first. No value is said twice."""
    number = itertools.count(1)
    trees: dict[str, dict] = {layer: {} for layer in LAYERS}
    told: dict[str, list] = {option: [] for option in said}
    for layer in LAYERS:
        for option, by_layer in said.items():
            for section in sections_of(option):
                spelling = by_layer.get(layer, {}).get(section)
                direct = layer in LAYERS[-2:]
                if spelling is None or (direct and told[option] and told[option][-1][0] == layer):
                    continue
                value = MAKE[option](next(number))
                put(trees[layer], spelling if direct else f"{section}.{spelling}", value)
                told[option].append((layer, value))
    return trees, told


def flat(tree: dict, depth: int) -> dict[str, object]:
    """``{"azure.disk_size": 1}`` for the options in a tree."""
    found = {}
    for key, value in tree.items():
        inner = depth and isinstance(value, dict) and key in ("cluster", "azure", "azurevm")
        found |= {f"{key}.{k}": v for k, v in flat(value, depth - 1).items()} if inner else {key: value}
    return found


def over(low, high):
    if isinstance(low, dict) and isinstance(high, dict):
        return low | {key: over(low.get(key), value) for key, value in high.items()}
    return high


def place(world, layer: str) -> str:
    files = {"dask yaml": world.dask_yaml, "a.yaml": world.profiles[0], "b.yaml": world.profiles[1]}
    return f"{files[layer]}:" if layer in files else {"environment": "$DASK_CLOUDPROVIDER__"}.get(layer, layer)


@anew
@given(st.fixed_dictionaries({option: sayings(option) for option in SPELLINGS}), st.sampled_from([str, json.dumps]))
def test_the_highest_layer_and_then_the_more_specific_section_wins(world, said, write):
    trees, told = tell(said)
    resolved = world.resolve(
        dask_yaml=trees["dask yaml"],
        profiles=[trees["a.yaml"], trees["b.yaml"]],
        environ={
            f"DASK_CLOUDPROVIDER__{k}".replace(".", "__").upper(): write(v)
            for k, v in flat(trees["environment"], 2).items()
        },
        configured=flat(trees["dask.config.set"], 2),
        keywords=trees["keyword"],
        sets=[f"{key}={write(value)}" for key, value in trees["--set"].items()],
        cloud="azure",
    )
    for option, sayings in told.items():
        expected = schema.options("azure")[option].default
        for _, value in sayings:
            expected = over(expected, value)
        assert resolved[option] == expected
        layers = [layer for layer, _ in sayings] or ["default"]
        named = dict.fromkeys(reversed(layers)) if isinstance(expected, dict) else layers[-1:]
        origins = resolved.origins[option].split(", ")
        assert [p for p, _ in itertools.groupby(layer_of(world, origin) for origin in origins)] == list(named)


def layer_of(world, origin: str) -> str:
    return next((layer for layer in LAYERS if origin.startswith(place(world, layer))), origin)


ROLES = {"machine_type": "t3.", "image": "ami-", "disk_size": 0, "docker_image": "me:", "extra_vm_options": {}}


def role_value(option: str, number: int):
    base = ROLES[option]
    return {"same": number, f"key{number}": 1} if base == {} else base + number if base == 0 else f"{base}{number}"


@anew
@given(
    st.sampled_from(sorted(ROLES)),
    st.dictionaries(
        st.sampled_from(["", "scheduler_", "worker_"]),
        st.tuples(st.sampled_from(["a.yaml", "b.yaml", "keyword"]), st.none() | st.integers(1, 99)),
    ),
)
@example("machine_type", {"": ("a.yaml", 1), "worker_": ("keyword", None)})
def test_a_role_has_its_own_value_or_else_the_common_one(world, option, said):
    trees = {layer: {} for layer in ("a.yaml", "b.yaml", "keyword")}
    for prefix, (layer, number) in said.items():
        trees[layer][prefix + option] = None if number is None else role_value(option, number)
    resolved = world.resolve(
        profiles=[{"ec2": trees["a.yaml"]}, {"ec2": trees["b.yaml"]}], keywords=trees["keyword"], cloud="ec2"
    )
    common = trees[said[""][0]][option] if "" in said else None
    common = schema.options("ec2")[option].default if common is None else common
    for role in schema.ROLES:
        own = trees[said[f"{role}_"][0]][f"{role}_{option}"] if f"{role}_" in said else None
        values = resolved.for_role(role)
        assert values[option] == (common if own is None else over(common, own))
        assert not [name for name in values if name.startswith(("scheduler_", "worker_")) and name.endswith(option)]


def test_a_role_s_values_are_a_copy():
    resolved = options.resolve(cloud="ec2", keywords={"instance_tags": {"a": "b"}}, environ={})
    resolved.for_role("worker")["instance_tags"]["a"] = "changed"
    assert resolved["instance_tags"] == {"a": "b"}


# Spellings


@pytest.mark.parametrize("cloud", schema.clouds())
def test_every_alias_is_its_option(cloud, profile):
    for option in schema.options(cloud).values():
        for alias in option.aliases:
            value = {"worker_vm_size": "Standard_D4s_v5"}.get(alias, a_value(option))
            said = options.resolve(profile({cloud: {alias: value}}), environ={})
            assert said.values == options.resolve(profile({cloud: {option.name: value}}), environ={}).values
            assert said.given(option.name)


def a_value(option):
    """Some right value that is not the default."""
    pattern = option.schema.get("pattern", "")
    by_pattern = {"^ami-": "ami-1", "^vpc-": "vpc-1", "^subnet-": "subnet-1", "^sg-": "sg-1", "^[1-9]$": "3"}
    machines = {"^[a-z0-9-]+[.][a-z0-9-]+$": "t3.nano", "^[A-Za-z]+_[A-Za-z0-9_-]+$": "Standard_D4s_v5"}
    by_type = {"boolean": True, "integer": 77, "number": 5, "string": "x", "object": {}, "array": []}
    return by_pattern.get(pattern) or machines.get(pattern) or by_type[option.types[0]]


def test_both_spellings_in_one_section_are_a_problem_and_in_two_sections_are_not(profile):
    with pytest.raises(ProfileError, match="zone and availability_zone are the same option; keep one"):
        options.resolve(profile({"ec2": {"availability_zone": "a", "zone": "b"}}), environ={})
    path = profile({"azure": {"vm_size": "Standard_A1", "azurevm": {"machine_type": "Standard_A2"}}})
    assert options.resolve(path, environ={})["machine_type"] == "Standard_A2"
    other = profile({"azure": {"vm_size": "Standard_A3"}}, "other.yaml")
    assert options.resolve(path, other, environ={})["machine_type"] == "Standard_A3"


def test_hyphens_are_underscores(profile):
    path = profile("cloudprovider: {cluster: {n-workers: 3}, ec2: {instance-type: t3.nano, instance-tags: {a-b: c}}}")
    resolved = options.resolve(path, sets=["disk-size=9"], environ={})
    assert (resolved["n_workers"], resolved["machine_type"], resolved["disk_size"]) == (3, "t3.nano", 9)
    assert resolved["instance_tags"] == {"a-b": "c"}


# Null


def test_null_means_nothing_where_it_may_and_else_the_default(profile):
    low = profile({"ec2": {"idle_timeout": "1h", "n_workers": 4, "zone": "a", "instance_tags": {"a": 1}}})
    null = {"ec2": dict.fromkeys(("idle_timeout", "n_workers", "zone", "instance_tags"))}
    resolved = options.resolve(low, profile(null, "null.yaml"), environ={})
    assert [resolved[name] for name in null["ec2"]] == [None, 0, None, {}]
    assert all(resolved.given(name) for name in null["ec2"])
    again = options.resolve(low, profile(null, "null.yaml"), profile({"ec2": {"zone": "b"}}, "c.yaml"), environ={})
    assert again["zone"] == "b"


def test_null_in_the_more_specific_section_wins(profile):
    path = profile({"cluster": {"idle_timeout": "1h", "instance_tags": {"a": "b"}}, "ec2": {"idle_timeout": None}})
    assert options.resolve(path, environ={})["idle_timeout"] is None


def test_a_keyword_of_none_is_not_given(profile):
    path = profile({"ec2": {"zone": "a"}})
    resolved = options.resolve(path, keywords={"zone": None, "region": None}, environ={})
    assert resolved["zone"] == "a" and not resolved.given("region")


def test_empty_text_is_null_where_null_is_the_default(profile):
    path = profile({"gcp": {"projectid": "", "ngpus": "", "docker_args": ""}})
    resolved = options.resolve(path, environ={})
    assert (resolved["projectid"], resolved["ngpus"], resolved["docker_args"]) == (None, None, "")


def test_defaults_are_merged_into_but_never_changed():
    before = copy.deepcopy(schema.options("ec2")["firewall"].default)
    resolved = options.resolve(cloud="ec2", keywords={"firewall": {"cidr": "10.0.0.0/8"}}, environ={})
    assert resolved["firewall"] == {"ports": [8786, 8787], "cidr": "10.0.0.0/8"}
    resolved["firewall"]["ports"].append(22)
    assert schema.options("ec2")["firewall"].default == before
    assert options.resolve(cloud="ec2", environ={})["firewall"] == before


# Which cloud


@pytest.mark.parametrize(
    "layers, cloud",
    [
        ({}, "local"),
        ({"profiles": [{"cluster": {"n_workers": 1}}]}, "local"),
        ({"profiles": [{"ec2": None}]}, "ec2"),
        ({"profiles": [{"gcp": {}}, {"cluster": {}}]}, "gcp"),
        ({"profiles": [{"ec2": {}, "gcp": {}, "cloud": "gcp"}]}, "gcp"),
        ({"profiles": [{"ec2": {}, "gcp": {}}], "sets": ["cloud=ec2"]}, "ec2"),
        ({"profiles": [{"ec2": {}, "gcp": {}}], "environ": {"DASK_CLOUDPROVIDER__CLOUD": "gcp"}}, "gcp"),
        ({"profiles": [{"cloud": "gcp"}, {"cloud": "azure"}]}, "azure"),
        ({"profiles": [{"cloud": "gcp"}], "environ": {"DASK_CLOUDPROVIDER__CLOUD": ""}}, "gcp"),
        ({"profiles": [{"cloud": "gcp"}], "cloud": "ec2"}, "ec2"),
        ({"dask_yaml": {"azure": {}}}, "azure"),
        ({"dask_yaml": {"azure": {}, "gcp": {}}, "profiles": [{"ec2": {}}]}, "ec2"),
        ({"dask_yaml": {"azure": {}, "cloud": "gcp"}}, "gcp"),
        ({"environ": {"DASK_CLOUDPROVIDER__GCP__ZONE": "x"}, "profiles": [{"ec2": {}}]}, "ec2"),
        ({"configured": {"gcp.zone": "x"}, "profiles": [{"ec2": {}}]}, "ec2"),
        ({"configured": {"azure.region": "x"}}, "azure"),
        ({"environ": {"DASK_CLOUDPROVIDER__GCP__ZONE": "x"}}, "gcp"),
        ({"sets": ["ec2.region=x"]}, "ec2"),
    ],
    ids=str,
)
def test_the_cloud(world, layers, cloud):
    assert world.resolve(**layers).cloud == cloud


# --set


def test_each_set_is_over_those_to_its_left(profile):
    path = profile({"ec2": {"instance_tags": {"a": "1", "b": "1"}}})
    sets = [
        "instance_tags={b: '2', c: '2'}",
        "instance_tags.c=3",
        "ec2.disk_size=9",
        "disk_size=8",
        "zone=a",
        "zone=b,c",
    ]
    resolved = options.resolve(path, sets=sets, environ={})
    assert resolved["instance_tags"] == {"a": "1", "b": "2", "c": "3"}
    assert (resolved["disk_size"], resolved["zone"]) == (8, ["b", "c"])
    assert options.resolve(path, sets=["zone=a", "availability_zone=b"], environ={})["zone"] == "b"


def test_a_set_may_hold_equals_signs_and_name_a_section():
    sets = ["cloudprovider.azure.azurevm.vm_size=Standard_A1", "docker_args=-e A=B", "env_vars.URL=http://x?a=b"]
    resolved = options.resolve(cloud="azure", sets=sets, environ={})
    assert resolved["machine_type"] == "Standard_A1" and resolved["docker_args"] == "-e A=B"
    assert resolved["env_vars"] == {"URL": "http://x?a=b"}


# Dask's configuration


def test_a_whole_variable_and_its_parts_are_merged():
    tags = "DASK_CLOUDPROVIDER__EC2__INSTANCE_TAGS"
    environ = {tags: "{'a': '1', 'b': '1'}", f"{tags}__b": "2", f"{tags}__C": "3"}
    resolved = options.resolve(cloud="ec2", environ=environ)
    assert resolved["instance_tags"] == {"a": "1", "b": "2", "C": "3"}


def test_a_section_as_one_variable():
    environ = {"DASK_CLOUDPROVIDER__EC2": "{'region': 'x', 'spot': True}", "DASK_CLOUDPROVIDER__EC2__ZONE": "y"}
    resolved = options.resolve(environ=environ)
    assert (resolved.cloud, resolved["region"], resolved["spot"], resolved["zone"]) == ("ec2", "x", True, "y")
    assert resolved.origins["region"] == "$DASK_CLOUDPROVIDER__EC2"
    assert options.resolve(environ={"DASK_CLOUDPROVIDER__AZURE": "azurevm: {disk_size: 9}"})["disk_size"] == 9


def test_variables_that_dask_has_read_as_well_are_not_taken_for_dask_config_set(world):
    environ = {
        "DASK_CLOUDPROVIDER__EC2__ZONE": "('a', 'b')",
        "DASK_CLOUDPROVIDER__EC2__INSTANCE_TAGS__createdBy": "Me",
        "DASK_CLOUDPROVIDER__GCP__PROJECTID": "123456",
    }
    resolved = world.resolve(environ=environ, cloud="ec2")
    assert resolved["instance_tags"] == {"createdBy": "Me"}
    assert resolved.origins["zone"] == "$DASK_CLOUDPROVIDER__EC2__ZONE"
    assert world.resolve(environ=environ, cloud="gcp")["projectid"] == "123456"


def test_dask_config_set_wins_over_the_environment_and_loses_to_keywords(world):
    environ, configured = {"DASK_CLOUDPROVIDER__EC2__REGION": "env"}, {"ec2.region": "set", "ec2.zone": "set"}
    resolved = world.resolve(environ=environ, configured=configured, keywords={"zone": "keyword"}, cloud="ec2")
    assert (resolved["region"], resolved["zone"]) == ("set", "keyword")


def test_the_process_environment_is_the_default(monkeypatch):
    monkeypatch.setenv("DASK_CLOUDPROVIDER__CLUSTER__N_WORKERS", "7")
    assert options.resolve()["n_workers"] == 7
    assert options.resolve(environ={})["n_workers"] == 0


def test_nothing_that_is_given_or_global_is_changed():
    keywords = {"instance_tags": {"x": "y"}, "zone": ("a", "b"), "worker_options": {"deep": {"er": [1]}}}
    given = copy.deepcopy(keywords)
    with dask.config.set({"cloudprovider": {"ec2": {"instance_tags": {"k": "v"}}, "azure": {"image": {"sku": "y"}}}}):
        before = copy.deepcopy((dask.config.config, dask.config.defaults, dict(os.environ)))
        for cloud in schema.clouds():
            first = options.resolve(cloud=cloud, keywords=keywords if cloud == "ec2" else None, environ={})
            first["instance_tags"]["changed"] = "yes"
            assert first.values != options.resolve(cloud=cloud, environ={}).values
        assert before == (dask.config.config, dask.config.defaults, dict(os.environ))
    assert given == keywords


# Keywords


def test_keywords_may_be_what_python_has_for_it(tmp_path):
    np = pytest.importorskip("numpy")
    keywords = {
        "n_workers": np.int64(3),
        "zone": ("a", "b"),
        "spot": np.bool_(True),
        "max_price": np.float64(0.5),
        "idle_timeout": timedelta(minutes=20),
        "firewall": {"ports": np.array([22, 8786]), "cidr": ("10.0.0.0/8",)},
        "instance_tags": {1: "one"},
        "env_vars": {"FOLDER": tmp_path},
        "disk_size": 20.0,
    }
    resolved = options.resolve(cloud="ec2", keywords=keywords, environ={})
    expected = {
        "n_workers": 3,
        "zone": ["a", "b"],
        "spot": True,
        "max_price": 0.5,
        "idle_timeout": 1200.0,
        "disk_size": 20,
    }
    assert {name: resolved[name] for name in expected} == expected
    assert type(resolved["n_workers"]) is type(resolved["disk_size"]) is int
    assert resolved["firewall"] == {"ports": [22, 8786], "cidr": ["10.0.0.0/8"]}
    assert resolved["instance_tags"] == {"1": "one"} and resolved["env_vars"] == {"FOLDER": str(tmp_path)}
    json.dumps(resolved.values)
