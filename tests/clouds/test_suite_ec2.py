"""EC2 in the suite of all clouds."""

from __future__ import annotations

import pytest
import suite


@pytest.mark.usefixtures("aws")
class TestEC2Planning(suite.Planning):
    name = "ec2"


@pytest.mark.usefixtures("aws")
class TestEC2Life(suite.Life):
    name = "ec2"


@pytest.mark.usefixtures("aws")
class TestEC2Leftovers(suite.Leftovers):
    name = "ec2"
