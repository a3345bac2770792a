"""The user-data by itself: whatever a user writes comes out on the machine as it was."""

from __future__ import annotations

import ast
import json
import os
import random
import re
import shutil
import socket
import string
import subprocess
import sys
import threading
import time

import jinja2
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from dask_cloudvm import bootstrap, environment, options, registry, spot, tls, userdata
from dask_cloudvm.clouds import names
from dask_cloudvm.errors import CloudError, ProfileError

# What a process's environment cannot hold is not asked of it: NUL, and lone surrogates.
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
SPECIAL = st.lists(
    st.sampled_from(["{{", "}}", "{%", "%}", "{#", "#}", "'", '"', "\\", "\n", "\r", ": ", "- ", "$", "x"])
)


def rendered(text, index=0):
    """cloudinit/templater.py"""
    template = jinja2.Template(text.split("\n", 1)[1], trim_blocks=True, extensions=["jinja2.ext.do"])
    config = yaml.safe_load(template.render(ds={"meta_data": {"ami_launch_index": str(index)}}))
    return {f["path"].rpartition("/")[2]: f for f in config["write_files"]}


def runcmd(text):
    return yaml.safe_load(text.partition("%}\n")[2])["runcmd"]


def run_on_a_machine(tmp_path, run, **variables):
    """Runs the launcher as the unit does, with this ``run.json``."""
    (tmp_path / "run.json").write_text(json.dumps({"first": [], "env": {}, "hint": "", **run}))
    script = rendered(worker())["run"]["content"].replace(userdata.FOLDER, str(tmp_path))
    assert "sleep(pause)" in script and '"1800"' in script
    script = script.replace("sleep(pause)", "sleep(0)").replace('"1800"', '"1"')
    env = {**os.environ, **variables}
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, env=env)


def worker(**given):
    values = {**options.combine([], "ec2")[0].for_role("worker"), **given}
    launch = bootstrap.worker(values, {}, "tcp://10.0.0.4:8786", python="python")
    return userdata.render(launch, values, userdata.Setting("{% set name = 'me' %}"))


@settings(max_examples=150, deadline=None)
@given(TEXT | SPECIAL.map("".join), TEXT | SPECIAL.map("".join))
def test_any_value_arrives(value, command):
    made = rendered(worker(env_vars={"X": value}, extra_bootstrap=[command], worker_options={"resources": {value: 1}}))
    lines = made["env"]["content"].split("\n")
    inherited = json.loads(made["run.json"]["content"])["env"]
    assert inherited.get("X") == value or f"X={value}" in lines
    assert made["extra"]["content"] == f"{command}\n"
    assert json.loads(made["worker.json"]["content"])["opts"]["resources"] == {value: 1}


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["aaaaaa", "0b1c2d"]), st.integers(0, 12)), min_size=1, unique=True))
def test_every_machine_of_any_request_has_its_name(chosen):
    wanted = [f"etl-worker-{token}-{number}" for token, number in chosen]
    runs = [(run.start, run.token, run.first) for run in names.runs(wanted)]
    values = options.combine([], "ec2")[0].for_role("worker")
    launch = bootstrap.worker(values, {}, "tcp://10.0.0.4:8786", python="python")
    index = "ds.meta_data.ami_launch_index"
    text = userdata.render(launch, values, userdata.Setting(userdata.numbered("etl-worker", runs, index)))
    for i, name in enumerate(wanted):
        assert json.loads(rendered(text, i)["worker.json"]["content"])["opts"]["name"] == name
    rest = userdata.renamed(text, userdata.numbered("etl-worker", [(0, "ffffff", 7)], index))
    assert json.loads(rendered(rest, 2)["worker.json"]["content"])["opts"]["name"] == "etl-worker-ffffff-9"
    assert names.expand(names.compact(wanted), "etl", "worker") == wanted


def test_files_are_the_owners_alone():
    made = rendered(worker())
    assert {f["permissions"] for name, f in made.items() if not name.endswith(".service")} == {"0600"}


def test_the_machine_goes_when_the_unit_ends_however():
    unit = rendered(worker())["dask-cloudvm.service"]["content"]
    assert "SuccessAction=poweroff" in unit and "FailureAction=poweroff" in unit
    stays = rendered(worker(auto_shutdown=False))["dask-cloudvm.service"]["content"]
    assert "poweroff" not in stays
    nothing_installed = rendered(worker(bootstrap=False))
    assert "install" not in nothing_installed
    assert "/bin/bash" not in nothing_installed["dask-cloudvm.service"]["content"]


