"""A cloud of its own for each test that asks for one."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


def aws_variables(url: str) -> dict[str, str]:
    """What boto3 finds the fake and credentials by."""
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "DASK_CLOUDVM_CHECKIP": f"{url}/checkip",
    }


@pytest.fixture
def port() -> int:
    """One that is free, for a scheduler."""
    from tools import free_port

    return free_port()


@pytest.fixture(scope="session")
def aws_server() -> Iterator[tuple[object, str]]:
    from ec2_fake import Fake

    fake = Fake()
    with fake.serving() as url:
        yield fake, url


@pytest.fixture
def aws(aws_server, monkeypatch):
    """A fresh account; boto3 finds it, and credentials, in the environment."""
    fake, url = aws_server
    fake.reset()
    for name, value in aws_variables(url).items():
        monkeypatch.setenv(name, value)
    return fake


def gcp_variables(url: str, key: str) -> dict[str, str]:
    """What google-auth finds the fake and credentials by."""
    return {
        "GOOGLE_APPLICATION_CREDENTIALS": key,
        "CLOUDSDK_API_ENDPOINT_OVERRIDES_COMPUTE": f"{url}/compute/v1/",
        "CLOUDSDK_API_ENDPOINT_OVERRIDES_CLOUDRESOURCEMANAGER": f"{url}/",
        "NO_GCE_CHECK": "true",
        "HTTPS_PROXY": "http://127.0.0.1:9",  # google-auth asks iamcredentials.googleapis.com in the background
        "DASK_CLOUDVM_CHECKIP": f"{url}/checkip",
    }


@pytest.fixture(scope="session")
def gcp_server(tmp_path_factory) -> Iterator[tuple[object, str, str]]:
    """The fake, its address, and a service account's key whose tokens come from there."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa
    from gcp_fake import ACCOUNT, PROJECT, Fake

    fake = Fake()
    pem = rsa.generate_private_key(65537, 2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with fake.serving() as url:
        key = {"type": "service_account", "project_id": PROJECT, "private_key_id": "1", "private_key": pem.decode()}
        key |= {"client_email": ACCOUNT, "client_id": "1", "token_uri": f"{url}/token"}
        path = tmp_path_factory.mktemp("gcp") / "key.json"
        path.write_text(json.dumps(key))
        yield fake, url, str(path)


@pytest.fixture
def gcp(gcp_server, monkeypatch):
    """A fresh project; google-auth finds credentials in the environment, and gets real tokens for them."""
    fake, url, key = gcp_server
    fake.reset()
    for name in ("GOOGLE_CLOUD_PROJECT", "GCLOUD_PROJECT", "CLOUDSDK_CORE_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in gcp_variables(url, key).items():
        monkeypatch.setenv(name, value)
    return fake


def azure_variables(url: str) -> dict[str, str]:
    """What azure-identity and azure-core find the fake and credentials by."""
    return {
        "AZURE_TOKEN_CREDENTIALS": "ManagedIdentityCredential",
        "IDENTITY_ENDPOINT": f"{url}/token",
        "IDENTITY_HEADER": "secret",
        "DASK_CLOUDVM_AZURE_ENDPOINT": url,
        "DASK_CLOUDVM_CHECKIP": f"{url}/checkip",
    }


@pytest.fixture(scope="session")
def azure_server() -> Iterator[tuple[object, str]]:
    from azure_fake import Fake

    fake = Fake()
    with fake.serving() as url:
        yield fake, url


@pytest.fixture
def azure(azure_server, monkeypatch):
    """A fresh subscription; azure-identity gets tokens as in Azure's App Service, from an address."""
    fake, url = azure_server
    fake.reset()
    monkeypatch.delenv("AZURE_SUBSCRIPTION_ID", raising=False)
    for name, value in azure_variables(url).items():
        monkeypatch.setenv(name, value)
    return fake
