"""Every test runs as a new user on a machine without Dask configuration."""

from __future__ import annotations

import copy
import os
import sys
from pathlib import Path

import dask.config
import pytest


@pytest.fixture(autouse=True)
def fresh_user(tmp_path_factory, monkeypatch):
    """Home, state folder and Dask configuration of its own, for this process and those it starts."""
    home = tmp_path_factory.mktemp("home")
    configuration = home / ".config" / "dask"
    configuration.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    monkeypatch.setenv("XDG_STATE_HOME", str(home / "state"))
    monkeypatch.setenv("DASK_CONFIG", str(configuration))
    for variable in [v for v in os.environ if v.startswith("DASK_CLOUDPROVIDER__")]:
        monkeypatch.delenv(variable)
    monkeypatch.setattr(dask.config, "paths", [str(configuration)])
    before = copy.deepcopy(dask.config.config)  # refilled in place: Dask's functions hold on to this very mapping
    dask.config.refresh(paths=[str(configuration)])
    yield
    dask.config.config.clear()
    dask.config.config.update(before)
