"""Golden error messages: ``errors/<case>/expected.txt`` is the whole message for what else is in that folder.

``profile.yaml`` is resolved, with what ``args.json`` says: profiles, environment, sets, keywords, cloud, another verb.
``dask.yaml`` is Dask's own configuration. ``python -m tests.options.test_options_errors`` writes every message anew.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import dask.config
import pytest

from dask_cloudvm import options
from dask_cloudvm.errors import ProfileError
from dask_cloudvm.profile import LARGEST

ERRORS = Path(__file__).parent / "errors"
CASES = sorted(path for path in ERRORS.iterdir() if path.is_dir())


def arguments(case: Path) -> dict:
    file = case / "args.json"
    return json.loads(file.read_text("utf-8")) if file.exists() else {}


def problems_of(case: Path) -> ProfileError:
    """The error of one case, whose folder is the working directory and, for dask.yaml, Dask's own."""
    given = arguments(case)
    profiles = given.get("profiles", ["profile.yaml"] if Path("profile.yaml").exists() else [])
    with pytest.raises(ProfileError) as caught:
        if given.get("verb") == "validate":
            options.validate(*profiles)
        options.resolve(
            *profiles,
            cloud=given.get("cloud"),
            keywords=given.get("keywords"),
            sets=given.get("sets", ()),
            environ=given.get("environment", {}),
        )
    return caught.value


@pytest.fixture
def inside(case, monkeypatch):
    monkeypatch.chdir(case)
    monkeypatch.setattr(dask.config, "paths", ["dask.yaml"])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_message(case, inside):
    error = problems_of(case)
    assert f"{error}\n" == (case / "expected.txt").read_text("utf-8")
    assert error.exit_code == 2
    assert len(error.problems) == len(str(error).splitlines()), "one line a problem"


@pytest.mark.parametrize("case", [case for case in CASES if not arguments(case)], ids=lambda case: case.name)
def test_validate_says_the_same(case, inside):
    with pytest.raises(ProfileError) as caught:
        options.validate("profile.yaml")
    assert f"{caught.value}\n" == (case / "expected.txt").read_text("utf-8")


def test_a_huge_file_is_not_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("huge.yaml").write_text("cloudprovider:\n" + "# a log that was taken for a profile\n" * (LARGEST // 36))
    with pytest.raises(ProfileError) as caught:
        options.resolve("huge.yaml")
    assert str(caught.value) == "huge.yaml: it is larger than 1 MiB, which no profile is"


def test_a_profile_nobody_may_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("loop.yaml").symlink_to("loop.yaml")
    with pytest.raises(ProfileError) as caught:
        options.validate("loop.yaml", "nul\0.yaml")
    assert str(caught.value).splitlines() == [
        "loop.yaml: cannot read it: too many levels of symbolic links",
        "nul\\x00.yaml: cannot read it: embedded null byte",
    ]


def main() -> None:
    for case in CASES:
        os.chdir(case)
        dask.config.paths[:] = ["dask.yaml"]
        (case / "expected.txt").write_text(f"{problems_of(case)}\n", "utf-8")


if __name__ == "__main__":
    main()
