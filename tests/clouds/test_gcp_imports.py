"""A plan loads no more of Google's libraries than it needs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

PROFILE = Path(__file__).parents[2] / "config" / "gcp.yaml"


def test_an_offline_plan_imports_no_google_library():
    program = (
        "import sys, dask_cloudvm\nfrom dask_cloudvm.cli import cli\n"
        f"cli(['plan', {str(PROFILE)!r}, '--offline', '-o', 'json'], standalone_mode=False)\n"
        "import json; print(json.dumps(sorted(m for m in sys.modules if m.split('.')[0] in ('google', 'requests'))))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == []


def test_a_plan_imports_nothing_of_google_but_google_auth(gcp):
    program = (
        "import sys, dask_cloudvm\nfrom dask_cloudvm.cli import cli\n"
        f"cli(['plan', {str(PROFILE)!r}, '-o', 'json'], standalone_mode=False)\n"
        "import json\n"
        "print(json.dumps(sorted({'.'.join(m.split('.')[:2]) for m in sys.modules if m.startswith('google.')})))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert set(json.loads(done.stdout.splitlines()[-1])) <= {"google.auth", "google.oauth2"}
    assert gcp.writes() == []
