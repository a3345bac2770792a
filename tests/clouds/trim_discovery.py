"""Makes ``compute.v1.json`` beside this file: Google's discovery document of Compute Engine, as far as it is used.

    python tests/clouds/trim_discovery.py DOCUMENT

DOCUMENT is https://compute.googleapis.com/$discovery/rest?version=v1, which the package google-api-python-client has in
googleapiclient/discovery_cache/documents/compute.v1.json. It is public, under Apache License 2.0.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
METHODS = (
    "firewalls.delete",
    "firewalls.insert",
    "firewalls.list",
    "globalOperations.wait",
    "images.get",
    "images.getFromFamily",
    "instances.aggregatedList",
    "instances.bulkInsert",
    "instances.delete",
    "instances.get",
    "instances.getSerialPortOutput",
    "machineTypes.aggregatedList",
    "machineTypes.get",
    "networks.get",
    "projects.get",
    "projects.getXpnResources",
    "regionInstances.bulkInsert",
    "regionOperations.wait",
    "regions.get",
    "subnetworks.get",
    "zoneOperations.wait",
)
KEPT = ("name", "version", "revision", "rootUrl", "servicePath", "batchPath", "parameters")
PROSE = ("description", "enumDescriptions", "enumDeprecated", "annotations", "deprecated", "parameterOrder", "scopes")


def trim(document: dict[str, Any]) -> dict[str, Any]:
    """The document with these methods only, the schemas that they need, and no prose."""
    methods = {name: _plain(_method(document, name)) for name in METHODS}
    schemas: dict[str, Any] = {}
    wanted = set(_references(methods))
    while wanted:
        name = wanted.pop()
        schemas[name] = _plain(document["schemas"][name])
        wanted |= set(_references(schemas[name])) - set(schemas)
    kept = {key: _plain(document[key]) for key in KEPT}
    return {**kept, "methods": methods, "schemas": dict(sorted(schemas.items()))}


def _method(document: dict[str, Any], name: str) -> dict[str, Any]:
    resource, _, method = name.partition(".")
    found: dict[str, Any] = document["resources"][resource]["methods"][method]
    return found


def _plain(value: Any, names: bool = False) -> Any:
    """``value`` without prose; ``names`` says that its keys are names of fields, which are kept."""
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if not isinstance(value, dict):
        return value
    kept = {k: v for k, v in value.items() if names or k not in PROSE}
    return {k: _plain(v, names=k in ("properties", "parameters") and not names) for k, v in kept.items()}


def _references(value: Any) -> Iterator[str]:
    for key, each in value.items() if isinstance(value, dict) else enumerate(value):
        if key == "$ref" and isinstance(each, str):
            yield each
        elif isinstance(each, (dict, list)):
            yield from _references(each)


def main(path: str) -> None:
    trimmed = trim(json.loads(Path(path).read_text("utf-8")))
    lines = json.dumps(trimmed, indent=None, separators=(",", ":"), sort_keys=True)
    (HERE / "compute.v1.json").write_text(lines + "\n", "utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
