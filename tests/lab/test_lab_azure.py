"""Clusters on Azure on machines that boot from their custom data."""

from tests.lab.journey import Journey


class TestJourney(Journey):
    cloud = "azure"
