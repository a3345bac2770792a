"""runtime uv: what a machine installs, made for real from an index of this computer, local packages included."""

from __future__ import annotations

import asyncio
import http.server
import json
import os
import subprocess
import sys
import threading
from functools import partial
from importlib.metadata import version
from pathlib import Path

import pytest
from distributed import Client
from distributed.security import Security

from dask_cloudvm import bootstrap, environment, options, runtimes, wheels
from dask_cloudvm.clouds.base import VM
from dask_cloudvm.errors import CloudError, ProfileError, StartError
from tests import wheelmaker

DASK = version("dask")


def resolved(cloud="ec2", **keywords):
    return options.resolve(cloud=cloud, keywords=keywords, environ={})


def captured(**keywords):
    return environment.captured(resolved(runtime="uv", **keywords))


# What goes on a machine


def test_by_default_it_is_this_programs_own_dask():
    found = captured()
    assert found["python"] == f"{sys.version_info[0]}.{sys.version_info[1]}"
    assert found["packages"] == [f"dask[complete]=={DASK}"]
    assert environment.captured(found) == found


@pytest.mark.parametrize(
    "packages, added",
    [(["s3fs", "dask-cuda"], True), (["dask[array]>=2026"], False), (["distributed"], False), (["dask-ml"], True)],
)
def test_dask_is_added_where_it_is_not_named(packages, added):
    assert captured(packages=packages)["packages"] == packages + [f"dask[diagnostics,distributed]=={DASK}"] * added


def test_other_runtimes_and_the_local_cloud_stay_as_they_are():
    for given in (resolved(), resolved(runtime="image"), resolved("local", runtime="uv", sync=True)):
        assert environment.captured(given) is given
        assert environment.wheels(given) == {}


def test_a_requirements_file_becomes_packages_and_its_change_another_cluster(tmp_path):
    path = tmp_path / "requirements.txt"
    path.write_text("--extra-index-url https://example.com\ndask==2026.8.0\n# why\nnumpy>=2,<3 ; python_version>'3'\n")
    found = captured(requirements=str(path))
    assert found["packages"] == path.read_text().splitlines()
    path.write_text("dask==2026.7.0\n")
    assert captured(requirements=str(path)).digest() != found.digest()
    assert found.differences(captured(requirements=str(path)).values) == ["packages"]


@pytest.mark.parametrize(
    "line",
    ["-r other.txt", "-e .", "--editable=git+https://x/y", "./mine", "/mine.whl", "mine @ file:///mine.whl", "-cx"],
)
def test_a_requirement_of_this_computer_is_refused(tmp_path, line):
    path = tmp_path / "requirements.txt"
    path.write_text(f"numpy\n{line}\n")
    with pytest.raises(ProfileError, match=r"requirements.txt:2: .* means a file of this computer"):
        captured(requirements=str(path))


def test_what_cannot_be_is_said_before_anything_is_asked(tmp_path):
    profile = tmp_path / "p.yaml"
    profile.write_text("cloudprovider:\n  ec2:\n    runtime: uv\n    sync: true\n    packages: [s3fs]\n")
    for check in (options.validate, partial(options.resolve, environ={})):
        with pytest.raises(ProfileError, match=r"p.yaml:4:5: sync: packages says what to install, too; keep one of"):
            check(profile)
    with pytest.raises(ProfileError, match="keyword: packages: this needs 'runtime: uv', and runtime is docker"):
        resolved(packages=["s3fs"])
    with pytest.raises(ProfileError, match=r"keyword: requirements: .*none.txt cannot be read: No such file"):
        captured(requirements=str(tmp_path / "none.txt"))
    with pytest.raises(ProfileError, match="keyword: python: sync needs"):
        captured(sync=True, python="3.6")


# A machine that makes its environment


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A package index over HTTP with packages of ours only, which uv is told of as a user would."""
    root = tmp_path / "index"
    for name, number, files in (
        ("tiny", "1.0", {"tiny.py": "VALUE = 1"}),
        ("tiny", "2.0", {"tiny.py": "VALUE = 2"}),
        ("distributed", "0.1", {"distributed/cli/dask_scheduler.py": SCHEDULER}),
    ):
        (root / name).mkdir(parents=True, exist_ok=True)
        wheelmaker.make(root / name, name, number, files)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(root))) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


SCHEDULER = "import os, sys, tiny; print(tiny.VALUE, sys.prefix, os.environ['A'])"


def start(tmp_path, **settings):
    """What a scheduler's machine with these options does, as its unit would."""
    values = captured(environment=f"{tmp_path}/env", bootstrap=False, **settings).for_role("scheduler")
    launch = bootstrap.scheduler(values, {}, python=runtimes.PYTHON)
    files, command = runtimes.RUNTIMES["uv"](launch, values, False)
    home = tmp_path / "etc"
    home.mkdir()
    for name, text in {
        **files,
        "run": runtimes.RUN.replace("sleep(pause)", "sleep(0)"),
        "run.json": json.dumps(command),
    }.items():
        (home / name).write_text(text.replace(runtimes.FOLDER, str(home)))
    assert not any("s3cret" in part for part in command["argv"] + command["first"])
    return subprocess.run([sys.executable, str(home / "run")], capture_output=True, text=True, timeout=100)


