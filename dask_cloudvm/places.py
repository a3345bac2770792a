"""The projects, subscriptions and regions where this user has made clusters, so that they are found without a profile.

A hint only, in the state folder: which machines exist, the clouds alone know.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from dask_cloudvm import tls


def known(cloud: str, option: str) -> list[str]:
    """Where clusters were made on a cloud from this computer, and where ``option`` of Dask's configuration says."""
    configured = ""
    with suppress(ValueError):  # a file of it that Dask cannot read, which must not keep anybody from removing clusters
        import dask.config

        configured = str(dask.config.get(f"cloudprovider.{cloud}.{option}", None) or "")
    return list(dict.fromkeys([*filter(None, [configured]), *_noted(cloud)]))


def remember(cloud: str, place: str) -> None:
    """Notes where machines are about to be made; where that cannot be kept, nothing is lost but the hint."""
    if place not in (before := _noted(cloud)):
        with suppress(OSError):
            tls.state_folder().mkdir(0o700, parents=True, exist_ok=True)
            tls.write_private(_file(cloud), "\n".join(sorted({*before, place})))


def _noted(cloud: str) -> list[str]:
    try:
        return _file(cloud).read_text("utf-8").split()
    except (OSError, ValueError):
        return []


def _file(cloud: str) -> Path:
    return tls.state_folder() / f"{cloud}-places"
