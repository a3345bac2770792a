"""The schemas hold together, and what is derived from them says what they say."""

from __future__ import annotations

import ast
import inspect
import json
import re
from functools import cache

import pytest
import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from dask_cloudvm import options, schema
from dask_cloudvm.checks import PACKAGES, Checks
from dask_cloudvm.layers import Layer
from dask_cloudvm.options import combine

FILES = (schema.SHARED, *schema.clouds(), "profile")
EVERYWHERE = ["cluster", *schema.clouds()]


def walk(node, path=()):
    """Every mapping of a schema file with its path."""
    if isinstance(node, dict):
        yield path, node
        for key, value in node.items():
            yield from walk(value, (*path, key))
    elif isinstance(node, list):
        for i, value in enumerate(node):
            yield from walk(value, (*path, i))


@pytest.mark.parametrize("name", FILES)
def test_every_file_is_a_json_schema(name):
    Draft202012Validator.check_schema(schema.load(name))


@pytest.mark.parametrize("name", FILES)
def test_every_pattern_says_in_words_what_is_right(name):
    without = [
        path for path, node in walk(schema.load(name)) if isinstance(node.get("pattern"), str) and "x-help" not in node
    ]
    assert without == []


@pytest.mark.parametrize("cloud", EVERYWHERE)
def test_every_option_has_one_sentence_and_a_right_default(cloud):
    for option in schema.options(cloud).values():
        assert option.description.endswith(".") and option.description[0] != " ", option
        assert not re.search(r"[.!?] +[A-Z]", option.description), f"{option} has more than one sentence"
        assert schema.validator(cloud, option.name, whole=True).is_valid(option.default), option
        assert option.types, option
        json.dumps(option.default)


@pytest.mark.parametrize("cloud", EVERYWHERE)
def test_every_spelling_leads_to_an_option(cloud):
    known = schema.options(cloud)
    for spelling, name in schema.names(cloud).items():
        assert name in known
        assert spelling == name or spelling in known[name].aliases
    for path, node in walk(schema.load(cloud)):
        if "x-alias" in node:
            assert node["x-alias"] in known and path[-1] in schema.names(cloud), path


@pytest.mark.parametrize("cloud", EVERYWHERE)
def test_a_role_s_option_is_like_the_common_one_but_null(cloud):
    known = schema.options(cloud)
    for option in known.values():
        if option.overrides:
            common = known[option.overrides]
            assert option.default is None and option.role in schema.ROLES
            assert set(option.types) == {*common.types, "null"}
            assert {alias.removeprefix(f"{option.role}_") for alias in option.aliases} <= set(common.aliases)


@pytest.mark.parametrize("cloud", schema.clouds())
def test_a_cloud_has_every_shared_option(cloud):
    shared = schema.options(schema.SHARED)
    assert [o.name for o in schema.options(cloud).values() if o.shared] == list(shared)
    assert all(schema.options(cloud)[name].schema == option.schema for name, option in shared.items())


def test_words_that_mean_the_same_on_every_real_cloud():
    common = "region zone spot firewall vnet subnet image machine_type disk_size disk_type service_account"
    common += " extra_vm_options instance_tags docker_image public_ingress"
    missing = {c: set(common.split()) - set(schema.names(c)) for c in schema.clouds() if c != "local"}
    assert missing == {"ec2": {"public_ingress"}, "gcp": set(), "azure": set()}


@pytest.mark.parametrize("cloud", schema.clouds())
def test_the_signature_and_the_docstring_have_every_option(cloud):
    signature = schema.signature(cloud)
    assert list(signature.parameters) == list(schema.options(cloud))
    assert {p.default for p in signature.parameters.values()} == {None}
    text = schema.parameters(cloud)
    assert text.count("Also spelled") == sum(bool(option.aliases) for option in schema.options(cloud).values())
    for option in schema.options(cloud).values():
        [kind] = re.findall(rf"(?m)^{option.name} : (.+), default ", text)
        assert len(kind.split(" or ")) == len(set(option.types) - {"null"}) and "None" not in kind
        assert option.description in text
        assert all(re.search(rf"\b{alias}\b", text) for alias in option.aliases)
        ast.parse(schema.python_type(option), mode="eval")
        assert len(schema.python_type(option).split(" | ")) == len({*option.types, "null"})