def test_a_machine_that_is_rebooted_goes_unless_it_is_to_stay():
    unit, commands = rendered(worker())["dask-cloudvm.service"]["content"], runcmd(worker())
    assert "WantedBy=multi-user.target" in unit and f"ConditionPathExists={userdata.ONCE}\n" in unit
    steps = [line for line in unit.splitlines() if line.startswith("Exec")]
    assert steps[0] == f"ExecStartPre=/bin/mkdir {userdata.ONCE}/started"
    assert [command[:2] for command in commands] == [
        ["systemctl", "daemon-reload"],
        ["mkdir", userdata.ONCE],
        ["systemctl", "enable"],
        ["systemctl", "start"],
    ]
    stays = worker(auto_shutdown=False)
    assert userdata.ONCE not in stays and "[Install]" not in stays and "enable" not in str(runcmd(stays))


def test_a_process_that_takes_too_much_memory_does_not_end_its_machine():
    assert "OOMPolicy=continue\n" in rendered(worker())["dask-cloudvm.service"]["content"]


def test_an_update_of_a_library_restarts_nothing():
    made = rendered(worker())
    assert "RefuseManualStop=yes\n" in made["dask-cloudvm.service"]["content"]
    assert made["dask-cloudvm.conf"]["content"] == "$nrconf{override_rc}{qr(^dask-cloudvm)} = 0;\n"
    assert "Refuse" not in rendered(worker(auto_shutdown=False))["dask-cloudvm.service"]["content"]


def test_shell_files_are_valid():
    values = options.combine([], "ec2")[0].for_role("worker")
    launch = bootstrap.worker(values, {}, "tcp://10.0.0.4:8786", python="python")
    made = rendered(userdata.render(launch, values, userdata.Setting("{% set name = 'me' %}", gpu=True)))
    subprocess.run(["bash", "-n"], input=made["install"]["content"], text=True, check=True)
    compile(made["run"]["content"], "run", "exec")


PROGRAMS = {  # of a machine: what is called is written down
    "apt-get": 'echo "apt-get $*" >> $LOG; case "$*" in *"$HAS"*) ln -sf /bin/true $BIN/docker;; esac',
    "apt-mark": 'echo "apt-mark $*" >> $LOG; [ "$2" != runc ]',
}


