"""Google Compute Engine in the suite of all clouds."""

from __future__ import annotations

import pytest
import suite


@pytest.mark.usefixtures("gcp")
class TestGCPPlanning(suite.Planning):
    name = "gcp"


@pytest.mark.usefixtures("gcp")
class TestGCPLife(suite.Life):
    name = "gcp"


@pytest.mark.usefixtures("gcp")
class TestGCPLeftovers(suite.Leftovers):
    name = "gcp"
