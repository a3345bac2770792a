"""Every option of dask-cloudprovider 2025.9.0 is accepted: where its YAML has it, as a keyword, as a variable."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import warnings
from pathlib import Path

import dask.config
import pytest
import yaml

from dask_cloudvm import options, schema

UPSTREAM = Path(importlib.util.find_spec("dask_cloudprovider").origin).parent
IMAGE = {"publisher": "Canonical", "offer": "ubuntu-24_04-lts", "sku": "server", "version": "latest"}
PLAN = {"name": "ngc-base", "publisher": "nvidia", "product": "ngc_azure"}
TAGS = {"createdBy": "me", "Team": "data"}

# keyword: (path of its section, a value, the option it is); the section of a keyword-only option is where ours has it.
SHARED = {
    "name": ("cluster", "etl", "name"),
    "n_workers": ("cluster", 3, "n_workers"),
    "worker_class": ("cluster", "dask_cuda.CUDAWorker", "worker_class"),
    "worker_module": ("cluster", "distributed.cli.dask_worker", "worker_module"),
    "worker_command": ("cluster", "dask-worker", "worker_command"),
    "worker_options": ("cluster", {"nthreads": 2, "resources": {"GPU": 1}}, "worker_options"),
    "scheduler_options": ("cluster", {"port": 9000, "dashboard": False}, "scheduler_options"),
    "docker_image": ("cluster", "rapidsai/rapidsai:latest", "docker_image"),
    "docker_args": ("cluster", "--shm-size=256m -e A=b", "docker_args"),
    "extra_bootstrap": ("cluster", ["apt-get update", "pip install x, y"], "extra_bootstrap"),
    "env_vars": ("cluster", {"PATH": "/opt/bin", "lower": "a b", "N": 4}, "env_vars"),
    "security": ("cluster", False, "security"),
    "protocol": ("cluster", "tls", "protocol"),
    "debug": ("cluster", True, "debug"),
    "shutdown_on_close": ("cluster", False, "shutdown_on_close"),
    "spot": ("cluster", True, "spot"),
    "firewall": ("cluster", {"ports": [22, 8786, 8787], "cidr": "0.0.0.0/0"}, "firewall"),
    "extra_vm_options": ("cluster", {"Placement": {"Tenancy": "dedicated"}}, "extra_vm_options"),
}
EC2 = {
    "region": ("ec2", "eu-central-1", "region"),
    "availability_zone": ("ec2", ["eu-central-1a", "eu-central-1b"], "zone"),
    "zone": ("ec2", "eu-central-1a", "zone"),
    "bootstrap": ("ec2", False, "bootstrap"),
    "auto_shutdown": ("ec2", False, "auto_shutdown"),
    "ami": ("ec2", "ami-0123456789abcdef0", "image"),
    "instance_type": ("ec2", "t3.large", "machine_type"),
    "scheduler_instance_type": ("ec2", "t3.small", "scheduler_machine_type"),
    "worker_instance_type": ("ec2", "p3.2xlarge", "worker_machine_type"),
    "vpc": ("ec2", "vpc-1", "vnet"),
    "vnet": ("ec2", "vpc-2", "vnet"),
    "subnet_id": ("ec2", "subnet-1", "subnet"),
    "subnet": ("ec2", ["subnet-1", "subnet-2"], "subnet"),
    "security_groups": ("ec2", ["sg-1", "sg-2"], "security_group"),
    "security_group": ("ec2", "sg-1", "security_group"),
    "filesystem_size": ("ec2", 100, "disk_size"),
    "key_name": ("ec2", "my-key", "key_name"),
    "iam_instance_profile": ("ec2", {"Arn": "arn:aws:iam::123456789012:instance-profile/dask"}, "iam_instance_profile"),
    "service_account": ("ec2", "dask", "iam_instance_profile"),
    "docker_image": ("ec2", "me/mine:1", "docker_image"),
    "instance_tags": ("ec2", TAGS, "instance_tags"),
    "volume_tags": ("ec2", TAGS, "volume_tags"),
    "use_private_ip": ("ec2", True, "use_private_ip"),
    "enable_detailed_monitoring": ("ec2", True, "enable_detailed_monitoring"),
    "worker_command": ("ec2", "dask-cuda-worker", "worker_command"),
    "spot": ("ec2", "fallback", "spot"),
    "debug": ("ec2", True, "debug"),
}
GCP = {
    "projectid": ("gcp", "123456", "projectid"),
    "region": ("gcp", "us-east1", "region"),
    "zone": ("gcp", "europe-west1-b", "zone"),
    "network": ("gcp", "my-network", "vnet"),
    "vnet": ("gcp", "my-network", "vnet"),
    "subnet": ("gcp", "my-subnet", "subnet"),
    "network_projectid": ("gcp", "host-project", "network_projectid"),
    "machine_type": ("gcp", "n2-standard-4", "machine_type"),
    "scheduler_machine_type": ("gcp", "n2-standard-2", "scheduler_machine_type"),
    "worker_machine_type": ("gcp", "n2-highmem-8", "worker_machine_type"),
    "on_host_maintenance": ("gcp", "MIGRATE", "on_host_maintenance"),
    "source_image": ("gcp", "projects/debian-cloud/global/images/family/debian-12", "image"),
    "docker_image": ("gcp", "me/mine:1", "docker_image"),
    "ngpus": ("gcp", 2, "ngpus"),
    "gpu_type": ("gcp", "nvidia-tesla-t4", "gpu_type"),
    "scheduler_ngpus": ("gcp", 0, "scheduler_ngpus"),
    "scheduler_gpu_type": ("gcp", "nvidia-tesla-t4", "scheduler_gpu_type"),
    "worker_ngpus": ("gcp", 1, "worker_ngpus"),
    "worker_gpu_type": ("gcp", "nvidia-tesla-v100", "worker_gpu_type"),
    "filesystem_size": ("gcp", 100, "disk_size"),
    "disk_type": ("gcp", "pd-ssd", "disk_type"),
    "auto_shutdown": ("gcp", False, "auto_shutdown"),
    "bootstrap": ("gcp", False, "bootstrap"),
    "preemptible": ("gcp", True, "spot"),
    "instance_labels": ("gcp", {"container_vm": "mine"}, "instance_tags"),
    "instance_tags": ("gcp", {"container_vm": "mine"}, "instance_tags"),
    "service_account": ("gcp", "dask@my-project.iam.gserviceaccount.com", "service_account"),
    "service_account_credentials": (None, {"type": "service_account"}, "service_account_credentials"),
    "public_ingress": ("gcp", False, "public_ingress"),
    "instance_scopes": ("gcp", ["compute", "logging.write"], "instance_scopes"),
    "extra_bootstrap": ("gcp", ["apt-get update"], "extra_bootstrap"),
    "debug": ("gcp", True, "debug"),
}
AZURE = {
    "location": ("azure", "westeurope", "region"),
    "region": ("azure", "westeurope", "region"),
    "zone": ("azure", "2", "zone"),
    "resource_group": ("azure", "my-group", "resource_group"),
    "subscription_id": ("azure", "0000-1111", "subscription_id"),
    "vnet": ("azure.azurevm", "my-vnet", "vnet"),
    "subnet": ("azure.azurevm", "/subscriptions/x/subnets/y", "subnet"),
    "security_group": ("azure.azurevm", "my-nsg", "security_group"),
    "public_ingress": ("azure.azurevm", False, "public_ingress"),
    "vm_size": ("azure.azurevm", "Standard_D4s_v5", "machine_type"),
    "scheduler_vm_size": ("azure.azurevm", "Standard_D2s_v5", "scheduler_machine_type"),
    "vm_image": ("azure.azurevm", IMAGE, "image"),
    "disk_size": ("azure.azurevm", 100, "disk_size"),
    "bootstrap": ("azure.azurevm", False, "bootstrap"),
    "auto_shutdown": ("azure.azurevm", False, "auto_shutdown"),
    "docker_image": ("azure.azurevm", "me/mine:1", "docker_image"),
    "marketplace_plan": ("azure.azurevm", PLAN, "marketplace_plan"),
    "extra_vm_options": ("azure.azurevm", {"zones": ["1"]}, "extra_vm_options"),
    "extra_options": ("azure.azurevm", {"zones": ["1"]}, "extra_vm_options"),
    "service_account": ("azure", "system", "identity"),
    "instance_tags": ("azure", TAGS, "instance_tags"),
    "debug": ("azure.azurevm", True, "debug"),
}
OF_CLOUD = {"ec2": EC2, "gcp": GCP, "azure": AZURE}
ROWS = [
    pytest.param(cloud, section, keyword, value, option, id=f"{cloud}-{section}.{keyword}")
    for cloud, rows in OF_CLOUD.items()
    for keyword, (section, value, option) in [*SHARED.items(), *rows.items()]
]
IN_FILES = [row for row in ROWS if row.values[1]]
# Arguments of a Python object, which no profile could hold; CloudCluster takes them.
PYTHON_ONLY = {"self", "asynchronous", "loop", "silence_logs", "scheduler_sync_interval", "shutdown_scheduler"}


def nested(path: str, value) -> dict:
    for key in reversed(path.split(".")):
        value = {key: value}
    return value


def check(resolved, cloud, option, value, origin):
    assert resolved.cloud == cloud
    assert resolved[option] == value and type(resolved[option]) is type(value)
    assert resolved.given(option)
    assert resolved.origins[option].startswith(origin)
    others = {name for name, where in resolved.origins.items() if where != "default"} - {option}
    assert not others


@pytest.mark.parametrize("cloud, section, keyword, value, option", IN_FILES)
def test_in_a_profile(cloud, section, keyword, value, option, profile):
    path = profile({cloud: {}} | nested(f"{section}.{keyword}", value))
    check(options.resolve(path, environ={}), cloud, option, value, f"{path}:")


@pytest.mark.parametrize("cloud, section, keyword, value, option", ROWS)
def test_as_a_keyword(cloud, section, keyword, value, option):
    check(options.resolve(cloud=cloud, keywords={keyword: value}, environ={}), cloud, option, value, "keyword")


@pytest.mark.parametrize("cloud, section, keyword, value, option", IN_FILES)
def test_as_a_variable(cloud, section, keyword, value, option):
    variable = f"DASK_CLOUDPROVIDER__{section.replace('.', '__')}__{keyword}".upper()
    resolved = options.resolve(cloud=cloud, environ={variable: str(value)})
    check(resolved, cloud, option, value, f"${variable}")


@pytest.mark.parametrize("cloud, section, keyword, value, option", IN_FILES)
def test_in_dask_config(cloud, section, keyword, value, option):
    with dask.config.set({f"cloudprovider.{section}.{keyword}": value}):
        check(options.resolve(cloud=cloud, environ={}), cloud, option, value, "dask.config.set")


def test_a_mapping_that_shares_some_values_with_upstreams_default_is_whole():
    import dask_cloudprovider  # noqa: F401

    image = {"publisher": "Canonical", "offer": "ubuntu-24_04-lts", "sku": "server", "version": "latest"}
    with dask.config.set({"cloudprovider.azure.azurevm.vm_image": image}):
        assert options.resolve(cloud="azure", environ={})["image"] == image
    assert options.resolve(cloud="azure", environ={})["image"] is None


def arguments(file: str, name: str) -> set[str]:
    """The arguments of a class of dask-cloudprovider, whose SDK need not be installed to read them."""
    [found] = [node for node in ast.parse((UPSTREAM / file).read_text()).body if getattr(node, "name", "") == name]
    [init] = [node for node in found.body if getattr(node, "name", "") == "__init__"]
    return {argument.arg for argument in (*init.args.args, *init.args.kwonlyargs)}


@pytest.mark.parametrize(
    "cloud, file, name",
    [
        ("ec2", "aws/ec2.py", "EC2Cluster"),
        ("gcp", "gcp/instances.py", "GCPCluster"),
        ("azure", "azure/azurevm.py", "AzureVMCluster"),
    ],
)
def test_the_table_above_has_every_keyword_and_key(cloud, file, name):
    keywords = arguments(file, name) | arguments("generic/vmcluster.py", "VMCluster")
    assert keywords - PYTHON_ONLY <= {*SHARED, *OF_CLOUD[cloud]}
    shipped = shipped_defaults()[cloud]
    in_table = {f"{section}.{keyword}" for keyword, (section, _, _) in OF_CLOUD[cloud].items()}
    paths = {f"{cloud}.{key}" for key in shipped if key != "azurevm"}
    paths |= {f"azure.azurevm.{key}" for key in shipped.get("azurevm", ())}
    assert paths <= in_table


def shipped_defaults() -> dict:
    return yaml.safe_load((UPSTREAM / "cloudprovider.yaml").read_text())["cloudprovider"]


@pytest.mark.parametrize("cloud", OF_CLOUD)
def test_the_whole_upstream_file_is_a_profile(cloud):
    file = UPSTREAM / "cloudprovider.yaml"
    options.validate(file)
    resolved = options.resolve(file, cloud=cloud, environ={})
    section = shipped_defaults()[cloud]
    given = {key: value for key, value in (section | section.get("azurevm", {})).items() if key != "azurevm"}
    for key, value in given.items():
        option = schema.names(cloud)[key]
        assert resolved[option] == (None if value == "" else value), key
        assert resolved.origins[option].startswith(f"{file}:")


@pytest.mark.parametrize("cloud", OF_CLOUD)
def test_the_whole_upstream_file_in_dasks_folder_says_the_same_without_a_warning(cloud, dask_yaml):
    file = UPSTREAM / "cloudprovider.yaml"
    dask_yaml(file.read_text())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ambient = options.resolve(cloud=cloud, environ={})
    assert ambient.values == options.resolve(file, cloud=cloud, environ={}).values


@pytest.mark.parametrize("cloud", OF_CLOUD)
def test_upstreams_registered_defaults_are_nobodys_choice(cloud):
    importlib.import_module("dask_cloudprovider")
    dask.config.refresh(paths=dask.config.paths)
    assert dask.config.get("cloudprovider.ec2.instance_type") == "t2.micro"
    resolved = options.resolve(cloud=cloud, environ={})
    assert set(resolved.origins.values()) == {"default"}


def test_a_users_file_that_equals_upstreams_default_is_the_users_choice(dask_yaml):
    importlib.import_module("dask_cloudprovider")
    file = dask_yaml({"ec2": {"instance_type": "t2.micro"}, "gcp": {"zone": "us-east1-c"}})
    resolved = options.resolve(cloud="ec2", environ={})
    assert resolved["machine_type"] == "t2.micro" and resolved.origins["machine_type"] == f"{file}:3:5"
    assert options.resolve(cloud="gcp", environ={}).given("zone")


def test_dask_config_set_over_upstreams_default_is_the_users_choice():
    importlib.import_module("dask_cloudprovider")
    dask.config.refresh(paths=dask.config.paths)
    with dask.config.set(
        {"cloudprovider.ec2.instance_type": "t3.micro", "cloudprovider.ec2.instance_tags": {"a": "b"}}
    ):
        resolved = options.resolve(cloud="ec2", environ={})
    given = {name: resolved[name] for name, origin in resolved.origins.items() if origin == "dask.config.set"}
    assert given == {"machine_type": "t3.micro", "instance_tags": {"a": "b"}}
