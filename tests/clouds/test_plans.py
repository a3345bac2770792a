"""Golden plans: what ``up`` of each ready-made profile would send, without an account.

``UPDATE_PLANS=1 pytest tests/clouds/test_plans.py`` writes them anew; the difference is for a human to read.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest
import yaml

from dask_cloudvm import clouds, options
from dask_cloudvm import plan as planning
from dask_cloudvm.userdata import Dumper

HERE = Path(__file__).parent
PROFILES = sorted(path for path in (HERE.parents[1] / "config").glob("*.yaml") if path.stem != "cloudprovider")


def offline(profile, **keywords):
    resolved = options.resolve(profile, keywords=keywords)
    cloud = clouds.make(resolved.cloud, resolved.values)
    facts = cloud.offline()
    made = planning.plan(resolved, cloud, facts, "golden", [], "3fa9c1", planning.placeholders())
    return planning.render(made, planning.requests(made, cloud, facts))


def text_of(plan):
    """As YAML, with what every release, machine or new option changes taken out."""
    text = yaml.dump(plan, Dumper=Dumper, sort_keys=False, width=120).replace(sys.executable, "<python>")
    text = re.sub(r"(Key: dask-cloudvm:(?:options|version)\n *Value: ).*", r"\1<...>", text)
    return re.sub(r"((?:ClientToken|dask-cloudvm-(?:options|version)|requestId|    options): ).*", r"\1<...>", text)


@pytest.mark.parametrize("profile", PROFILES, ids=lambda p: p.stem)
def test_the_plan_of_a_profile(profile):
    golden = HERE / "plans" / f"{profile.stem}.yaml"
    text = text_of(offline(profile))
    if os.environ.get("UPDATE_PLANS"):
        golden.write_text(text, "utf-8")
    assert text == golden.read_text("utf-8")


def test_there_is_a_plan_for_every_profile_and_no_other():
    assert {p.stem for p in (HERE / "plans").glob("*.yaml")} == {p.stem for p in PROFILES}


@pytest.mark.parametrize("profile", PROFILES, ids=lambda p: p.stem)
def test_a_plan_for_a_thousand_workers_has_no_more_calls_than_for_one(profile):
    plan = offline(profile, n_workers=1000)
    assert len(plan["create"]) == len(offline(profile, n_workers=1)["create"])
    assert len(plan["create"][-1]["names"]) == 1000


@pytest.mark.parametrize("cloud", ["ec2", "gcp", "azure"])
def test_only_spot_workers_watch_for_their_clouds_notice(cloud):
    profile = HERE.parents[1] / "config" / f"{cloud}.yaml"
    for spot in (True, "fallback", False):
        *_, scheduler, worker = offline(profile, spot=spot, n_workers=1)["create"]
        assert ("DASK_CLOUDVM_SPOT" in str(worker)) == bool(spot) and "DASK_CLOUDVM_SPOT" not in str(scheduler)
        assert not spot or f"DASK_CLOUDVM_SPOT={cloud}" in str(worker)
