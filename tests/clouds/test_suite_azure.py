"""Azure virtual machines in the suite of all clouds."""

from __future__ import annotations

import pytest
import suite


class Settings:
    """Nothing says where, unless the options do."""

    name = "azure"

    @pytest.fixture
    def settings(self):
        return {"region": "eastus"}


@pytest.mark.usefixtures("azure")
class TestAzurePlanning(Settings, suite.Planning):
    pass


@pytest.mark.usefixtures("azure")
class TestAzureLife(Settings, suite.Life):
    pass


@pytest.mark.usefixtures("azure")
class TestAzureLeftovers(Settings, suite.Leftovers):
    pass
