"""Docker's login to the clouds' own registries, as the machine itself, against services that check what they get."""

from __future__ import annotations

import base64
import json
import os
import re
import stat
import subprocess
import sys
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from dask_cloudvm import bootstrap, options, registry, runtimes, userdata

KEYS = {"AccessKeyId": "AKIDEXAMPLE", "SecretAccessKey": "wJalrXUtnFEMI/K7MDENG+bPxRfiCY", "Token": "the session"}
ECR = "123456789012.dkr.ecr.eu-west-1.amazonaws.com"
PATTERN = "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/"


class Cloud(BaseHTTPRequestHandler):
    """The metadata services and the registries' token services of three clouds."""

    def log_message(self, *_):
        pass

    def do_PUT(self):
        self.answer("the token" if self.path == "/latest/api/token" else None)

    def do_GET(self):
        path, _, query = self.path.partition("?")
        roles = "/latest/meta-data/iam/security-credentials/"
        found = {
            roles: ("X-aws-ec2-metadata-token", "the token", "my-role"),
            f"{roles}my-role": ("X-aws-ec2-metadata-token", "the token", json.dumps(KEYS)),
            "/computeMetadata/v1/instance/service-accounts/default/token": (
                "Metadata-Flavor",
                "Google",
                json.dumps({"access_token": "google's"}),
            ),
            "/metadata/identity/oauth2/token": ("Metadata", "true", json.dumps({"access_token": "arm's"})),
        }.get(path)
        right = found and self.headers[found[0]] == found[1]
        if path.startswith("/metadata/"):
            wanted = {"api-version": ["2018-02-01"], "resource": [f"https://management.{self.server.manager}/"]}
            right = right and urllib.parse.parse_qs(query) == wanted
        self.server.refusals -= 1
        self.answer(found[2] if right and self.server.refusals < 0 else None)

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        if self.path == "/oauth2/exchange":
            wanted = {"grant_type": "access_token", "access_token": "arm's"}
            given = dict(urllib.parse.parse_qsl(body))
            right = given.pop("service").startswith("mine") and given == wanted
            return self.answer(json.dumps({"refresh_token": "acr's"}) if right else None)
        target = self.headers["X-Amz-Target"] == "AmazonEC2ContainerRegistry_V20150921.GetAuthorizationToken"
        right = target and self.headers["Authorization"].startswith(PATTERN) and body == "{}"
        token = base64.b64encode(b"AWS:ecr's").decode()
        self.answer(json.dumps({"authorizationData": [{"authorizationToken": token}]}) if right else None)

    def answer(self, text):
        self.send_response(403 if text is None else 200)
        self.end_headers()
        self.wfile.write((text or "it is forbidden").encode())


@pytest.fixture
def cloud():
    with ThreadingHTTPServer(("127.0.0.1", 0), Cloud) as server:
        server.url = f"http://127.0.0.1:{server.server_address[1]}"
        server.manager, server.refusals = "azure.com", 0
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def log_in(tmp_path, image, cloud):
    """Runs what the unit runs for this image, with shorter pauses."""
    values = {**options.combine([], "ec2")[0].for_role("worker"), "docker_image": image}
    launch = bootstrap.worker(values, {}, "tcp://10.0.0.4:8786", python=runtimes.PYTHON)
    files, command = runtimes.RUNTIMES["docker"](launch, values, False)
    assert "PAUSES = (2, 4, 8, 16)" in files["login"]
    (tmp_path / "login").write_text(files["login"].replace("(2, 4, 8, 16)", "(0, 0, 0, 0)"))
    (tmp_path / "run.json").write_text(json.dumps(command))
    variables = {"DASK_CLOUDVM_METADATA": cloud.url, "DASK_CLOUDVM_REGISTRY": cloud.url}
    env = {**os.environ, "HOME": str(tmp_path), **variables}
    login = [sys.executable, str(tmp_path / "login")]
    return subprocess.run(login, env=env, capture_output=True, text=True, timeout=60, check=True)


@pytest.mark.parametrize(
    "image, auth",
    [
        (f"{ECR}/my/image:1", "AWS:ecr's"),
        ("europe-docker.pkg.dev/p/r/image", "oauth2accesstoken:google's"),
        ("eu.gcr.io/p/image@sha256:0", "oauth2accesstoken:google's"),
        ("mine.azurecr.io/image", "00000000-0000-0000-0000-000000000000:acr's"),
        ("mine-a1b2c3.azurecr.io/image", "00000000-0000-0000-0000-000000000000:acr's"),
    ],
)
def test_a_machine_logs_in_as_itself(tmp_path, cloud, image, auth):
    path = tmp_path / ".docker" / "config.json"
    path.parent.mkdir()
    path.touch(0o600)
    path.write_text(json.dumps({"auths": {"mine": {"auth": "x"}}, "proxies": {}}))
    done = log_in(tmp_path, image, cloud)
    found = json.loads(path.read_text())
    assert base64.b64decode(found["auths"].pop(image.partition("/")[0])["auth"]).decode() == auth
    assert found == {"auths": {"mine": {"auth": "x"}}, "proxies": {}}
    assert done.stdout + done.stderr == ""


