"""The fake refuses what Google's discovery document does not allow, and knows no more than the document."""

from __future__ import annotations

import json
import urllib.error
import urllib.request

import gcp_fake
import pytest
import trim_discovery
from gcp_fake import CONTRACT, PROJECT, matches, select

from dask_cloudvm.clouds import gcp_session

BODY = {"name": "x", "network": f"projects/{PROJECT}/global/networks/default", "sourceRanges": ["10.0.0.0/8"]}
FIREWALLS = f"projects/{PROJECT}/global/firewalls"


@pytest.fixture
def ask(gcp, gcp_server):
    def ask(verb, path, body=None, token="a-token"):
        request = urllib.request.Request(f"{gcp_server[1]}/compute/v1/{path}", method=verb)
        request.add_header("Authorization", f"Bearer {token}")
        try:
            with urllib.request.urlopen(request, json.dumps(body).encode() if body else None) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)["error"]

    return ask


@pytest.mark.parametrize(
    ("verb", "path", "body", "status", "said"),
    [
        ("POST", FIREWALLS, {**BODY, "colour": "red"}, 400, 'Unknown name "colour"'),
        ("POST", FIREWALLS, {**BODY, "priority": "high"}, 400, "'resource.priority'"),
        ("POST", FIREWALLS, {**BODY, "disabled": 1}, 400, "'resource.disabled'"),
        ("POST", FIREWALLS, {**BODY, "direction": "SIDEWAYS"}, 400, "'resource.direction'"),
        ("POST", FIREWALLS, {**BODY, "allowed": {"IPProtocol": "tcp"}}, 400, "'resource.allowed'"),
        ("POST", FIREWALLS, {**BODY, "sourceRanges": ["10.0.0.0/8", "::/0"]}, 400, "cannot be combined"),
        ("POST", f"{FIREWALLS}?requestId=1", BODY, 400, "Must be a UUID"),
        ("GET", f"{FIREWALLS}?colour=red", None, 400, 'Unknown name "colour"'),
        ("GET", f"{FIREWALLS}?maxResults=many", None, 400, "Must be an integer"),
        ("GET", f"projects/{PROJECT}/zones/Bad_Zone/instances/x", None, 400, "'zone'"),
        ("POST", FIREWALLS, None, 400, "Parse Error"),
        ("GET", "projects/x/global/nonesuch", None, 404, "was not found"),
        ("PUT", FIREWALLS, BODY, 501, ""),
    ],
)
def test_what_the_document_does_not_allow_is_refused(ask, verb, path, body, status, said):
    if status == 501:
        with pytest.raises((urllib.error.HTTPError, ValueError)):
            ask(verb, path, body)
        return
    got, error = ask(verb, path, body)
    assert got == status and said in error["message"], error


def test_a_token_is_needed(ask):
    assert ask("GET", FIREWALLS, token="another")[0] == 401
    assert ask("GET", FIREWALLS)[0] == 200


def test_every_method_of_the_launcher_is_in_the_document_with_this_path():
    ours = {name: call for name, call in gcp_session.METHODS.items() if not name.startswith("manager.")}
    assert ours == {n: (m["httpMethod"], m["path"]) for n, m in CONTRACT["methods"].items()}
    assert set(trim_discovery.METHODS) == set(CONTRACT["methods"])
    assert CONTRACT["rootUrl"] + CONTRACT["servicePath"] == gcp_session.HOST


def test_the_document_is_trimmed_to_what_it_needs():
    document = {"resources": {}, **{key: CONTRACT[key] for key in trim_discovery.KEPT}, "schemas": CONTRACT["schemas"]}
    for name, method in CONTRACT["methods"].items():
        resource, _, verb = name.partition(".")
        methods = document["resources"].setdefault(resource, {"methods": {}})["methods"]
        methods[verb] = {**method, "description": "prose"}
    document["schemas"] = {**CONTRACT["schemas"], "Unused": {"id": "Unused"}}
    assert trim_discovery.trim(document) == CONTRACT


def test_fields_and_filters():
    value = {"items": {"z": {"a": [{"x": 1, "y": {"p": 1, "q": 2}}], "warning": 1}}, "next": 2, "other": 3}
    assert select(value, "items/*/a(x,y/q),next") == {"items": {"z": {"a": [{"x": 1, "y": {"q": 2}}]}}, "next": 2}
    labels = {"labels": {"a": "b"}}
    assert matches(labels, 'labels.a = "b"') and not matches(labels, 'labels.a = "c"')
    assert matches(labels, "labels.a:*") and not matches(labels, "labels.c:*")
    assert matches({"name": "x"}, '(name = "y") OR (name = "x")')
    assert matches(labels, 'labels.a = "*"') and not matches(labels, 'labels.a = "c*"')
    assert not matches(labels, r'labels.a = "x\" OR labels.a:*"') and matches({"name": 'x"'}, r'name = "x\""')
    for wrong in ("labels.a ~ b", 'labels.a = "x" OR labels.a:*"', 'labels.a = "x', r'labels.a = "x\"'):
        with pytest.raises(gcp_fake.Refused):
            matches(labels, wrong)
