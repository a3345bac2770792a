"""The fakes of tests/clouds, and the fault matrix at the end of a run."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

CLOUDS = Path(__file__).parents[1] / "clouds"
sys.path[:0] = [str(Path(__file__).parent), str(CLOUDS)]
spec = importlib.util.spec_from_file_location("fixtures_of_clouds", CLOUDS / "conftest.py")
fixtures = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fixtures)
for name in ("aws_server", "aws", "gcp_server", "gcp", "azure_server", "azure"):
    globals()[name] = getattr(fixtures, name)


def pytest_terminal_summary(terminalreporter):
    from fault_report import RESULTS, table

    if RESULTS:
        terminalreporter.section("fault matrix")
        for line in table(RESULTS):
            terminalreporter.write_line(line)