def test_leading_parameters_are_not_repeated():
    name = inspect.Parameter("name", inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None)
    parameters = list(schema.signature("local", (name,)).parameters.values())
    assert parameters[0] is name and [p.name for p in parameters].count("name") == 1


@pytest.mark.parametrize("cloud", EVERYWHERE)
def test_tables_have_a_row_an_option_with_a_variable_that_works(cloud):
    rows = {row["option"]: row for row in schema.table(cloud)}
    assert list(rows) == list(schema.options(cloud))
    for option in schema.options(cloud).values():
        row = rows[option.name]
        assert row["default"] == option.default and row["aliases"] == list(option.aliases)
        section = schema.SHARED if option.shared else cloud
        assert row["environment"] == f"DASK_CLOUDPROVIDER__{section}__{option.name}".upper()
        if not option.secret and cloud != schema.SHARED:
            environ = {row["environment"]: schema.show(option.default)}
            assert options.resolve(cloud=cloud, environ=environ).origins[option.name] == f"${row['environment']}"
    own = [o for o in schema.options(cloud).values() if cloud == schema.SHARED or not o.shared]
    assert schema.markdown(cloud).count("\n") == len(own) + 1


# The JSON Schema that editors use


@cache
def bundle(cloud=None) -> Draft202012Validator:
    return Draft202012Validator(schema.bundle(cloud), format_checker=schema.formats())


@pytest.mark.parametrize("cloud", [None, *schema.clouds()])
def test_the_bundle_stands_alone(cloud, tmp_path, monkeypatch):
    document = json.loads(json.dumps(schema.bundle(cloud)))
    Draft202012Validator.check_schema(document)
    assert document["$id"] == f"{cloud or 'profile'}.json" and document["title"] == (cloud or "profile")
    inside = {node["$id"] for _, node in walk(document) if "$id" in node}
    files = {node["$ref"].split("#")[0] for _, node in walk(document) if "$ref" in node} - {""}
    assert files <= inside, "every reference is to something in the document"


@pytest.mark.parametrize("path", sorted(schema.folder("config").glob("*.yaml")), ids=lambda path: path.name)
def test_ready_made_profiles_are_right_to_an_editor(path):
    bundle().validate(yaml.safe_load(path.read_text()))


def test_the_bundle_of_a_cloud_is_for_its_section():
    assert bundle("ec2").is_valid({"zone": "a", "n_workers": 3})
    assert not bundle("ec2").is_valid({"zone": 5}) and not bundle("ec2").is_valid({"projectid": "x"})


# Where the two verdicts differ by design, nothing is generated: null for an option whose default is not null means that
# default, and empty text means null where null is the default.
TEXTS = [
    "a",
    "me",
    "10.0.0.0/8",
    "300.0.0.1",
    "5 minutes",
    "soon",
    "auto",
    "4 GiB",
    "t3.nano",
    "e2-standard-2",
    " ",
    "1",
]
TEXTS += ["Standard_A1", "ami-1", "vpc-1", "sg-1", "subnet-1", "tls", "fallback", "MIGRATE", "My_Name", "gp3", "pd-ssd"]
KEYS = ["a", "B C", "minimum", "maximum", "interval", "ports", "port", "cidr", "sku", "id", "Name", "name", "publisher"]
scalars = st.sampled_from(TEXTS) | st.booleans() | st.integers(-2, 70000) | st.sampled_from([0.0, 1.0, 1.5, -0.5])
keys = st.sampled_from([*KEYS, "product"])
values = st.recursive(scalars, lambda v: st.lists(v, max_size=3) | st.dictionaries(keys, v, max_size=3), max_leaves=5)
CANDIDATES = [*TEXTS, *([text] for text in TEXTS), [], {}, {"a": "b"}, True, False, 0, 1, 2.0, 3.5, 70000]
CANDIDATES += [{"maximum": 3}, {"ports": [22]}, {"cidr": "me"}, {"name": "a", "publisher": "b", "product": "c"}]