def install(tmp_path, **variables):
    """What the install step calls on a machine without Docker."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("bash", "ln", "sleep"):
        (programs / name).symlink_to(shutil.which(name))
    for name, text in PROGRAMS.items():
        (programs / name).write_text(f"#!{programs}/bash\n{text}\n")
        (programs / name).chmod(0o755)
    env = {"PATH": str(programs), "BIN": str(programs), "LOG": str(tmp_path / "log"), **variables}
    script = rendered(worker())["install"]["content"]
    done = subprocess.run(["bash", "-e"], input=script, text=True, env=env, capture_output=True, timeout=30)
    assert done.returncode == 0, done.stderr
    calls = (tmp_path / "log").read_text().splitlines()
    return [call.partition("Retries=3 ")[2] or call for call in calls]


@pytest.mark.parametrize("package, more", [("docker.io", 0), ("docker-cli", 1)])
def test_docker_is_installed_where_its_command_is_a_package_of_its_own(tmp_path, package, more):
    calls = [call for call in install(tmp_path, HAS=package) if not call.startswith("apt-mark")]
    wanted = ["update", "install -y --no-install-recommends docker.io ca-certificates"]
    assert calls == wanted + ["install -y --no-install-recommends docker-cli"] * more


def test_no_update_restarts_docker(tmp_path):
    """Of packages that are there; that runc is none here does no harm."""
    calls = install(tmp_path, HAS="docker.io")
    assert calls[-3:] == ["apt-mark hold docker.io", "apt-mark hold containerd", "apt-mark hold runc"]


def test_a_container_may_open_as_many_files_as_the_unit_unless_the_user_says_otherwise():
    made = rendered(worker(docker_args="--ulimit nofile=1024"))
    argv = json.loads(made["run.json"]["content"])["argv"]
    limits = [argv[i + 1] for i, part in enumerate(argv) if part == "--ulimit"]
    assert limits == ["nofile=524288:524288", "nofile=1024"]
    assert "LimitNOFILE=524288\n" in made["dask-cloudvm.service"]["content"]


def test_proxies_reach_what_is_done_before_dask_but_not_the_metadata_service():
    values = {**options.combine([], "gcp")[0].for_role("worker")}
    values["env_vars"] = {"https_proxy": 'http://me:"p$w@proxy:3128', "NO_PROXY": "a,b", "HTTPS_PROXY": "y"}
    launch = bootstrap.worker(values, {}, "tcp://10.0.0.4:8786", python="python")
    setting = userdata.Setting("{% set name = 'me' %}", gone="true")
    made = rendered(userdata.render(launch, values, setting))
    assert made["proxies"]["content"] == 'https_proxy="http://me:\\"p\\$w@proxy:3128"\nno_proxy="a,b"\n'
    unit, docker = made["dask-cloudvm.service"]["content"], made["proxies.conf"]["content"]
    assert "\nEnvironmentFile=/etc/dask-cloudvm/proxies\n" in unit
    assert "ExecStopPost=/usr/bin/env -u https_proxy -u no_proxy /bin/bash /etc/dask-cloudvm/gone\n" in unit
    assert docker == "[Service]\nEnvironmentFile=/etc/dask-cloudvm/proxies\n"
    assert "EnvironmentFile" not in worker()


def test_a_size_that_is_too_much_is_said():
    userdata.check_size("x" * 100_000, 16 << 10)
    with pytest.raises(CloudError, match="bytes when compressed, 1,000 are allowed"):
        userdata.check_size(os.urandom(2000).hex(), 1000)


def test_the_launcher_waits_for_the_scheduler_and_passes_the_environment_on(tmp_path, port):
    run = {
        "first": ["true"],
        "scheduler": ["127.0.0.1", port],
        "patience": 20,
        "argv": [sys.executable, "-c", "import os; print(repr(os.environ['X']))"],
        "env": {"X": "a\n'b\" $HOME"},
    }

    def listen_later():
        time.sleep(1.5)
        with socket.create_server(("127.0.0.1", port)) as server:
            server.accept()[0].close()

    thread = threading.Thread(target=listen_later)
    start = time.monotonic()
    thread.start()
    done = run_on_a_machine(tmp_path, run)
    thread.join()
    assert time.monotonic() - start > 1.5
    assert done.stdout.strip() == repr(run["env"]["X"]), done.stderr


def test_a_command_that_is_missing_is_named(tmp_path):
    done = run_on_a_machine(tmp_path, {"argv": ["no-such-docker"], "hint": "change this option"})
    assert done.returncode == 1 and "no-such-docker is missing; change this option" in done.stderr


@pytest.mark.parametrize("needed", ["", "it could not be made"])
def test_a_step_before_dask_is_tried_three_times(tmp_path, needed):
    step = ["bash", "-c", f"echo tried; [ $(wc -l < {tmp_path}/log) = 3 ] || {{ echo >> {tmp_path}/log; false; }}"]
    run = {"first": step, "needed": needed, "argv": ["echo", "Dask"]}
    (tmp_path / "log").touch()
    done = run_on_a_machine(tmp_path, run)
    assert done.stdout.split() == ["tried"] * 3 + ["Dask"] * (not needed)
    assert (done.returncode, done.stderr.strip()) == (1 if needed else 0, needed)
    assert run_on_a_machine(tmp_path, run).stdout.split() == ["tried", "Dask"]


def test_a_step_that_hangs_has_failed_and_leaves_nothing_behind(tmp_path):
    step = ["bash", "-c", f"(sleep 2; touch {tmp_path}/late) & echo tried; sleep 30"]
    done = run_on_a_machine(tmp_path, {"first": step, "needed": "it took too long", "argv": ["echo", "Dask"]})
    assert done.stdout.split() == ["tried"] * 3 and done.stderr.strip() == "it took too long"
    assert not (tmp_path / "late").exists()


def test_image_runs_the_environments_own_python_and_programs(tmp_path):
    made = rendered(worker(runtime="image", environment="/opt/my-env", env_vars={"A": "it's $HOME\n"}))
    run = json.loads(made["run.json"]["content"])
    assert run["argv"][:3] == ["/opt/my-env/bin/python", "-m", "distributed.cli.dask_spec"]
    assert run["env"]["A"] == "it's $HOME\n" and run["first"] == []
    assert "install" not in made and "env" not in made and "docker" not in str(made)
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "my-worker").write_text('#!/bin/sh\necho "$A $PATH"\n')
    (programs / "my-worker").chmod(0o755)
    run = {"argv": ["my-worker"], "env": {"A": "b"}, "path": str(programs)}
    assert run_on_a_machine(tmp_path, run, PATH="/usr/bin:/bin").stdout == f"b {programs}:/usr/bin:/bin\n"


@pytest.mark.parametrize("environment", ["opt/dask", "/opt/dask/", "/a:b", "/", "/a b"])
def test_an_environment_is_an_absolute_path(environment):
    with pytest.raises(ProfileError, match="use a path such as /opt/dask"):
        options.resolve(cloud="ec2", keywords={"environment": environment}, environ={})


def test_image_has_a_driver_installed_where_there_is_a_gpu():
    values = {**options.combine([], "ec2")[0].for_role("worker"), "runtime": "image"}
    launch = bootstrap.worker(values, {}, "tcp://10.0.0.4:8786", python="python")
    made = rendered(userdata.render(launch, values, userdata.Setting("{% set name = 'me' %}", gpu=True)))
    subprocess.run(["bash", "-n"], input=made["install"]["content"], text=True, check=True)
    assert "ubuntu-drivers" in made["install"]["content"] and "docker" not in made["install"]["content"]
    without = userdata.render(
        launch, {**values, "bootstrap": False}, userdata.Setting("{% set name = 'me' %}", gpu=True)
    )
    assert "install" not in rendered(without)


@pytest.mark.parametrize("runtime", ["docker", "image"])
def test_only_a_spot_machine_watches_for_its_end(runtime):
    values = {**options.combine([], "gcp")[0].for_role("worker"), "runtime": runtime}
    launch = bootstrap.worker(values, {}, "tcp://10.0.0.4:8786", python="python")
    spot, usual = (
        rendered(userdata.render(launch, values, userdata.Setting("{% set name = 'me' %}", notice=notice)))
        for notice in ("gcp", "")
    )
    compile(spot["dask_cloudvm_spot.py"]["content"], "spot", "exec")
    variables = spot["env"]["content"] if runtime == "docker" else spot["run.json"]["content"]
    assert "DASK_CLOUDVM_SPOT" in variables and "/etc/dask-cloudvm/dask_cloudvm_spot.py" in variables
    assert "SPOT" not in str(usual) and "dask_cloudvm_spot.py" not in usual


IMAGES = {
    "ec2": "123456789012.dkr.ecr.eu-west-1.amazonaws.com/my/image:1",
    "gcp": "europe-docker.pkg.dev/my-project/my/image:1",
    "azure": "contoso-a1b2c3.azurecr.io/my/image:1",
}


@pytest.mark.parametrize("cloud", ["ec2", "gcp", "azure"])
@pytest.mark.parametrize(
    "given", [{"runtime": "docker"}, {"runtime": "image"}, {"runtime": "uv"}, {"docker_image": IMAGES}], ids=str
)
def test_the_longest_usual_user_data_is_short(cloud, given):
    """EC2 takes 16 KiB; what is over 6 KiB leaves the user too little. With TLS, on a spot machine with GPUs."""
    given = {key: value if isinstance(value, str) else value[cloud] for key, value in given.items()}
    resolved = environment.captured(options.resolve(cloud=cloud, keywords=given, environ={}))
    values = resolved.for_role("worker")
    launch = bootstrap.worker(values, tls.make("etl"), "tls://10.0.0.4:8786", python="python")
    naming = userdata.numbered("etl-worker", [(0, "abcdef", 0)], "ds.meta_data.ami_launch_index")
    text = userdata.render(launch, values, userdata.Setting(naming, gpu=True, notice=cloud))
    assert ("docker_image" in given) == ("/login" in text)
    assert len(userdata.pack(text)) < 6 << 10


PARTS = {  # what each cloud's part of a module has, and no other's
    spot: {"ec2": "spot/instance-action", "gcp": "instance/preempted", "azure": "scheduledevents"},
    registry: {"ecr": "X-Amz-Target", "google": "oauth2accesstoken", "azure": "refresh_token"},
}


@pytest.mark.parametrize("module, name", [(module, name) for module, parts in PARTS.items() for name in parts])
def test_a_machine_gets_only_what_its_own_cloud_needs(module, name):
    text = bootstrap.travelling(module, "main" if module is registry else "dask_setup", name)
    assert [part for part, own in PARTS[module].items() if own in text] == [name]
    tree = ast.parse(text)
    assert not any(
        ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, (ast.Module, ast.FunctionDef))
    )
    assert "#" not in text and "\n\n" not in text
    exec(compile(tree, name, "exec"), {"__name__": "travelled"})


@pytest.mark.parametrize("length, fits", [(30, True), (120, False)])
def test_two_hundred_variables_fit_or_are_refused_by_plan(tmp_path, length, fits):
    """Of random letters, which compress badly."""
    letters = random.Random(1).choices(string.ascii_letters + string.digits, k=200 * length)
    env_vars = {f"VARIABLE_{i}": "".join(letters[i * length : (i + 1) * length]) for i in range(200)}
    profile = tmp_path / "p.yaml"
    profile.write_text(yaml.safe_dump({"cloudprovider": {"ec2": {"env_vars": env_vars, "n_workers": 1}}}))
    command = [sys.executable, "-m", "dask_cloudvm", "plan", "--offline", str(profile)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if fits:
        assert done.returncode == 0, done.stderr
    else:
        said = r"user-data has [0-9,]+ bytes when compressed, 16,384 are allowed; shorten env_vars"
        assert done.returncode == 1 and re.search(said, done.stderr), done.stderr
