"""Dask's own configuration may be shared with other software: strange keys warn, wrong values of ours are errors."""

from __future__ import annotations

import warnings
from pathlib import Path

import dask.config
import pytest

from dask_cloudvm import options
from dask_cloudvm.errors import ProfileError


def warned(**given) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        options.resolve(environ={}, **given)
    assert all(issubclass(w.category, UserWarning) for w in caught)
    return [str(w.message) for w in caught]


def test_an_unknown_key_warns_with_its_position(dask_yaml):
    file = dask_yaml(
        """\
        cloudprovider:
          ec2:
            regoin: us-east-1
            region: us-east-1
          n_workers: 3
          nonsense: 5
          cluster:
            vpc: vpc-1
        """
    )
    assert warned(cloud="ec2") == [
        f"{file}:5:3: n_workers: there is no section 'n_workers'; write it under cluster",
        f"{file}:6:3: nonsense: there is no section 'nonsense'",
        f"{file}:8:5: cluster.vpc: there is no option 'vpc'; write it under ec2",
        f"{file}:3:5: ec2.regoin: there is no option 'regoin'; did you mean region?",
    ]


def test_an_unknown_key_in_dask_config_set_warns():
    with dask.config.set({"cloudprovider.ec2.regoin": "x"}):
        message = "dask.config.set: ec2.regoin: there is no option 'regoin'; did you mean region?"
        assert warned(cloud="ec2") == [message]


def test_the_warning_points_to_the_caller(dask_yaml):
    dask_yaml({"ec2": {"regoin": "x"}})
    with pytest.warns(UserWarning, match="regoin") as caught:
        options.resolve(cloud="ec2", environ={})
    assert caught[0].filename == __file__


def test_a_wrong_type_is_an_error_for_the_chosen_cloud_alone(dask_yaml):
    file = dask_yaml("cloudprovider:\n  ec2: {disk_size: big}\n  gcp: 5\n  azure: {azurevm: [1]}\n")
    assert options.resolve(cloud="local", environ={}).cloud == "local"
    messages = {
        "ec2": f'{file}:2:9: ec2.disk_size: expected a whole number, got "big"',
        "gcp": f"{file}:3:3: gcp: expected a mapping, got 5",
        "azure": f"{file}:4:11: azure.azurevm: expected a mapping, got [1]",
    }
    for cloud, message in messages.items():
        with pytest.raises(ProfileError) as caught:
            options.resolve(cloud=cloud, environ={})
        assert str(caught.value) == message


def test_a_cloudprovider_that_is_no_mapping_is_an_error_once(dask_yaml):
    file = dask_yaml("cloudprovider: ec2\n")
    with pytest.raises(ProfileError) as caught:
        options.resolve(environ={})
    assert str(caught.value) == f'{file}:1:1: expected a mapping, got "ec2"'
    dask_yaml("{}")
    with dask.config.set({"cloudprovider": "gcp"}), pytest.raises(ProfileError) as caught:
        options.resolve(environ={})
    assert str(caught.value) == 'dask.config.set: expected a mapping, got "gcp"'


def test_what_belongs_to_other_software_does_not_matter(dask_yaml):
    dask_yaml(
        """\
        distributed: {worker: {memory: {target: 0.6}}, day: 2026-01-31}
        ours: {a: 1, a: 2, cloudprovider: 5}
        odd: &odd {again: .nan, <<: {x: !!binary aGVsbG8=}}
        cloudprovider: {ec2: {region: x}}
        odder: [*odd, !!set {y}]
        """
    )
    assert warned(cloud="ec2") == []


def test_other_files_are_only_looked_at_where_they_speak_of_us():
    folder = Path(dask.config.paths[0])
    (folder / "broken.yaml").write_text("a: [\n")
    (folder / "binary.json").write_bytes(b"\xff\xfe")
    (folder / "nothing.yaml").write_text("# cloudprovider:\n#   ec2: {}\n")
    (folder / "notes.txt").write_text("cloudprovider: [")
    (folder / "gone.yaml").symlink_to("nowhere")
    (folder / "folder.yaml").mkdir()  # Dask skips what it cannot open, too
    (folder / "Upper.YML").write_text("cloudprovider: {cluster: {n_workers: 3}}")
    assert options.resolve(environ={})["n_workers"] == 3


def test_dasks_files_are_read_in_dasks_order(tmp_path, monkeypatch):
    places = [tmp_path / "etc", tmp_path / "missing", tmp_path / "one.yaml"]
    places[0].mkdir()
    for name, workers in (("etc/b.yaml", 2), ("etc/a.yaml", 1), ("one.yaml", 3)):
        (tmp_path / name).write_text(
            f"cloudprovider: {{cluster: {{n_workers: {workers}, env_vars: {{V{workers}: x}}}}}}"
        )
    for end, expected in ((1, 2), (3, 3)):
        monkeypatch.setattr(dask.config, "paths", [str(place) for place in places[:end]])
        dask.config.refresh(paths=dask.config.paths)
        resolved = options.resolve(environ={})
        assert resolved["n_workers"] == dask.config.get("cloudprovider.cluster.n_workers") == expected
        assert resolved["env_vars"] == dask.config.get("cloudprovider.cluster.env_vars")


def test_a_folder_that_may_not_be_listed_is_skipped_as_dask_does(dask_yaml, monkeypatch):
    def refuse(self):
        raise PermissionError

    dask_yaml("{}")
    monkeypatch.setattr(Path, "iterdir", refuse)  # root, who may run this, may list every folder
    assert set(options.resolve(environ={}).origins.values()) == {"default"}


def test_dates_in_dasks_file_are_text_and_not_taken_for_dask_config_set(dask_yaml):
    file = dask_yaml("cloudprovider: {ec2: {instance_tags: {until: 2026-01-31}}}")
    resolved = options.resolve(cloud="ec2", environ={})
    assert resolved["instance_tags"] == {"until": "2026-01-31"}
    assert resolved.origins["instance_tags"] == f"{file}:1:23"