@pytest.mark.parametrize(
    "host, address",
    [
        (ECR, "api.ecr.eu-west-1.amazonaws.com"),
        ("1.dkr.ecr.cn-north-1.amazonaws.com.cn", "api.ecr.cn-north-1.amazonaws.com.cn"),
        ("1.dkr.ecr.eusc-de-east-1.amazonaws.eu", "api.ecr.eusc-de-east-1.amazonaws.eu"),
        ("1.dkr.ecr-fips.us-east-1.amazonaws.com", "ecr-fips.us-east-1.amazonaws.com"),
        ("1.dkr-ecr.us-east-1.on.aws", "ecr.us-east-1.api.aws"),
        ("1.dkr-ecr-fips.us-east-1.on.aws", "ecr-fips.us-east-1.api.aws"),
        ("1.dkr-ecr.cn-north-1.on.amazonwebservices.com.cn", "ecr.cn-north-1.api.amazonwebservices.com.cn"),
    ],
)
def test_every_address_of_ecr(host, address, monkeypatch):
    """As botocore has them, see below."""
    keys = {"/latest/api/token": "t", "/latest/meta-data/iam/security-credentials/": "role"}
    asked = []
    monkeypatch.setattr(registry, "get", lambda path, *_: keys.get(path, json.dumps(KEYS)))
    monkeypatch.setattr(registry, "post", lambda url, *_: asked.append(url) or answer)
    answer = {"authorizationData": [{"authorizationToken": "token"}]}
    assert registry.login(f"{host}/my/image:1")(host) == "token"
    assert asked == [f"https://{address}/"] and address == botocores(host)


def botocores(host):
    from botocore.config import Config
    from botocore.session import get_session

    fips, dual = "-fips" in host, ".on." in host
    config = Config(use_fips_endpoint=fips, use_dualstack_endpoint=dual)
    region = re.split(r"[.]", host)[2 if dual else 3]
    client = get_session().create_client("ecr", region, config=config, aws_access_key_id="a", aws_secret_access_key="b")
    return client.meta.endpoint_url.removeprefix("https://")


@pytest.mark.parametrize("domain, manager", [("cn", "chinacloudapi.cn"), ("us", "usgovcloudapi.net")])
def test_other_azures(tmp_path, cloud, domain, manager):
    cloud.manager = manager
    assert log_in(tmp_path, f"mine.azurecr.{domain}/image", cloud).stdout == ""


def test_an_identity_that_comes_late(tmp_path, cloud):
    cloud.refusals = 4
    assert log_in(tmp_path, "gcr.io/p/image", cloud).stdout == ""
    cloud.refusals = 5
    assert "No login to gcr.io" in log_in(tmp_path, "gcr.io/p/image", cloud).stdout


def test_the_file_is_its_owners_alone(tmp_path, cloud):
    log_in(tmp_path, "gcr.io/p/image", cloud)
    for path, mode in ((tmp_path / ".docker", 0o700), (tmp_path / ".docker" / "config.json", 0o600)):
        assert stat.S_IMODE(path.stat().st_mode) == mode


def test_a_machine_without_an_identity_says_so_and_tries_anyway(tmp_path, cloud):
    done = log_in(tmp_path, "other.azurecr.io/image", cloud)
    assert "No login to other.azurecr.io as this machine: HTTP Error 403" in done.stdout
    assert "it is forbidden; give it an identity" in done.stdout


def test_the_signature_is_botocores():
    from botocore.auth import SigV4Auth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials

    now = "20260101T010203Z"
    host = "api.ecr.eu-west-1.amazonaws.com"
    ours = registry.signed(host, "eu-west-1", KEYS, now)
    given = {key: value for key, value in ours.items() if key != "Authorization"}
    request = AWSRequest("POST", f"https://{host}/", headers=given, data=b"{}")
    request.context["timestamp"] = now
    keys = Credentials(KEYS["AccessKeyId"], KEYS["SecretAccessKey"], KEYS["Token"])
    signer = SigV4Auth(keys, "ecr", "eu-west-1")
    text = signer.string_to_sign(request, signer.canonical_request(request))
    assert ours["Authorization"].endswith(f"Signature={signer.signature(text, request)}")
    assert f"SignedHeaders={signer.signed_headers(signer.headers_to_sign(request))}," in ours["Authorization"]


@pytest.mark.parametrize(
    "image", ["ghcr.io/dask/dask:latest", "dask", "public.ecr.aws/x/y", "azurecr.io/x", "example.com/mine.azurecr.io/x"]
)
def test_other_registries_are_left_alone(image):
    values = {**options.combine([], "ec2")[0].for_role("worker"), "docker_image": image}
    launch = bootstrap.worker(values, {}, "tcp://10.0.0.4:8786", python=runtimes.PYTHON)
    text = userdata.render(launch, values, userdata.Setting("{% set name = 'me' %}"))
    assert "login" not in runtimes.RUNTIMES["docker"](launch, values, False)[0] and "/login" not in text


def test_the_unit_logs_in_after_docker_is_there():
    values = {**options.combine([], "ec2")[0].for_role("worker"), "docker_image": f"{ECR}/x", "extra_bootstrap": ["id"]}
    launch = bootstrap.worker(values, {}, "tcp://10.0.0.4:8786", python=runtimes.PYTHON)
    text = userdata.render(launch, values, userdata.Setting("{% set name = 'me' %}"))
    steps = [line.split("=")[1] for line in text.splitlines() if "ExecStartPre=" in line]
    assert [Path(step.split()[-1]).name for step in steps] == ["started", "install", "extra", "login"]
    assert steps[-1] == "/usr/bin/python3 /etc/dask-cloudvm/login" and len(userdata.pack(text)) < 6 << 10
