"""The local cloud in the suite of all clouds."""

from __future__ import annotations

import suite


class TestLocalPlanning(suite.Planning):
    name = "local"


class TestLocalLife(suite.Life):
    name = "local"


class TestLocalLeftovers(suite.Leftovers):
    name = "local"
