"""A cluster whose Python or Dask is another than this program's is found before any work goes there."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
from pathlib import Path

import distributed
import pytest

from dask_cloudvm import LocalVMCluster, down, from_name, ls, options, versions
from dask_cloudvm.clouds import local
from dask_cloudvm.errors import VersionMismatch

HERE = versions.python()
HOME = Path.home()  # the user's, where tests have one of their own
PRETEND = """\
def dask_setup(scheduler):
    versions = scheduler.handlers["versions"]
    def pretend(*args, **kwargs):
        found = versions(*args, **kwargs)
        return dict(found, packages=dict(found["packages"], **{changes}))
    scheduler.handlers["versions"] = pretend
    if {old}:
        scheduler.handlers["identity"] = lambda: dict()
"""


def pretending(old: bool = False, **changes: str) -> dict[str, str]:
    """Variables for a scheduler that says it has other versions."""
    text = PRETEND.replace("{changes}", repr(changes)).replace("{old}", str(old))
    return {"DASK_DISTRIBUTED__SCHEDULER__PRELOAD": repr([text])}


def test_the_same_versions_are_nothing_to_speak_of():
    said = []
    with LocalVMCluster("same", report=said.append):
        pass
    assert not [line for line in said if "instead of" in line]


def test_another_python_ends_the_start():
    with pytest.raises(VersionMismatch) as raised:
        LocalVMCluster("other", n_workers=1, env_vars=pretending(python="3.7.1.final.0"), report=lambda line: None)
    assert f"'other' has Python 3.7, this program Python {HERE}; run this with Python 3.7" in str(raised.value)
    assert raised.value.exit_code == 1 and ls() == []


def test_another_dask_is_said_once_and_works():
    said = []
    env_vars = pretending(dask="2026.1.0", distributed="2026.1.0")
    with LocalVMCluster("dask", n_workers=1, env_vars=env_vars, report=said.append) as cluster:
        [line] = [line for line in said if "instead of" in line]
        with cluster.get_client() as client:
            assert client.submit(sum, [1, 2]).result(timeout=60) == 3
    ours = importlib.metadata.version("dask")
    assert f"dask 2026.1.0 instead of {ours}" in line and "install the cluster's versions here" in line


def test_a_dask_that_is_too_old_ends_the_start():
    env_vars = pretending(old=True, dask="2024.8.0")
    with pytest.raises(VersionMismatch, match=r"dask 2024\.8\.0 instead of .*, which is too old for this program"):
        LocalVMCluster("old", env_vars=env_vars, report=lambda line: None)
    assert ls() == []


@pytest.mark.parametrize(
    "settings, change",
    [
        ({}, f"set docker_image to one with .*, such as ghcr.io/dask/dask:.*-py{HERE}, or run this with Python 3.7"),
        ({"docker_image": "mine:1"}, "set docker_image to one with this program's versions, or run"),
        ({"runtime": "image"}, "set image, or environment, to one with"),
    ],
)
def test_the_message_says_what_to_change(settings, change):
    resolved = options.resolve(cloud="gcp", keywords=settings, environ={})
    assert re.search(change, versions.hint(resolved, "3.7", "scheduler"))


def another_python(folder: Path) -> str:
    """The Python of a new environment with this very Dask and another minor version."""
    env = {**os.environ, "HOME": str(HOME)}
    for minor in {"3.13", "3.12", "3.10"} - {HERE}:
        for found in (HOME / ".pyenv" / "versions").glob(f"{minor}.*/bin/python"):
            made = subprocess.run(["uv", "venv", "-q", "--python", str(found), str(folder)], env=env)
            install = ["uv", "pip", "install", "-q", "--python", f"{folder}/bin/python"]
            wanted = f"distributed=={distributed.__version__}"
            if made.returncode == 0 and subprocess.run([*install, wanted], env=env).returncode == 0:
                return f"{folder}/bin/python"
    pytest.skip("needs another Python minor version under ~/.pyenv and a package index with distributed")


def test_a_real_cluster_of_another_python(tmp_path, monkeypatch):
    other = another_python(tmp_path / "other")
    with monkeypatch.context() as patched:
        patched.setattr(local.sys, "executable", other)
        patched.setattr(versions, "python", lambda: subprocess.check_output([other, "-c", MINOR], text=True).strip())
        cluster = LocalVMCluster("real", report=lambda line: None)
        cluster.detach()
    try:
        with pytest.raises(VersionMismatch, match=f"this program Python {HERE}"):
            from_name("real")
        assert [found.name for found in ls()] == ["real-scheduler"]  # it is left as it was
        monkeypatch.setattr(local.sys, "executable", other)
        with pytest.raises(VersionMismatch):
            LocalVMCluster("another", report=lambda line: None)
    finally:
        down("real")
        cluster.close()


def test_workers_of_another_python_are_found_before_work_is_sent(tmp_path):
    other = another_python(tmp_path / "other")
    lines: list[str] = []
    options = {"n_workers": 1, "worker_command": f"{other} -m distributed.cli.dask_worker", "report": lines.append}
    mismatch = f"has workers with Python .*, this program Python {HERE}; run this"
    with LocalVMCluster("mixed", **options) as cluster, pytest.raises(VersionMismatch, match=mismatch):
        cluster.ready()
    assert sum("has workers with Python" in line for line in lines) == 1
    assert ls() == []


MINOR = "import sys; print('%d.%d' % sys.version_info[:2])"
