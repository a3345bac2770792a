"""Hostile input: what is wrong is refused quickly, without a traceback, and before anybody is asked for anything."""

from __future__ import annotations

import os
import sys
import tracemalloc

import pytest
import yaml
from click.testing import CliRunner
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from suite import run, subject

from dask_cloudvm import options, plan, profile, schema
from dask_cloudvm.cli import cli
from dask_cloudvm.cluster import CLASSES
from dask_cloudvm.errors import CloudVMError, ProfileError

EXAMPLES = int(os.environ.get("OPTIONS_EXAMPLES", "200"))
anew = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much],
)
FIXTURES = {"ec2": "aws", "gcp": "gcp", "azure": "azure"}
WHERE = {"ec2": {"region": "us-east-1"}, "gcp": {}, "azure": {"region": "eastus"}}
DATA = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture(params=FIXTURES)
def cloud(request):
    """A cloud's name and its fake."""
    return request.param, request.getfixturevalue(FIXTURES[request.param])


# Never an API call for an invalid input


@anew
@given(data=st.data())
def test_invalid_keywords_ask_nobody(cloud, data):
    name, fake = cloud
    known = data.draw(st.lists(st.sampled_from(sorted(schema.options(name))), max_size=2, unique=True))
    keywords = {option: data.draw(DATA, label=option) for option in known}
    keywords |= data.draw(st.dictionaries(st.text(max_size=8), DATA, max_size=1))
    keywords.pop("asynchronous", None)
    try:
        options.resolve(cloud=name, keywords=keywords)
    except ProfileError:
        with pytest.raises(ProfileError):
            CLASSES[name](**keywords)
        assert fake.calls == []


@anew
@given(tree=st.dictionaries(st.sampled_from(["cluster", "cloud", *schema.clouds()]) | st.text(max_size=6), DATA))
def test_invalid_profiles_ask_nobody_and_end_with_code_2(cloud, tmp_path, tree):
    _, fake = cloud
    path = tmp_path / "profile.yaml"
    path.write_text(yaml.safe_dump({"cloudprovider": tree}), "utf-8", "surrogatepass")
    try:
        options.resolve(path)
    except ProfileError as error:
        for verb in ("up", "plan"):
            done = CliRunner().invoke(cli, [verb, str(path)])
            assert done.exit_code == 2, done.output
            assert "Traceback" not in done.output and str(error.problems[0]) in done.output
        assert fake.calls == []


@anew
@given(
    text=st.text(max_size=40), where=st.sampled_from(["CLUSTER__N_WORKERS", "EC2__ZONE", "GCP__SPOT", "AZURE__NOPE"])
)
def test_an_invalid_environment_asks_nobody(cloud, monkeypatch, text, where):
    name, fake = cloud
    if "\0" in text or not text.isprintable():
        return
    with monkeypatch.context() as patched:
        patched.setenv(f"DASK_CLOUDPROVIDER__{where}", text)
        try:
            options.resolve(cloud=name)
        except ProfileError:
            assert CliRunner().invoke(cli, ["up", "--set", f"cloud={name}"]).exit_code == 2
            assert fake.calls == []


# Odd characters on the wire

NAMES = schema.load("cluster")["properties"]["name"]["pattern"]
LETTERS = st.text(min_size=1, max_size=12) | st.sampled_from(
    ["ä b", "'", '"', "{{ name }}", "$(reboot)", "`x`", "a\nb", "<a&b>", "\\", "%s", "\0", "\ud800", "aws:x", "x" * 300]
)


