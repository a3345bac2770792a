"""The lab, and accounts whose machines boot in it. Where there can be no lab, its tests skip and say why."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "clouds"))

pytest.register_assert_rewrite("tests.lab.journey")

from tests.clouds.conftest import (  # noqa: E402
    aws_server,
    aws_variables,
    azure_server,
    azure_variables,
    gcp_server,
    gcp_variables,
)

__all__ = ["aws_server", "azure_server", "gcp_server"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.timeout(300))


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    from tests.lab.lab import Lab
    from tests.lab.root import Unavailable

    try:
        lab = Lab(tmp_path_factory.mktemp("consoles"))
    except Unavailable as reason:
        pytest.skip(str(reason))
    yield lab
    lab.close()


@pytest.fixture(scope="class")
def ec2_site(lab, aws_server) -> Iterator[object]:
    from tests.lab.ec2_site import Site

    fake, url = aws_server
    fake.reset()
    yield Site(lab, fake, aws_variables(url))
    lab.forget()


@pytest.fixture(scope="class")
def gcp_site(lab, gcp_server) -> Iterator[object]:
    from tests.lab.gcp_site import Site

    fake, url, key = gcp_server
    fake.reset()
    yield Site(lab, fake, gcp_variables(url, key), url)
    lab.forget()


@pytest.fixture(scope="class")
def azure_site(lab, azure_server) -> Iterator[object]:
    from tests.lab.azure_site import Site

    fake, url = azure_server
    fake.reset()
    yield Site(lab, fake, azure_variables(url), url)
    lab.forget()


@pytest.fixture(scope="class")
def site(request):
    """The cloud of the test class."""
    return request.getfixturevalue(f"{request.cls.cloud}_site")


@pytest.fixture(scope="class")
def user(site, tmp_path_factory) -> dict[str, str]:
    """The environment of one user, who stays the same for the whole class."""
    home = tmp_path_factory.mktemp("user")
    return {"HOME": str(home), "XDG_STATE_HOME": str(home / "state"), **site.variables}


@pytest.fixture(scope="class")
def up(request, site, user, tmp_path_factory) -> None:
    """The cluster of the test class, from a profile by command line."""
    command = [sys.executable, "-m", "dask_cloudvm", "up", *request.cls.up(tmp_path_factory.mktemp("profile"))]
    done = subprocess.run(command, env={**os.environ, **user}, capture_output=True, text=True)
    consoles = "\n".join(machine.console[-1500:] for machine in site.lab.on())
    assert done.returncode == 0, f"{done.stderr}\n{consoles}"


@pytest.fixture
def same_user(fresh_user, user, monkeypatch) -> None:
    for name, value in user.items():
        monkeypatch.setenv(name, value)
