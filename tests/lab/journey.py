"""What a cluster goes through on machines that boot, on whatever cloud. A cloud opts in by a fixture ``site``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dask
import distributed
import pytest
import yaml

from dask_cloudvm import from_name, tls

CONFIG = Path(__file__).parents[2] / "config"
NAME = "lab"
QUIET = {"report": lambda line: None}
SECRET = "correct-horse-battery-staple"
HOSTILE = {
    "QUOTES": """it's "quoted" `so` \\ and \\'so\\\\""",
    "DOLLARS": "$HOME ${PATH} $(id) %h %% $$",
    "LINES": "one\n two\r\n\n# three\n",
    "COLONS": "a: b: - c, [d] {e}: #f",
    "UNICODE": "äß€ 😀 \u2028 \u00a0 日本",
    "JINJA": "{{ ds }} {% set name = 1 %} {# x #} {{",
    "SPACES": "  before and after\t ",
    "EMPTY": "",
    "no_proxy": """127.0.0.1 "$HOME" `id` \\ 'x' #y %h""",
    "LONG": "64 KiB: $'\"\n€" * 4000 + "x" * 5536,
}
COMMANDS = [
    """printf %s 'it'"'"'s "quoted" $HOME {{ ds }}: - ünï' > /var/lib/hostile-1""",
    """cat > /var/lib/hostile-2 <<'END'\nkey: {% value %}\n\t- "x" $(id)\nEND""",
    'printf %s "$no_proxy" > /var/lib/hostile-3',
]
RESOURCE = 'it\'s: "$HOME" {{ €'


def until(condition: Callable[[], Any], what: str, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds:g} s: {what}"
        time.sleep(0.1)


def run(*command: str, check: bool = True) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert not check or done.returncode == 0, done.stderr
    return done.stdout


def cli(*arguments: str, check: bool = True) -> str:
    return run(sys.executable, "-m", "dask_cloudvm", *arguments, check=check)