@settings(anew, max_examples=max(20, EXAMPLES // 4))
@given(tags=st.dictionaries(LETTERS, LETTERS | st.booleans() | st.integers(), max_size=3))
@example(tags={"Name": "own", "ключ": "<x>&'\""})
@example(tags={"k": "v" * 257})
@example(tags={f"k{i}": "v" for i in range(60)})
def test_tags_come_through_or_are_refused_before_any_call(cloud, tags):
    name, fake = cloud
    fake.reset()
    fake.calls.clear()
    try:
        it = subject(name, instance_tags=tags, **WHERE[name])
        it.cloud.check()
    except CloudVMError as error:
        str(error).encode()
        with pytest.raises(CloudVMError):
            CLASSES[name]("tags", instance_tags=tags, **WHERE[name])
        assert fake.calls == []
        return
    [made] = run(it.create("scheduler", [plan.scheduler_name("suite")]))
    [found] = run(it.cloud.list("suite"))
    assert (found.id, found.name, found.options_digest) == (made.id, "suite-scheduler", it.options.digest())


@settings(anew, max_examples=max(20, EXAMPLES // 4))
@given(name=st.from_regex(NAMES, fullmatch=True))
@example(name="a" * 40)
@example(name="a--b")
def test_every_name_that_is_allowed_works(cloud, name):
    which, fake = cloud
    fake.reset()
    resolved = options.resolve(cloud=which, keywords={"security": False, "name": name, **WHERE[which]})
    it = subject(which, **WHERE[which])
    facts = run(it.cloud.facts(None))
    wanted = [plan.scheduler_name(name), plan.worker_name(name, "3fa9c1", 1000)]
    for role, machine in zip(schema.ROLES, wanted, strict=True):
        machines = plan.machines(resolved, it.cloud, facts, name, role, [machine], certificates={}, address="tcp://x:1")
        for request in it.cloud.requests(machines, facts):
            run(it.cloud.create(request))
    assert {vm.name for vm in run(it.cloud.list(name))} == set(wanted)


@anew
@given(name=LETTERS.filter(lambda name: not name.isalnum()))
@example(name="../../etc")
@example(name="-rf")
@example(name="a.b")
def test_a_name_that_is_not_one_asks_nobody(cloud, name):
    which, fake = cloud
    if name.strip("abcdefghijklmnopqrstuvwxyz0123456789-") == "" and name[0].isalpha() and name[-1].isalnum():
        return
    for act in (lambda: CLASSES[which](name), lambda: CLASSES[which].from_name(name)):
        with pytest.raises(ProfileError):
            act()
    assert fake.calls == []


# Bombs


def bomb(levels: int) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, levels)]
    return "\n".join(lines)


def merging(levels: int) -> str:
    lines = ["a0: &a0 {x0: 1, x1: 1}"]
    lines += [f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}], k{i}: 1}}" for i in range(1, levels)]
    return "\n".join(lines)


BOMBS = {
    "anchors": bomb(12),
    "merges": merging(12),
    "a long text, again and again": f"a: &a {'x' * 1000}\nb: [{', '.join(['*a'] * 200_000)}]",
    "an anchor in itself": "a: &a [*a]",
    "many keys": "\n".join(f"k{i}: 1" for i in range(101_000)),
    "many items": f"a: [{'1,' * 110_000}]",
    "many brackets": "[" * 500_000,
    "many documents": "--- 1\n" * 100_000,
    "many anchors": "".join(f"- &a{i} 1\n" for i in range(60_000)),
    "one long number": f"cloudprovider: {{cluster: {{n_workers: {'9' * 500_000}}}}}",
    "one long key": f"cloudprovider: {{{'k' * 500_000}: 1}}",
    "one long comment": "#" * 900_000,
    "many equal keys": "cloudprovider:\n" + "  a: 1\n" * 120_000,
}


def refused(path) -> int:
    """Calls of Python functions that refusing a file takes."""
    calls = 0

    def count(frame, event, argument):
        nonlocal calls
        calls += event == "call"

    sys.setprofile(count)
    try:
        with pytest.raises(ProfileError) as caught:
            options.resolve(path, environ={})
    finally:
        sys.setprofile(None)
    assert len(str(caught.value)) < 10_000, "a message that can be read"
    return calls


@pytest.mark.parametrize("kind", BOMBS)
def test_a_bomb_is_refused_at_little_cost(tmp_path, kind):
    path = tmp_path / "bomb.yaml"
    path.write_text(BOMBS[kind])
    assert refused(path) < 40 * profile.MOST_NODES


def test_an_enormous_file_is_not_read_whole(tmp_path):
    path = tmp_path / "enormous.yaml"
    with open(path, "wb") as file:
        file.truncate(1 << 40)  # takes no room
    for file in (path, "/dev/zero"):
        tracemalloc.start()
        calls, peak = refused(file), tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert calls < 50_000 and peak < 8 * profile.LARGEST, (calls, peak)


# Paths


@pytest.mark.parametrize("name", ["a b.yaml", "ä.yaml", "'\".yaml", "a\nb.yaml", "{{x}}.yaml", "$(x).yaml", "-o"])
def test_profiles_with_odd_names(tmp_path, name):
    path = tmp_path / name
    path.write_text("cloudprovider: {local: {nope: 1}}")
    done = CliRunner().invoke(cli, ["validate", "--", str(path)])
    assert done.exit_code == 2 and "there is no option 'nope'" in done.output and "Traceback" not in done.output
    assert done.output.count("\n") == 1, "one problem is one line"


def test_a_state_folder_with_an_odd_name(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "ä b'\"$(x)`y`{{ name }}%s<&>"))
    with CLASSES["local"]("odd", n_workers=1, memory_limit="600 MiB", report=lambda line: None) as cluster:
        cluster.ready()
        with cluster.get_client() as client:
            assert client.submit(sum, [1, 2]).result() == 3
