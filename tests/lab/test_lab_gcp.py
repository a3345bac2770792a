"""Clusters on Compute Engine on machines that boot from their user-data."""

from tests.lab.journey import Journey


class TestJourney(Journey):
    cloud = "gcp"