class Journey:
    """One cluster of a profile, from up to down: the tests are steps, in this order."""

    cloud: str

    @classmethod
    def up(cls, folder: Path) -> list[str]:
        """The arguments of ``dask-cloudvm up``: the cloud's own profile, and over it what is to arrive unchanged."""
        hostile = folder / "hostile.yaml"
        # A machine whose power fails says nothing: how soon its peers notice is Dask's own setting.
        env = {**HOSTILE, "SECRET": SECRET, "DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP": "12s"}
        workers = {"resources": {RESOURCE: 2}, "nthreads": 1}
        options = {"runtime": "image", "env_vars": env, "extra_bootstrap": COMMANDS, "worker_options": workers}
        hostile.write_text(yaml.safe_dump({"cloudprovider": {"cluster": {**options, "n_workers": 2}}}))
        profile = str(CONFIG / f"{cls.cloud}.yaml")
        return [profile, str(hostile), "--name", NAME, "--set", "spot=true", "--set", "firewall.cidr=me"]

    @pytest.fixture(autouse=True)
    def is_up(self, up: None, same_user: None) -> None:
        pass

    @pytest.fixture
    def client(self, is_up: None) -> Iterator[distributed.Client]:
        with (
            dask.config.set({"distributed.deploy.lost-worker-timeout": "1s"}),
            from_name(NAME, **QUIET) as cluster,
            distributed.Client(cluster) as client,
        ):
            yield client

    def test_a_computation_over_tls(self, site: Any, client: distributed.Client) -> None:
        client.wait_for_workers(2, timeout=60)
        assert client.cluster.scheduler_address.startswith("tls://")
        assert client.submit(sum, client.map(lambda x: x**2, range(100))).result(timeout=60) == 328350
        workers = client.scheduler_info()["workers"]
        assert all(address.startswith("tls://") for address in workers)
        assert {w["name"] for w in workers.values()} == set(client.cluster.workers)
        assert {w["host"] for w in workers.values()} < {machine.address for machine in site.lab.on()}

    def test_another_process_finds_it(self) -> None:
        program = (
            "import dask_cloudvm, distributed\n"
            f"with dask_cloudvm.from_name({NAME!r}) as cluster, distributed.Client(cluster) as client:\n"
            "    print(client.submit(pow, 2, 10).result(timeout=60))\n"
        )
        assert run(sys.executable, "-c", program).split()[-1] == "1024"

    def test_the_console_of_each_machine(self) -> None:
        logs = json.loads(cli("logs", NAME, "--boot", "-o", "json"))
        assert len(logs) == 3
        for name, text in logs.items():
            assert "cloud-init" in text, name
            assert ("Scheduler at:" if name.endswith("scheduler") else "Registered to:") in text

    def test_whatever_a_user_writes_arrives_as_it_was(self, site: Any, client: distributed.Client) -> None:
        for environment in [client.run_on_scheduler(environ), *client.run(environ).values()]:
            assert {name: environment.get(name) for name in HOSTILE} == HOSTILE
        for worker in client.scheduler_info()["workers"].values():
            assert worker["resources"] == {RESOURCE: 2} and worker["nthreads"] == 1
        for machine in site.lab.on():
            assert machine.run("cat", "/var/lib/hostile-1") == """it's "quoted" $HOME {{ ds }}: - ünï"""
            assert machine.run("cat", "/var/lib/hostile-2") == 'key: {% value %}\n\t- "x" $(id)\n'
            assert machine.run("cat", "/var/lib/hostile-3") == HOSTILE["no_proxy"]

    def test_cloud_init_and_systemd_find_nothing_wrong(self, site: Any) -> None:
        for machine in site.lab.on():
            assert "Valid" in machine.run("cloud-init", "schema", "--system")
            assert machine.run("cloud-init", "status").strip() == "status: done"
            assert machine.run("systemd-analyze", "verify", "/etc/systemd/system/dask-cloudvm.service") == ""

    def test_each_role_has_its_own_key_and_no_client_key_is_anywhere(self, site: Any) -> None:
        kept = tls.load(NAME) or {}
        keys = {name: key_of(kept[f"{name}.key"]) for name in ("worker", "client")}
        scheduler, *workers = sorted(site.lab.on(), key=lambda machine: machine.address)
        keys["scheduler"] = key_of(scheduler.run("cat", "/etc/dask-cloudvm/scheduler.key"))
        for machine in (scheduler, *workers):
            there = {name for name, key in keys.items() if machine.run("sh", "-c", FIND % key, check=False)}
            assert there == {"scheduler" if machine is scheduler else "worker"}, machine.address
            assert machine.run("sh", "-c", "cat /etc/dask-cloudvm/*.key").count("BEGIN PRIVATE KEY") == 1

    def test_nothing_secret_is_seen_by_other_users(self, site: Any) -> None:
        for machine in site.lab.on():
            key = key_of(machine.run("sh", "-c", "cat /etc/dask-cloudvm/*.key"))
            for secret in (SECRET, key):
                assert secret not in machine.run("ps", "axww", "-o", "args")
                assert secret not in machine.run("journalctl", "--all", "--no-pager")
                assert secret not in machine.console
                assert machine.run("sh", "-c", FIND % secret), "root finds it"
                assert machine.run(*ANOTHER, "sh", "-c", FIND % secret, check=False) == ""
                assert secret not in machine.run(*ANOTHER, "ps", "axeww", check=False)
            packed = machine.run("sh", "-c", "ls /var/lib/cloud/instances/*/user-data.txt").split()
            for path in [*packed, "/var/lib/cloud/instance/obj.pkl"]:
                assert machine.run(*ANOTHER, "cat", path, check=False) == "", path

    def test_a_spot_notice_moves_results_and_brings_a_replacement(self, site: Any, client: distributed.Client) -> None:
        client.wait_for_workers(2, timeout=60)
        done = client.map(unique, range(30))
        values = client.gather(done)
        running = client.map(slow, range(40))
        first, last = (info["host"] for info in client.scheduler_info()["workers"].values())
        site.notice(site.lab.machines[first])
        until(site.lab.machines[first].off.is_set, "the machine goes by itself")
        assert client.gather(done) == values, "results were moved, not computed again"
        assert client.gather(running) == list(range(40))
        until(lambda: self._hosts(client) - {first, last}, "a replacement joins", 120)
        assert len(site.lab.on()) == site.there() == 3

    def test_a_machine_whose_power_fails_is_replaced(self, site: Any, client: distributed.Client) -> None:
        client.wait_for_workers(2, timeout=60)
        running = client.map(slow, range(40))
        victim, _ = before = sorted(self._hosts(client))
        site.lab.machines[victim].kill()
        until(lambda: self._hosts(client) - {*before}, "a replacement joins", 120)
        assert client.gather(running) == list(range(40))
        until(lambda: len(site.lab.on()) == site.there() == 3, "the cloud has as many machines as run")

    def test_a_machine_that_is_rebooted_goes_and_is_replaced(self, site: Any) -> None:
        """Nobody watches, so that it goes by itself."""
        _, worker, _ = sorted(site.lab.on(), key=lambda machine: machine.address)
        refused = worker.run("sh", "-c", "systemctl restart dask-cloudvm 2>&1 || true")
        assert "may be requested by dependency only" in refused
        worker.run("systemctl", "reboot", "--force", "--force", check=False)
        until(worker.off.is_set, "the machine goes by itself")
        assert "dask-cloudvm/started" in worker.console
        until(lambda: len(site.lab.on()) == site.there() == 2, "the cloud has as many machines as run")
        cli("scale", NAME, "2")
        until(lambda: len(site.lab.on()) == site.there() == 3, "it is replaced")

    def _hosts(self, client: distributed.Client) -> set[str]:
        return {info["host"] for info in client.run_on_scheduler(joined).values()}

    def test_scale_up_and_down(self, site: Any, client: distributed.Client) -> None:
        cli("scale", NAME, "3")
        client.wait_for_workers(3, timeout=60)
        until(lambda: len(site.lab.on()) == 4, "a machine for each worker and the scheduler")
        cli("scale", NAME, "1")
        until(lambda: len(site.lab.on()) == site.there() == 2, "fewer machines")
        assert client.submit(sum, [1, 2]).result(timeout=60) == 3

    def test_down_leaves_nothing(self, site: Any) -> None:
        cli("down", NAME)
        assert site.there() == 0
        until(lambda: not site.lab.on(), "every machine is off")

    def test_an_idle_cluster_removes_itself(self, site: Any) -> None:
        sets = ["runtime=image", "firewall.cidr=me", "idle_timeout=20s"]
        options = [part for each in sets for part in ("--set", each)]
        cli("up", str(CONFIG / f"{self.cloud}.yaml"), "--name", "idle", "--n-workers", "1", *options)
        until(lambda: not site.lab.on(), "every machine is off", 120)
        last = [*site.lab.machines.values()][-1]
        assert site.there() == 0, [line for line in last.console.splitlines() if "python3" in line or "bash" in line]
        assert json.loads(cli("ls", "-o", "json")) == []


# Files that hold a text, of those that are not the same on every machine.
FIND = "grep -rlsF -e '%s' /etc /home /root /run /srv /tmp /var || true"
ANOTHER = ("setpriv", "--reuid=1000", "--regid=1000", "--clear-groups", "--")


def key_of(pem: str) -> str:
    """A line that no other key has."""
    return pem.split("-----")[2].split()[1]


def travels(function: Any) -> Any:
    """Dask sends functions of the main module as they are; the machines do not have this one."""
    function.__module__ = "__main__"
    return function


@travels
def environ() -> dict[str, str]:
    return dict(os.environ)


@travels
def joined(dask_scheduler: Any) -> dict[str, Any]:
    return {address: {"host": worker.host} for address, worker in dask_scheduler.workers.items()}


@travels
def unique(i: int) -> tuple[int, str]:
    return i, os.urandom(8).hex()


@travels
def slow(i: int) -> int:
    time.sleep(0.3)
    return i
