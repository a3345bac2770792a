"""What is derived from the schemas is up to date, and is what it says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from dask_cloudvm import options, schema, template
from tests import derived


def test_configuration_is_up_to_date_and_holds_every_option_once():
    text = derived.CONFIGURATION.read_text("utf-8")
    assert text == template.configuration(), "run 'make config'"
    options.validate(derived.CONFIGURATION)
    tree = yaml.safe_load(text)["cloudprovider"]
    for name in (schema.SHARED, *schema.clouds()):
        own = {o.name: o.default for o in schema.options(name).values() if name == schema.SHARED or not o.shared}
        assert tree[name] == own


def test_readme_is_up_to_date():
    text = derived.README.read_text("utf-8")
    assert text == derived.fill(text), "run 'make config'"


def test_readme_names_only_what_exists():
    text = derived.README.read_text("utf-8")
    for path in set(re.findall(r"(?<![\w./])(?:config|schemas|tests|benchmarks|dask_cloudvm)/[\w./-]*\w", text)):
        assert (derived.ROOT / path).exists(), path
    makefile = (derived.ROOT / "Makefile").read_text()
    for target in set(re.findall(r"(?:`|\$ )make ([a-z]+)", text)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


@pytest.mark.parametrize("cloud", schema.clouds())
def test_a_new_profile_is_valid_and_every_commented_line_too(cloud, tmp_path):
    path = tmp_path / "p.yaml"
    text = template.profile(cloud, "schema.json")
    path.write_text(text)
    options.validate(path)
    assert options.resolve(path, environ={})["n_workers"] == 2
    path.write_text(re.sub(r"(?m)^    # (\w+: )", r"    \1", text))  # uncomment every option
    options.validate(path)


def test_profiles_point_editors_to_a_schema_that_exists():
    for path in (derived.ROOT / "config").glob("*.yaml"):
        first = path.read_text().splitlines()[0]
        target = re.fullmatch(r"# yaml-language-server: \$schema=(.+)", first)
        assert target and (path.parent / target[1]).is_file()


def test_every_test_that_readme_names_exists():
    """The threat model has a test behind each line."""
    tests = "\n".join(path.read_text("utf-8") for path in Path(__file__).parent.rglob("*.py"))
    rows = re.findall(r"^\|.*\|$", derived.README.read_text("utf-8").split("| threat |")[1], re.M)
    table = rows[1 : rows.index(next(row for row in rows if "stolen worker" in row)) + 1]
    assert len(table) > 8
    for row in table:
        named = re.findall(r"`(test_\w+)`", row)
        assert named and all(f"def {name}(" in tests for name in named), row
