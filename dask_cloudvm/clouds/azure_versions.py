"""The versions of Azure's API that calls are made with, by what they are about. Pure."""

from __future__ import annotations

from dask_cloudvm.errors import CloudError

COMPUTE = "2025-04-01"  # from 2025-11-01 on secure boot is the default, by which NVIDIA's drivers may not load
# By namespace, or by the kind in it that has versions of its own.
VERSIONS = {
    "microsoft.authorization": "2022-04-01",
    "microsoft.compute": COMPUTE,
    "microsoft.compute/galleries": "2025-03-03",
    "microsoft.compute/skus": "2021-07-01",
    "microsoft.managedidentity": "2023-01-31",
    "microsoft.network": "2025-05-01",
    "microsoft.resources": "2022-09-01",
}


def version(path: str) -> str:
    """The API version that a path is asked with, whatever its capitals. Raises CloudError."""
    _, inside, rest = path.lower().rpartition("/providers/")
    namespace, kind, *_ = [*rest.split("/"), "", ""]
    if not inside or not kind:
        namespace = "microsoft.resources"
    found = VERSIONS.get(f"{namespace}/{kind}") or VERSIONS.get(namespace)
    if not found:
        hint = "check the resource ids among the options"
        raise CloudError(doing="use Azure", what=f"{path} is of no kind that dask-cloudvm uses", hint=hint)
    return found
