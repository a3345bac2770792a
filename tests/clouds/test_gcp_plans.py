"""Golden plans: what ``up`` of each ready-made profile would send, without a project.

``UPDATE_PLANS=1 pytest tests/clouds/test_gcp_plans.py`` writes them anew; the difference is for a human to read.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from dask_cloudvm import clouds, options
from dask_cloudvm import plan as planning
from dask_cloudvm.userdata import Dumper

HERE = Path(__file__).parent
PROFILES = sorted((HERE.parents[1] / "config").glob("gcp*.yaml"))


def offline(profile, **keywords):
    resolved = options.resolve(profile, keywords=keywords)
    cloud = clouds.make(resolved.cloud, resolved.values)
    facts = cloud.offline()
    made = planning.plan(resolved, cloud, facts, "golden", [], "3fa9c1", planning.placeholders())
    return planning.render(made, planning.requests(made, cloud, facts))


def text_of(plan):
    """As YAML, with what every release or a new option changes taken out."""
    text = yaml.dump(plan, Dumper=Dumper, sort_keys=False, width=120)
    return re.sub(r"((?:dask-cloudvm-(?:options|version)|requestId): ).*", r"\1<...>", text)


@pytest.mark.parametrize("profile", PROFILES, ids=lambda p: p.stem)
def test_the_plan_of_a_profile(profile):
    golden = HERE / "plans" / f"{profile.stem}.yaml"
    text = text_of(offline(profile))
    if os.environ.get("UPDATE_PLANS"):
        golden.write_text(text, "utf-8")
    assert text == golden.read_text("utf-8")


def test_there_is_a_plan_for_every_profile_and_no_other():
    assert {p.stem for p in (HERE / "plans").glob("gcp*.yaml")} == {p.stem for p in PROFILES}


@pytest.mark.parametrize("profile", PROFILES, ids=lambda p: p.stem)
def test_a_plan_for_a_thousand_workers_has_no_more_calls_than_for_one(profile):
    plan = offline(profile, n_workers=1000)
    assert len(plan["create"]) == len(offline(profile, n_workers=1)["create"])
    assert len(plan["create"]) == 4 and len(plan["create"][-1]["names"]) == 1000


def test_an_offline_plan_imports_no_google_library():
    program = (
        "import sys, dask_cloudvm\nfrom dask_cloudvm.cli import cli\n"
        f"cli(['plan', {str(PROFILES[0])!r}, '--offline', '-o', 'json'], standalone_mode=False)\n"
        "import json; print(json.dumps(sorted(m for m in sys.modules if m.split('.')[0] in ('google', 'requests'))))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == []


def test_a_plan_imports_nothing_of_google_but_google_auth(gcp):
    program = (
        "import sys, dask_cloudvm\nfrom dask_cloudvm.cli import cli\n"
        f"cli(['plan', {str(PROFILES[0])!r}, '-o', 'json'], standalone_mode=False)\n"
        "import json\n"
        "print(json.dumps(sorted({'.'.join(m.split('.')[:2]) for m in sys.modules if m.startswith('google.')})))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert set(json.loads(done.stdout.splitlines()[-1])) <= {"google.auth", "google.oauth2"}
    assert gcp.writes() == []
