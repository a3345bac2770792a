"""Layers as a user makes them: profile files, Dask's own YAML, the environment, ``dask.config.set``."""

from __future__ import annotations

import contextlib
import textwrap
from pathlib import Path
from unittest import mock

import dask.config
import pytest
import yaml

from dask_cloudvm import options


@pytest.fixture
def profile(tmp_path):
    """Writes a profile, given as text or as what stands under ``cloudprovider``, and returns its path."""

    def write(content, name="profile.yaml"):
        path = tmp_path / name
        path.write_text(as_yaml(content), "utf-8")
        return path

    return write


@pytest.fixture
def dask_yaml():
    """Writes Dask's own configuration file and lets Dask read it."""

    def write(content, environ=None):
        path = Path(dask.config.paths[0]) / "cloudprovider.yaml"
        path.write_text(as_yaml(content), "utf-8")
        dask.config.refresh(paths=dask.config.paths, env=environ or {})
        return path

    return write


def as_yaml(content) -> str:
    return textwrap.dedent(content) if isinstance(content, str) else yaml.safe_dump({"cloudprovider": content})


class World:
    """Everything that options may come from, in a folder, for tests that make it anew for every example."""

    def __init__(self, folder: Path) -> None:
        self.dask_yaml, self.profiles = folder / "dask" / "x.yaml", [folder / "a.yaml", folder / "b.yaml"]
        self.dask_yaml.parent.mkdir()

    def resolve(self, dask_yaml=None, profiles=(), environ=None, configured=None, **given):
        """``options.resolve`` with this content of Dask's file and of the profiles, environment and dask.config.set."""
        self.dask_yaml.write_text(as_yaml(dask_yaml or {}))
        for path, content in zip(self.profiles, profiles, strict=False):
            path.write_text(as_yaml(content))
        with contextlib.ExitStack() as stack:
            stack.enter_context(mock.patch.dict(dask.config.config))
            stack.enter_context(mock.patch.object(dask.config, "paths", [str(self.dask_yaml.parent)]))
            dask.config.refresh(paths=dask.config.paths, env=environ or {})
            stack.enter_context(dask.config.set({f"cloudprovider.{k}": v for k, v in (configured or {}).items()}))
            return options.resolve(*self.profiles[: len(profiles)], environ=environ or {}, **given)


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)
