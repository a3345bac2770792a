"""Whatever is in a file, the environment, ``--set`` or a keyword: options come out, or a ProfileError."""

from __future__ import annotations

import os
import random
import warnings

import dask.config
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dask_cloudvm import options, schema
from dask_cloudvm.errors import ProfileError
from dask_cloudvm.options import Options

EXAMPLES = int(os.environ.get("OPTIONS_EXAMPLES", "200"))  # of each test; thousands before a release
anew = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

SPELLINGS = sorted({spelling for cloud in schema.clouds() for spelling in schema.names(cloud)})
SECTIONS = ["cloud", "cluster", *schema.clouds(), "azurevm", "profiles", "ecs", "cloudprovider", "*"]
INNER = ["minimum", "maximum", "ports", "cidr", "port", "id", "Name", "<<"]
texts = st.text(max_size=8) | st.sampled_from(
    ["", "null", "5 minutes", "10.0.0.0/8", "me", "[", "{", "a: b", "1,2", "'"]
)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | texts | st.dates() | st.binary(max_size=4)
keys = st.sampled_from([*SECTIONS, *SPELLINGS, *INNER]) | texts
yaml_data = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=5), max_leaves=20
)
python_data = st.recursive(
    scalars | st.complex_numbers() | st.timedeltas() | st.just(object()) | st.frozensets(st.integers(), max_size=2),
    lambda inner: (
        st.lists(inner, max_size=3) | st.tuples(inner) | st.dictionaries(keys | st.integers(), inner, max_size=3)
    ),
    max_leaves=8,
)
clouds = st.none() | st.sampled_from([*schema.clouds(), "cluster", "profile", "nope", ""])


def outcome(act):
    """The options, or None where every problem is told in one line with its place."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = act()
        except ProfileError as error:
            assert error.problems
            assert str(error).count("\n") == len(error.problems) - 1
            assert all(problem.where and problem.what for problem in error.problems), error.problems
            str(error).encode()
            return None
    if isinstance(found, Options):
        found.digest(), found.explain(), [found.for_role(role) for role in schema.ROLES], found.secrets()
        yaml.safe_dump(found.values)
        assert found.differences(found.values) == []
    return found


def both(path, **given):
    """The outcome of ``resolve``; what ``validate`` lets through can be resolved for every cloud."""
    resolved = outcome(lambda: options.resolve(path, environ={}, **given))
    if outcome(lambda: options.validate(path) or "valid"):
        assert all(outcome(lambda c=cloud: options.resolve(path, cloud=c, environ={})) for cloud in schema.clouds())
    return resolved


@anew
@given(
    st.fixed_dictionaries({"cloudprovider": st.dictionaries(st.sampled_from(SECTIONS), yaml_data, max_size=4)})
    | yaml_data,
    clouds,
)
def test_a_profile_of_any_data(tmp_path, tree, cloud):
    path = tmp_path / "profile.yaml"
    path.write_text(yaml.safe_dump(tree, allow_unicode=True), "utf-8", "surrogatepass")
    both(path, cloud=cloud)


@anew
@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_a_profile_of_any_bytes(tmp_path, raw):
    path = tmp_path / "profile.yaml"
    path.write_bytes(raw)
    assert both(path) is None


PIECES = [
    "&a ",
    "*a",
    "<<: *a",
    "!!int ",
    "!!set ",
    "- ",
    "? ",
    ": ",
    "[",
    "]",
    "{",
    "}",
    "'",
    '"',
    "\t",
    "\n",
    "  ",
    "#",
    "|",
    "---\n",
    "%",
    "\0",
    "é",
    "2026-13-45",
    "0x_",
]


@anew
@given(
    st.sampled_from(sorted(schema.folder("config").glob("*.yaml"))),
    st.randoms(use_true_random=False),
    st.integers(1, 6),
)
def test_a_real_profile_with_a_few_slips(tmp_path, source, rng: random.Random, slips):
    text = source.read_text("utf-8")
    for _ in range(slips):
        start = rng.randrange(len(text))
        text = text[:start] + rng.choice(PIECES) + text[start + rng.choice([0, 0, 1, 5, 40]) :]
    path = tmp_path / "profile.yaml"
    path.write_text(text, "utf-8")
    both(path)


parts = (
    st.sampled_from([*SECTIONS, *SPELLINGS, *INNER]).flatmap(lambda word: st.sampled_from([word, word.upper()])) | texts
)
variables = st.lists(parts, max_size=4).map(lambda found: "DASK_CLOUDPROVIDER__" + "__".join(found))
long_texts = (
    texts
    | st.text(max_size=60)
    | yaml_data.map(str)
    | yaml_data.map(yaml.safe_dump)
    | st.integers(1, 5000).map(lambda n: "[" * n)
)


@anew
@given(st.dictionaries(variables, long_texts, max_size=5), clouds)
def test_any_environment(environ, cloud):
    outcome(lambda: options.resolve(environ=environ, cloud=cloud))


@anew
@given(
    st.lists(
        st.builds("{}={}".format, st.lists(parts, min_size=1, max_size=3).map(".".join), long_texts) | texts, max_size=4
    )
)
def test_any_set(sets):
    outcome(lambda: options.resolve(environ={}, sets=sets))


@anew
@given(st.dictionaries(st.sampled_from(SPELLINGS) | texts, python_data, max_size=4), clouds)
def test_any_keywords(keywords, cloud):
    outcome(lambda: options.resolve(environ={}, keywords=keywords, cloud=cloud))


@anew
@given(st.dictionaries(keys.filter(bool), python_data, max_size=3) | python_data, clouds)
def test_anything_in_dask_config_set(tree, cloud):
    with dask.config.set({"cloudprovider": tree}):
        outcome(lambda: options.resolve(environ={}, cloud=cloud))


@pytest.mark.parametrize("text", ["!!int ''", "!!bool x", "!!float x", "0x_", "!!binary é", "!x y"])
def test_values_that_are_not_what_their_tag_says(tmp_path, text):
    path = tmp_path / "profile.yaml"
    path.write_text(f"cloudprovider: {{ec2: {{region: {text}}}}}")
    assert both(path) is None


@pytest.mark.parametrize("text", ["2026-01-31", "2026-13-45", "!!timestamp x"])
def test_dates_are_text(tmp_path, text):
    path = tmp_path / "profile.yaml"
    path.write_text(f"cloudprovider: {{ec2: {{region: {text}}}}}")
    assert both(path)["region"] == text.split()[-1]


@pytest.mark.parametrize("opening", ["[", "{a: ", "- ", "? ", "&a [", "!!set {"])
def test_a_hundred_thousand_levels_do_not_end_the_process(tmp_path, opening):
    path = tmp_path / "profile.yaml"
    path.write_text("cloudprovider: " + opening * 100_000 if opening[0] in "[{&!" else opening * 100_000)
    with pytest.raises(ProfileError):
        options.validate(path)
