"""EC2 clusters on machines that boot from their user-data."""

from tests.lab.journey import Journey


class TestJourney(Journey):
    cloud = "ec2"