def test_a_machine_makes_its_environment_from_a_private_index(tmp_path, index):
    private = index.replace("http://", "http://me:s3cret@")
    env_vars = {"UV_DEFAULT_INDEX": private, "A": "it's"}
    done = start(tmp_path, packages=["tiny<2", "distributed"], env_vars=env_vars)
    assert done.stdout.strip() == f"1 {tmp_path}/env it's", done.stderr


def test_a_machine_that_cannot_says_why(tmp_path, index):
    done = start(tmp_path, packages=["tiny==3.0", "distributed"], env_vars={"UV_DEFAULT_INDEX": index, "A": ""})
    assert done.returncode == 1
    assert "tiny==3.0" in done.stderr and "could not be made, see above; change packages, requirements" in done.stderr


def test_a_machine_without_uv_gets_it_from_the_same_index():
    values = captured(packages=["tiny"]).for_role("worker")
    launch = bootstrap.worker(values, {}, "tcp://10.0.0.4:8786", python=runtimes.PYTHON)
    build = runtimes.RUNTIMES["uv"](launch, values, False)[0]["build"]
    subprocess.run(["bash", "-n"], input=build, text=True, check=True)
    assert "install -y --no-install-recommends git" in build
    assert "PIP_INDEX_URL=${PIP_INDEX_URL:-$index}" in build and f"{runtimes.UV}/bin/pip install" in build
    assert "apt" not in runtimes.RUNTIMES["uv"](launch, {**values, "bootstrap": False}, False)[0]["build"]


# sync

BACKEND = """
import sys
sys.path.insert(0, {tests!r})
import wheelmaker
from pathlib import Path

def build_wheel(folder, config_settings=None, metadata_directory=None):
    return wheelmaker.make(Path(folder), "mine", "0.3", {{"mine.py": "VALUE = " + repr(open("value").read())}}).name

def build_editable(folder, config_settings=None, metadata_directory=None):
    return wheelmaker.make(Path(folder), "mine", "0.3", {{"mine.py": "VALUE = 'editable'"}}).name
"""
PROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
[project]
name = "mine"
version = "0.3"
"""


def venv(folder: Path, *installed: str, index: str | None = None) -> str:
    """A new environment that also sees this one's packages; its Python."""
    subprocess.run(["uv", "venv", "-q", "--python", sys.executable, str(folder)], check=True)
    python, env = f"{folder}/bin/python", {**os.environ, **({"UV_DEFAULT_INDEX": index} if index else {})}
    if installed:
        subprocess.run(["uv", "pip", "install", "-q", "--python", python, *installed], check=True, env=env)
    return python


def site(folder: Path) -> Path:
    [found] = folder.glob("lib/python*/site-packages")
    return found


@pytest.fixture
def project(tmp_path):
    """The source of a local package, whose build needs nothing but itself."""
    source = tmp_path / "my project"
    source.mkdir()
    (source / "pyproject.toml").write_text(PROJECT)
    (source / "backend.py").write_text(BACKEND.format(tests=str(Path(__file__).parent)))
    (source / "value").write_text("first")
    return source


