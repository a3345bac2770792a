"""The command line, run as a user runs it: processes, exit codes, standard output and error."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dask_cloudvm import down, ls, tls
from dask_cloudvm.cli import VERBS
from dask_cloudvm.clouds import local_records

CONFIG = Path(__file__).parents[1] / "config"
SMALL = ["--set", "local.memory_limit=600 MiB", "--set", "cluster.idle_timeout=2 minutes"]


def run(*args: str, command: tuple[str, ...] = ("-m", "dask_cloudvm"), **kwargs):
    return subprocess.run([sys.executable, *command, *args], capture_output=True, text=True, timeout=80, **kwargs)


def start(*args: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "dask_cloudvm", *args]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture(autouse=True)
def nothing_stays():
    yield
    left = {vm.cluster for vm in ls()}
    if left:
        down(*left)
    assert not left


def wait_until(condition, seconds: float = 40.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.02)


def test_the_road_of_a_profile(tmp_path):
    profile = tmp_path / "p.yaml"
    assert run("init", "local", str(profile)).returncode == 0
    assert (
        run("init", "local", str(profile)).stderr
        == f"error: cannot write {profile}: it exists; use --force to overwrite it\n"
    )
    assert run("validate", str(profile)).stdout == f"{profile}: ok\n"

    planned = run("plan", str(profile), "--name", "road", *SMALL)
    assert planned.stdout.splitlines()[0] == "cluster road on local"
    assert "+ start    road-scheduler" in planned.stdout

    up = run("up", str(profile), "--name", "road", *SMALL)
    assert up.returncode == 0, up.stderr
    assert "Cluster road is running on local with 2 workers" in up.stdout
    assert re.search(r"scheduler  tls://127\.0\.0\.1:\d+", up.stdout)
    assert re.search(r"dashboard  http://127\.0\.0\.1:\d+/status", up.stdout)
    assert "2 workers joined" in up.stderr

    lines = up.stdout[up.stdout.index("from dask_cloudvm") :]  # the two lines that connect, as they are printed
    done = run("-c", f"{lines}\nprint(client.submit(sum, [1, 2]).result())", command=())
    assert done.stdout.splitlines()[-1] == "3", done.stderr

    [row] = json.loads(run("ls", "-o", "json").stdout)
    assert (row["name"], row["state"], row["workers"], len(row["machines"])) == ("road", "running", 2, 3)
    assert run("ls").stdout.splitlines()[1].startswith("road  local  running  2")

    kept = json.loads(run("plan", str(profile), "--name", "road", "--n-workers", "3", *SMALL, "-o", "json").stdout)
    assert (len(kept["keep"]), [call["names"] for call in kept["create"]]) == (3, [["road-worker-new-0"]])

    assert run("scale", "road", "1").stdout == "road has 1 worker\n"
    status = json.loads(run("status", "road", "-o", "json").stdout)
    assert (status["workers"], status["joined"], status["answer"]) == (1, 1, None)
    assert re.search(r"\nroad-worker-\S+  worker +running  joined ", run("status", "road").stdout)
    again = json.loads(run("up", str(profile), "--name", "road", *SMALL, "-o", "json").stdout)
    assert (again["workers"], again["scheduler"]) == (2, row["scheduler"])

    logs = run("logs", "road").stdout
    assert "==> road-scheduler <==" in logs and "Register worker" in logs
    one = run("logs", "road", "--worker", again["machines"][-1]["name"], "--boot").stdout
    assert one.count("==>") == 1 and "Start worker at" in one
    other = run("up", str(profile), "--name", "road", *SMALL, "--set", "nthreads=2")
    assert (other.returncode, "already runs with other options (nthreads)" in other.stderr) == (1, True)
    refused = run("plan", str(profile), "--name", "road", *SMALL, "--set", "nthreads=2")
    assert (refused.returncode, "already runs with other options" in refused.stderr) == (1, True)

    assert run("down", "road").stdout == "removed road: 3 machines\n"
    assert run("ls").stderr == "no clusters\n"


def test_names_that_do_not_exist():
    for verb in (["down"], ["status"], ["logs"]):
        result = run(*verb, "nope")
        assert (result.returncode, result.stderr) == (1, "error: there is no cluster 'nope'; no cluster exists\n")
    assert run("scale", "nope", "1").returncode == 1
    assert run("up", str(CONFIG / "local.yaml"), "--n-workers", "0", "--name", "there").returncode == 0
    result = run("down", "nope", "there")
    assert result.stderr == "error: there is no cluster 'nope'; there is there\n"
    assert {vm.cluster for vm in ls()} == {"there"}, "all or none"
    machine = run("logs", "there", "--worker", "there-schedular")
    assert "did you mean there-scheduler?" in machine.stderr
    assert run("down", "--all").stdout == "removed there: 1 machine\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("stage", ["first", "scheduler", "workers"])
def test_interrupted_up_removes_what_was_made(number, stage):
    with start("up", "--name", "halt", "--n-workers", "2", *SMALL) as process:
        if stage == "first":
            assert "Making cluster" in process.stderr.readline()
        elif stage == "scheduler":
            wait_until(lambda: len(ls()) == 3)
        else:
            while "Scheduler at" not in process.stderr.readline():
                pass
        process.send_signal(number)
        _, errors = process.communicate(timeout=40)
    assert process.returncode == 130, errors
    assert "stopping; cleaning up" in errors
    assert errors.endswith("interrupted\n")
    assert ls() == []
    assert tls.load("halt") is None


def test_interrupted_up_of_a_running_cluster_keeps_what_was_there():
    assert run("up", "--name", "old", "--n-workers", "1", *SMALL).returncode == 0
    before = {vm.name for vm in ls()}
    with start("up", "--name", "old", "--n-workers", "3", *SMALL) as process:
        wait_until(lambda: len(ls()) > 2)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=40)
    assert process.returncode == 130
    assert "Removed what was made: old-worker-" in errors
    assert {vm.name for vm in ls()} == before
    run("down", "old")


@pytest.mark.parametrize("machines", [1, 3])
def test_killed_launcher_leaves_what_ls_shows_and_down_removes(machines):
    with start("up", "--name", "dead", "--n-workers", "2", *SMALL) as process:
        wait_until(lambda: len(ls()) >= machines)
        process.kill()
    [row] = json.loads(run("ls", "-o", "json").stdout)
    assert row["name"] == "dead"
    assert run("down", "dead").returncode == 0
    assert ls() == []
    pids = [pid for pid in os.listdir("/proc") if pid.isdigit()] if os.path.isdir("/proc") else []
    marks = [pid for pid in pids if str(tls.state_folder()).encode() in _environment(pid)]
    assert marks == []


def _environment(pid: str) -> bytes:
    try:
        return b"\0".join(
            v for v in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0") if v.startswith(b"DASK_CLOUDVM_M")
        )
    except OSError:
        return b""


def test_follow_scales_with_the_load_and_ends_with_ctrl_c(tmp_path):
    profile = tmp_path / "p.yaml"
    adaptive = "{minimum: 1, maximum: 2, interval: 100ms, target_duration: 1s}"
    profile.write_text(f"cloudprovider: {{cluster: {{name: flow, adaptive: {adaptive}}}}}")
    plain = run("up", str(profile), *SMALL)
    assert "Starting 1 worker; adaptive scaling needs --follow, or Python" in plain.stderr.replace("\n", " ")
    run("down", "flow")
    with start("up", str(profile), "--follow", *SMALL) as process:
        while "Following" not in process.stderr.readline():
            pass
        program = (
            "import time\nfrom dask_cloudvm import from_name\nclient = from_name('flow').get_client()\n"
            "client.gather(client.map(lambda i: time.sleep(0.2), range(40)))\n"
            "print(len(client.scheduler_info(n_workers=-1)['workers']))"
        )
        assert run("-c", program, command=()).stdout.splitlines()[-1] == "2"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=40)
    assert process.returncode == 130, errors
    assert "Removed what was made: " in errors


def test_follow_ends_when_the_cluster_does():
    result = run("up", "--name", "brief", "--follow", "--set", "idle_timeout=8s")
    assert result.returncode == 0, result.stderr
    assert "The scheduler has ended" in result.stderr
    assert ls() == []


def test_explain_shows_values_from_all_layers(tmp_path):
    ambient = Path(os.environ["DASK_CONFIG"]) / "mine.yaml"
    ambient.write_text("cloudprovider:\n  cluster:\n    env_vars: {A: ambient}\n  local: {dashboard_port: 8999}\n")
    base, more = tmp_path / "base.yaml", tmp_path / "more.yaml"
    base.write_text(
        "cloudprovider:\n  cluster:\n    name: base\n    n_workers: 1\n    env_vars: {B: base, API_KEY: s3cret}\n"
    )
    more.write_text("cloudprovider:\n  local:\n    n_workers: 2\n")
    environ = os.environ | {"DASK_CLOUDPROVIDER__LOCAL__NTHREADS": "3"}
    result = run("explain", str(base), str(more), "--set", "spot=on", "-o", "json", env=environ)
    rows = {row["option"]: (row["value"], row["origin"]) for row in json.loads(result.stdout)["options"]}
    assert rows["dashboard_port"] == (8999, f"{ambient}:4:11")
    assert rows["name"] == ("base", f"{base}:3:5")
    assert rows["n_workers"] == (2, f"{more}:3:5")
    assert rows["nthreads"] == (3, "$DASK_CLOUDPROVIDER__LOCAL__NTHREADS")
    assert rows["spot"] == (True, "--set")
    assert rows["idle_timeout"] == ("20 minutes", "default")
    assert rows["env_vars"] == ({"A": "ambient", "B": "base", "API_KEY": "***"}, f"{base}:5:5, {ambient}:3:5")
    assert "s3cret" not in result.stdout + run("plan", str(base), "-o", "json").stdout


BAD = {
    "port: text": "local: {port: text}",
    "unknown key": "local: {prot: 1}",
    "unknown cloud": "cloud: lokal",
    "two clouds": "local: {}\n  ec2: {}",
    "negative": "cluster: {n_workers: -1}",
    "duration": "cluster: {idle_timeout: soon}",
    "name": "cluster: {name: A_b}",
}


@pytest.mark.parametrize("text", BAD.values(), ids=BAD)
def test_bad_profiles_make_nothing(text, tmp_path):
    profile = tmp_path / "bad.yaml"
    profile.write_text(f"cloudprovider:\n  {text}\n")
    for verb in ("up", "plan", "explain"):
        result = run(verb, str(profile))
        assert result.returncode == 2
        assert re.fullmatch(rf"{re.escape(str(profile))}:[23]:\d+: .+\n", result.stderr)
        assert result.stdout == ""
    assert not tls.state_folder().exists()


def test_usage_errors_and_exit_codes(tmp_path):
    for args in (
        ["upp"],
        ["down"],
        ["down", "a", "--all"],
        ["scale", "x", "-1"],
        ["init", "mars"],
        ["up", "--set", "x"],
    ):
        assert run(*args).returncode == 2, args
    assert "did you mean up?" in run("upp").stderr
    ec2 = run("up", str(tmp_path / "none.yaml"))
    assert (ec2.returncode, ec2.stderr) == (2, f"{tmp_path / 'none.yaml'}: cannot read it: no such file or directory\n")
    blocked = run("up", env=os.environ | {"XDG_STATE_HOME": __file__})
    assert blocked.returncode == 1
    assert re.fullmatch(r"(Making .*\n)?error: cannot .* in .*: not a directory; .*XDG_STATE_HOME.*\n", blocked.stderr)


def test_a_worker_that_ends_before_it_joins_ends_up_and_leaves_nothing():
    result = run("up", "--name", "broken", "--n-workers", "2", "--set", "worker_class=no.such.Class")
    assert result.returncode == 1
    message = result.stderr[result.stderr.index("error: ") :]
    assert re.match(r"error: cluster 'broken' did not start: the machine of worker broken-worker-\S+ ended", message)
    assert "No module named 'no'" in message
    assert ls() == []


def test_a_dead_scheduler_is_exit_1_and_up_starts_anew():
    profile = str(CONFIG / "local.yaml")
    assert run("up", profile, "--name", "dead", "--n-workers", "0").returncode == 0
    [vm] = ls()
    for process in local_records.processes({vm.id}):
        process.kill()
    scaled = run("scale", "dead", "1")
    assert (scaled.returncode, scaled.stdout) == (1, "")
    assert scaled.stderr.startswith("error: the scheduler of cluster 'dead' has ended; see")
    status = run("status", "dead")
    assert status.returncode == 0 and "the scheduler has ended" in status.stdout
    assert "Scheduler at" in run("logs", "dead").stdout
    assert run("up", profile, "--name", "dead", "--n-workers", "1").returncode == 0
    assert len(ls()) == 2
    run("down", "dead")


def test_a_cloud_that_cannot_be_asked_hides_no_other():
    program = (
        "import dask_cloudvm.api as api, dask_cloudvm.cli as cli\n"
        "from dask_cloudvm.errors import CloudError\n"
        "class Broken:\n"
        "    name = 'broken'\n"
        "    async def list(self, cluster=None):\n"
        "        raise CloudError(doing='list machines', what='expired', hint='log in again')\n"
        "known = api.everywhere\n"
        "async def everywhere(cloud): return [*await known(cloud), *([] if cloud else [Broken()])]\n"
        "api.everywhere = everywhere\n"
        "cli.cli({})"
    )
    assert run("up", "--name", "here", "--n-workers", "0").returncode == 0
    result = run("-c", program.format(["ls"]), command=())
    assert result.stderr == "warning: cannot list machines: expired; log in again\n"
    assert "here  local" in result.stdout
    asked = run("-c", program.format(["ls", "--cloud", "ec2"]), command=())
    assert asked.returncode == 1 and asked.stderr.startswith("error: cannot ")
    assert run("ls", "--cloud", "nope").returncode == 2
    assert run("-c", program.format(["down", "here"]), command=()).stdout == "removed here: 1 machine\n"
    there = run("-c", program.format(["down", "there"]), command=())
    assert (there.returncode, there.stderr) == (1, "error: cannot list machines: expired; log in again\n")


@pytest.mark.parametrize("name", ["", ".", "..", "*", "etl/", "../../victim", "{victim}", 'x" OR labels.a:*', "a\\b"])
def test_what_cannot_be_a_name_is_no_path_and_no_pattern(tmp_path, name):
    victim = tmp_path / "victim" / "thesis"
    victim.mkdir(parents=True)
    (victim / "data.csv").write_text("important")
    assert run("up", "--name", "etl", "--n-workers", "0").returncode == 0
    for verb in ("down", "status", "logs"):
        done = run(verb, name.format(victim=victim.parent) if "{" in name else name)
        assert (done.returncode, done.stdout) == (1, "") and "there is no cluster" in done.stderr
    assert (victim / "data.csv").read_text() == "important"
    assert [vm.name for vm in ls()] == ["etl-scheduler"] and tls.load("etl")
    assert run("down", "etl").stdout == "removed etl: 1 machine\n"


def test_down_all_says_where_it_could_not_look():
    environ = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y", "AWS_DEFAULT_REGION": "us-east-1"}
    environ |= {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_MAX_ATTEMPTS": "1"}
    assert run("up", "--name", "here", "--n-workers", "0").returncode == 0
    done = run("down", "--all", env={**os.environ, **environ})
    assert (done.returncode, done.stdout) == (1, "removed here: 1 machine\n")
    assert done.stderr.startswith("error: cannot list machines: no answer from AWS")
    listed = run("ls", env={**os.environ, **environ})
    assert listed.returncode == 0 and listed.stderr.endswith("no clusters where could be looked\n")


def test_a_file_that_dask_cannot_read(tmp_path):
    file = Path(os.environ["DASK_CONFIG"]) / "broken.yaml"
    assert run("up", "--name", "here", "--n-workers", "0").returncode == 0
    file.write_text("cloudprovider: [1")
    planned = run("plan")
    assert planned.returncode == 2 and planned.stderr.startswith(f"{file}:2:1: not valid YAML")
    assert "Traceback" not in planned.stderr
    assert run("down", "here").stdout == "removed here: 1 machine\n"


def test_ctrl_c_does_not_wait_for_a_cloud_that_does_not_answer():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        environ = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y", "AWS_DEFAULT_REGION": "us-east-1"}
        environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{silent.getsockname()[1]}"
        command = [sys.executable, "-m", "dask_cloudvm", "ls", "--cloud", "ec2"]
        process = subprocess.Popen(command, env={**os.environ, **environ}, stderr=subprocess.PIPE, text=True)
        silent.accept()
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=20)
    assert process.returncode == 130 and told == "stopping; cleaning up\ninterrupted\n"


def test_a_full_disk_behind_the_output():
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "dask_cloudvm", "options", "ec2"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr and "No space left" in done.stderr


def test_logs_are_in_order():
    assert run("up", "--name", "logs", "--n-workers", "1").returncode == 0
    told = run("logs", "logs").stdout
    assert told.index("Start worker at") < told.index("Registered to")
    run("down", "logs")


def test_doctor_finds_a_folder_that_cannot_hold_records(monkeypatch):
    assert "ok" in run("doctor", "local").stdout
    done = run("doctor", "local", env={**os.environ, "XDG_STATE_HOME": "/dev/null"})
    assert done.returncode == 1 and "not a directory" in done.stdout.lower()


def test_a_bug_says_how_to_report_it(monkeypatch):
    program = (
        "import dask_cloudvm.api as api, dask_cloudvm.cli as c\n"
        "async def broken(*_): raise ZeroDivisionError('oh')\n"
        "api.answers = broken\nc.cli(['ls'])"
    )
    result = run("-c", program, command=())
    assert result.returncode == 3
    assert "ZeroDivisionError: oh" in result.stderr
    assert "please report it" in result.stderr


def test_the_three_doors():
    for command in (("-m", "dask_cloudvm"), ("-m", "dask", "cloudvm")):
        result = run("options", "local", "-o", "json", command=command)
        assert "nthreads" in {row["option"] for row in json.loads(result.stdout)}, result.stderr
        assert run("down", "nope", command=command).returncode == 1
    assert json.loads(run("schema").stdout)["title"] == "profile"
    assert json.loads(run("schema", "gcp").stdout)["title"] == "gcp"


def test_help_of_every_verb():
    for verb in VERBS:
        result = run(verb, "--help")
        assert result.returncode == 0
        assert "Usage:" in result.stdout


def complete(line: str) -> list[str]:
    environ = os.environ | {
        "_DASK_CLOUDVM_COMPLETE": "bash_complete",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(line.split(" ")) - 1),
    }
    return run("-c", "from dask_cloudvm.__main__ import main; main()", command=(), env=environ).stdout.splitlines()


def test_shell_completion(tmp_path):
    assert complete("dask-cloudvm sc") == ["plain,scale", "plain,schema"]
    assert complete("dask-cloudvm up ") == ["file,"]
    named = Path(os.environ["DASK_CONFIG"]) / "named.yaml"
    named.write_text("cloudprovider:\n  profiles:\n    nightly: {cluster: {n_workers: 0, name: late}}\n")
    assert complete("dask-cloudvm up ni") == ["plain,nightly", "file,ni"]
    assert run("up", "nightly").returncode == 0
    assert complete("dask-cloudvm down l") == ["plain,late"]
    run("down", "late")


def test_gc_removes_what_has_no_scheduler_and_only_when_told():
    assert run("up", "local.yaml", "--name", "gone", *SMALL, cwd=CONFIG).returncode == 0
    [scheduler] = [vm for vm in ls() if vm.role == "scheduler"]
    clean = run("gc", "--cloud", "local", "--yes")
    assert (clean.returncode, clean.stdout, clean.stderr) == (0, "", "nothing is left over\n")
    for process in local_records.processes({scheduler.id}):
        process.kill()
    for folder in Path(scheduler.id).parent.iterdir():  # as if it had been long ago
        record = json.loads((folder / "machine.json").read_text())
        (folder / "machine.json").write_text(json.dumps({**record, "created": record["created"] - 3600}))
    dry = run("gc", "--cloud", "local")
    assert dry.returncode == 0 and "cluster gone has no scheduler" in dry.stdout
    assert dry.stderr == "nothing was removed; run it again with --yes\n" and ls()
    shown = json.loads(run("gc", "--cloud", "local", "--network", "--yes", "-o", "json").stdout)
    assert {row["name"] for row in shown} >= {"gone-scheduler"} and all(row["removed"] for row in shown)
    assert not ls()
