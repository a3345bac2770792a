"""Runs on a machine before its image is pulled: logs Docker in to the cloud's own registry as the machine itself.

The machine's identity comes from its metadata service, so nobody stores or sends a password. It travels to the machine
as text, so it uses the standard library only. Where it fails it says why and goes on: the image may be a public one.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import hmac
import json
import os
import re
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any

PAUSES = (2, 4, 8, 16)  # seconds between two tries: an identity may reach the machine after it has started
METADATA = os.environ.get("DASK_CLOUDVM_METADATA", "http://169.254.169.254")
direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy would answer for another machine


def get(path: str, headers: Mapping[str, str], method: str = "GET") -> str:
    """The text of an answer of the metadata service."""
    request = urllib.request.Request(METADATA + path, headers=dict(headers), method=method)
    with direct.open(request, timeout=30) as answer:
        return str(answer.read().decode())


def post(url: str, body: bytes, headers: Mapping[str, str]) -> Any:
    """The JSON of an answer of the cloud; ``DASK_CLOUDVM_REGISTRY`` stands for its address in tests."""
    if base := os.environ.get("DASK_CLOUDVM_REGISTRY"):
        url = base + urllib.parse.urlsplit(url).path
    with urllib.request.urlopen(urllib.request.Request(url, body, dict(headers)), timeout=30) as answer:
        return json.load(answer)


def ecr(host: str) -> str:
    """https://docs.aws.amazon.com/AmazonECR/latest/APIReference/API_GetAuthorizationToken.html

    https://docs.aws.amazon.com/general/latest/gr/ecr.html has its addresses.
    """
    service, region, domain = re.split(r"^[0-9]+\.dkr[.-]([a-z-]+)\.([^.]+)\.", host)[1:]
    service = "api.ecr" if service == "ecr" and not domain.startswith("on.") else service
    lifetime = {"X-aws-ec2-metadata-token-ttl-seconds": "60"}
    token = {"X-aws-ec2-metadata-token": get("/latest/api/token", lifetime, "PUT")}
    roles = "/latest/meta-data/iam/security-credentials/"
    keys = json.loads(get(roles + get(roles, token).split()[0], token))
    now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y%m%dT%H%M%SZ")
    address = f"{service}.{region}.{domain}".replace(".on.", ".api.")
    answer = post(f"https://{address}/", b"{}", signed(address, region, keys, now))
    return str(answer["authorizationData"][0]["authorizationToken"])


def signed(host: str, region: str, keys: Mapping[str, str], now: str) -> dict[str, str]:
    """https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html for this request."""
    headers = {
        "Content-Type": "application/x-amz-json-1.1",
        "Host": host,
        "X-Amz-Date": now,
        "X-Amz-Security-Token": keys["Token"],
        "X-Amz-Target": "AmazonEC2ContainerRegistry_V20150921.GetAuthorizationToken",
    }
    names = ";".join(name.lower() for name in headers)
    lines = "".join(f"{name.lower()}:{value}\n" for name, value in headers.items())
    scope = f"{now[:8]}/{region}/ecr/aws4_request"
    canonical = f"POST\n/\n\n{lines}\n{names}\n{hashlib.sha256(b'{}').hexdigest()}"
    text = f"AWS4-HMAC-SHA256\n{now}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    key = ("AWS4" + keys["SecretAccessKey"]).encode()
    for part in (*scope.split("/"), text):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    credential = f"Credential={keys['AccessKeyId']}/{scope}"
    return {**headers, "Authorization": f"AWS4-HMAC-SHA256 {credential}, SignedHeaders={names}, Signature={key.hex()}"}


def google(host: str) -> str:
    """https://cloud.google.com/artifact-registry/docs/docker/authentication#token"""
    path = "/computeMetadata/v1/instance/service-accounts/default/token"
    token = json.loads(get(path, {"Metadata-Flavor": "Google"}))["access_token"]
    return encoded("oauth2accesstoken", token)


def azure(host: str) -> str:
    """https://github.com/Azure/acr/blob/main/docs/AAD-OAuth.md"""
    manager = {"cn": "chinacloudapi.cn", "us": "usgovcloudapi.net"}.get(host.rpartition(".")[2], "azure.com")
    resource = urllib.parse.quote(f"https://management.{manager}/", safe="")
    path = f"/metadata/identity/oauth2/token?api-version=2018-02-01&resource={resource}"
    token = json.loads(get(path, {"Metadata": "true"}))["access_token"]
    body = urllib.parse.urlencode({"grant_type": "access_token", "service": host, "access_token": token}).encode()
    answer = post(f"https://{host}/oauth2/exchange", body, {"Content-Type": "application/x-www-form-urlencoded"})
    return encoded("00000000-0000-0000-0000-000000000000", answer["refresh_token"])


def encoded(user: str, password: str) -> str:
    """User and password as Docker keeps them."""
    return base64.b64encode(f"{user}:{password}".encode()).decode()


REGISTRIES: dict[str, Callable[[str], str]] = {
    r"[0-9]+\.dkr\.ecr(-fips)?\.[a-z0-9-]+\.amazonaws\.(com(\.cn)?|eu)": ecr,
    r"[0-9]+\.dkr-ecr(-fips)?\.[a-z0-9-]+\.on\.(aws|amazonwebservices\.com\.cn)": ecr,
    r"[a-z0-9-]+-docker\.pkg\.dev|([a-z]+\.)?gcr\.io": google,
    r"[a-z0-9-]+\.azurecr\.(io|cn|us)": azure,
}


def login(image: str) -> Callable[[str], str] | None:
    """How to log in to the registry of ``image``; None where it is no cloud's own."""
    host = image.partition("/")[0]
    return next((how for pattern, how in REGISTRIES.items() if re.fullmatch(pattern, host)), None)


def patiently(how: Callable[[str], str], host: str) -> str:
    """What ``how`` gives, tried again for half a minute."""
    for pause in PAUSES:
        try:
            return how(host)
        except Exception:
            time.sleep(pause)
    return how(host)


def main(folder: str) -> None:
    """Adds to Docker's own file, which only its owner can read, what the image of ``run.json`` needs."""
    with open(os.path.join(folder, "run.json"), encoding="utf-8") as file:
        image = json.load(file)["first"][-1]
    host, how = image.partition("/")[0], login(image)
    path = os.path.join(os.path.expanduser("~"), ".docker", "config.json")
    try:
        auth = {host: {"auth": patiently(how, host)}} if how else {}
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        with open(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+", encoding="utf-8") as file:
            known = json.loads(file.read() or "{}")
            known["auths"] = {**known.get("auths", {}), **auth}
            file.seek(0)
            file.truncate()
            json.dump(known, file)
    except Exception as error:
        detail = error.read().decode(errors="replace")[:500] if hasattr(error, "read") else ""
        print(f"No login to {host} as this machine: {error} {detail}; give it an identity that may read images")


if __name__ == "__main__":
    main(os.path.dirname(os.path.abspath(__file__)))