def test_sync_makes_the_same_environment_elsewhere(tmp_path, index, project):
    venv(tmp_path / "here", "tiny==1.0", "--editable", str(project), index=index)
    left_by_a_build = tmp_path / "mine.egg-info"
    left_by_a_build.mkdir()
    (left_by_a_build / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 0.3\n")
    found = environment.installed([str(tmp_path), str(site(tmp_path / "here"))])
    assert [(p.name, p.version, bool(p.path)) for p in found] == [("mine", "0.3", True), ("tiny", "1.0", False)]
    (project / "value").write_text("as it is now")
    name, content = environment.build(found[0])
    (tmp_path / name).write_bytes(content)
    (tmp_path / "requirements.txt").write_text("\n".join(package.line for package in found))
    there = venv(
        tmp_path / "there", "--no-deps", "-r", str(tmp_path / "requirements.txt"), str(tmp_path / name), index=index
    )
    code = "import mine, tiny; print(mine.VALUE, tiny.VALUE, 'there' in mine.__file__)"
    assert subprocess.check_output([there, "-c", code], text=True).strip() == "as it is now 1 True"
    again = environment.installed([str(site(tmp_path / "there"))])
    assert [(p.name, p.version) for p in again] == [(p.name, p.version) for p in found]


def test_sync_as_a_cluster_does_it(tmp_path, index, project, monkeypatch):
    venv(tmp_path / "here", "tiny==1.0", "--editable", str(project), index=index)
    monkeypatch.setattr(sys, "path", [str(site(tmp_path / "here"))])
    found = captured(sync=True)
    assert found["packages"] == ["# mine==0.3 comes from the launcher", "tiny==1.0"] and found["sync"] is True
    assert list(environment.wheels(found)) == ["mine-0.3-py3-none-any.whl"]
    launch = bootstrap.worker(found.for_role("worker"), {}, "tcp://10.0.0.4:8786", python=runtimes.PYTHON)
    files, _ = runtimes.RUNTIMES["uv"](launch, found.for_role("worker"), False)
    assert "requirements.txt --no-deps" in files["build"] and files["requirements.txt"].endswith("tiny==1.0\n")


@pytest.mark.parametrize(
    "origin, line",
    [
        ({}, "a-b==1.0+cpu"),
        ({"url": "https://x/a.whl", "archive_info": {}}, "a-b @ https://x/a.whl"),
        (
            {"url": "https://x/a.git", "vcs_info": {"vcs": "git", "commit_id": "abc"}, "subdirectory": "s"},
            "a-b @ git+https://x/a.git@abc#subdirectory=s",
        ),
        ({"url": "file:///my%20a", "dir_info": {"editable": True}}, "# a-b==1.0+cpu comes from the launcher"),
    ],
)
def test_every_origin_of_a_package(tmp_path, origin, line):
    info = tmp_path / "A_b-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: A_b\nVersion: 1.0+cpu\n")
    if origin:
        (info / "direct_url.json").write_text(json.dumps(origin))
    [found] = environment.installed([str(tmp_path)])
    assert found.line == line and found.path == ("/my a" if "dir_info" in origin else None)


def test_a_local_package_that_cannot_be_built_is_said(tmp_path):
    with pytest.raises(CloudError, match=r"mine was installed from .*gone, which is gone; install it anew"):
        environment.build(environment.Package("mine", "1", "", str(tmp_path / "gone")))
    (tmp_path / "pyproject.toml").write_text(PROJECT)
    with pytest.raises(CloudError, match=r"(?s)no wheel of mine could be built from .*backend.*; repair its build"):
        environment.build(environment.Package("mine", "1", "", str(tmp_path)))


# Wheels on a running cluster


def machine(tmp_path, name, *command):
    """A process of an environment of its own, which has Dask, as a machine would have."""
    folder = tmp_path / name
    python = venv(folder)
    (site(folder) / "base.pth").write_text(str(next(p for p in map(Path, sys.path) if (p / "distributed").is_dir())))
    env = {**os.environ, "DASK_TEMPORARY_DIRECTORY": str(folder), "PYTHONPATH": ""}
    return subprocess.Popen([python, "-m", *command], cwd=folder, env=env)


def test_wheels_reach_every_machine_of_a_cluster(tmp_path, unused_port):
    asyncio.run(sent(tmp_path, unused_port))


@pytest.fixture
def unused_port():
    with http.server.HTTPServer(("127.0.0.1", 0), Quiet) as server:
        return server.server_address[1]


async def sent(tmp_path, port):
    wheel = wheelmaker.make(tmp_path, "mine", "0.3", {"mine.py": "VALUE = 1"})
    vm = VM("", "s", "etl", "scheduler", "running", "local", "127.0.0.1", protocol="tcp", port=port)
    worker, address = "distributed.cli.dask_worker", vm.address
    quick = ("--nthreads", "1", "--no-dashboard")
    machines = [
        machine(tmp_path, "s", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", str(port)),
        machine(tmp_path, "a", worker, address, *quick),
        machine(tmp_path, "b", worker, address, "--no-nanny", *quick),
    ]
    try:
        async with Client(address, asynchronous=True, timeout=60) as client:
            await client.wait_for_workers(2, timeout=60)
            with pytest.raises(StartError, match=r"(?s)packages could not be installed there: .*no"):
                await wheels.send(vm, Security(require_encryption=False), {"no-1-py3-none-any.whl": b"no"})
            for _ in range(2):
                await wheels.send(vm, Security(require_encryption=False), {wheel.name: wheel.read_bytes()})
            machines.append(machine(tmp_path, "c", worker, address, *quick))
            machines.append(machine(tmp_path, "d", worker, address, "--no-nanny", *quick))
            await client.wait_for_workers(4, timeout=60)

            def use():  # in here, since the machines cannot import this module
                import mine

                return mine.__file__

            found = await client.run(use)
            assert sorted(Path(at).relative_to(tmp_path).parts[0] for at in found.values()) == ["a", "b", "c", "d"]
            assert Path(await client.run_on_scheduler(use)).is_relative_to(tmp_path / "s")
    finally:
        for process in machines:
            process.kill()
            process.wait()