@cache
def right(cloud: str, spelling: str):
    """Values that our own check of one option lets through."""
    name = schema.names(cloud)[spelling]
    validator = schema.validator(cloud, name, whole=True)
    return st.sampled_from([schema.options(cloud)[name].default, *(c for c in CANDIDATES if validator.is_valid(c))])


def section(cloud: str, *others):
    """A few options of a cloud under any spelling, most of them right; ``others`` are more pairs of key and value."""
    spellings = [s for s, name in schema.names(cloud).items() if not schema.options(cloud)[name].secret]
    spelling = st.sampled_from(spellings)
    good = spelling.flatmap(lambda s: st.tuples(st.just(s), right(cloud, s)))
    pairs = st.one_of(*[good] * 8, *others)
    return st.lists(pairs, max_size=4, unique_by=lambda pair: schema.names(cloud).get(pair[0], pair[0])).map(dict)


def careless(cloud: str):
    spelling = st.sampled_from([s for s, name in schema.names(cloud).items() if not schema.options(cloud)[name].secret])
    return section(cloud, st.tuples(spelling | st.sampled_from(["nope", "worker_nope", "Zone"]), values))


trees = st.fixed_dictionaries(
    {},
    optional={
        "cluster": careless("cluster") | st.none(),
        **{cloud: careless(cloud) for cloud in schema.clouds()},
        "cloud": st.sampled_from([*schema.clouds(), *schema.clouds(), "nope", 5]),
        "ecs": st.none() | st.dictionaries(keys, values, max_size=1) | scalars,
    },
)


def agree(tree: dict) -> None:
    checks = Checks()
    checks.together = lambda values: None  # what options exclude each other is no matter of flat properties
    layer = Layer(tree, {(): "here"})
    checks.top(layer)
    checks.everything(layer)
    errors = [error.message for error in bundle().iter_errors({"cloudprovider": tree})]
    assert bool(checks.problems) == bool(errors), (checks.problems, errors)


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(EVERYWHERE).flatmap(lambda c: st.tuples(st.just(c), st.sampled_from([*schema.names(c)]), values))
)
def test_an_editor_and_we_agree_on_one_value(said):
    cloud, spelling, value = said
    assume(not schema.options(cloud)[schema.names(cloud)[spelling]].secret)
    agree({cloud: {spelling: value}})


@settings(max_examples=200, deadline=None)
@given(trees, st.none() | trees, st.none() | careless("azure"))
def test_an_editor_and_we_agree_on_a_profile(tree, named, azurevm):
    if azurevm is not None:
        tree = {**tree, "azure": {**tree.get("azure", {}), "azurevm": azurevm}}
    if named is not None:
        tree = {**tree, "profiles": {"some": named}}
    assume(not mapping_in_two_sections(tree) and not (named and mapping_in_two_sections(named)))
    agree(tree)


def mapping_in_two_sections(tree: dict) -> bool:
    """A mapping may be complete only once sections are merged, which JSON Schema cannot do."""
    azure = tree.get("azure") or {}
    for cloud in schema.clouds():
        said = [tree.get("cluster") or {}, tree.get(cloud) or {}]
        said += [azure.get("azurevm") or {}] if cloud == "azure" else []
        names = [
            schema.names(cloud).get(k) for s in said for k, v in s.items() if isinstance(v, dict) and k != "azurevm"
        ]
        if len(set(names)) < len(names):
            return True
    return False


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(schema.clouds()).flatmap(lambda cloud: st.tuples(st.just(cloud), section(cloud))))
def test_what_is_right_keeps_its_value(said):
    cloud, section = said
    assume(not set(section) & set(PACKAGES))  # they need runtime: uv, see test_environment.py
    bundle(cloud).validate(section)
    resolved, _ = combine([Layer({cloud: section}, {(): "here"})])
    for spelling, value in section.items():
        default = schema.options(cloud)[schema.names(cloud)[spelling]].default
        merged = {**default, **value} if isinstance(default, dict) and isinstance(value, dict) else value
        assert resolved[schema.names(cloud)[spelling]] == merged
