"""What options of GCP mean to the API: GPUs, labels, scopes, times. Pure; wrong combinations are refused here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dask_cloudvm.clouds.common import listed, per_role
from dask_cloudvm.errors import CloudError
from dask_cloudvm.schema import ROLES

if TYPE_CHECKING:
    from dask_cloudvm.clouds.gcp_facts import Type

SCOPE = "https://www.googleapis.com/auth/"
DELETING = {"compute", "cloud-platform"}  # scopes that let a machine delete itself
LONGEST = 63  # characters of a label
MOST_LABELS = 64 - 8  # some are ours
WITHOUT_CLOUD_INIT = r"(.*/)?debian-cloud/.*|(family/)?debian-\d.*"  # by project, or by the names it has there
RUN_TIME = (30, 120 * 24 * 3600)  # seconds


def check(values: Mapping[str, Any]) -> None:
    """Refuses what no call needs to be made for. Raises CloudError."""
    labels(values["instance_tags"])
    if values["max_price"] is not None:
        raise _wrong("Google has no highest price for spot machines", "leave max_price out")
    for role in ROLES:
        options = per_role("gcp", values)[role]
        run_time(options)
        if re.fullmatch(WITHOUT_CLOUD_INIT, options["image"] or ""):
            what = (
                f"Google's own images of Debian, such as {options['image']}, have no cloud-init, which sets machines up"
            )
            hint = (
                "leave image (source_image) out for Ubuntu; an image of your own is projects/PROJECT/global/images/NAME"
            )
            raise _wrong(what, hint)
        if options["ngpus"] and not options["gpu_type"] and not _may_have_gpus(options):
            raise _wrong(
                f"ngpus is {options['ngpus']} and gpu_type is not given", "set gpu_type, such as nvidia-tesla-t4"
            )


def _wrong(what: str, hint: str) -> CloudError:
    return CloudError(doing="plan machines on gcp", what=what, hint=hint)


# GPUs


def _may_have_gpus(options: Mapping[str, Any]) -> bool:
    return all(map(has_gpus, listed(options["machine_type"])))


def has_gpus(type: str) -> bool:
    """Whether machine types of this family have GPUs built in: https://cloud.google.com/compute/docs/gpus"""
    return bool(re.match(r"[ag]\d", type))


def gpus(options: Mapping[str, Any], type: Type) -> int | None:
    """The GPUs of a machine: those attached, else those built in; None where there are some and nobody was asked."""
    found = attached(options, type)
    return found[1] if found else type.gpus


def attached(options: Mapping[str, Any], type: Type) -> tuple[str, int] | None:
    """Type and number of the GPUs to attach. Raises CloudError where the machine type has others built in."""
    number, kind = options["ngpus"], options["gpu_type"]
    if number is None and kind and not type.gpus:
        number = 1
    if type.gpus and number not in (None, type.gpus):
        raise _wrong(f"{type.name} has {type.gpus} GPUs built in, ngpus is {number}", "change ngpus or machine_type")
    if not number or type.gpus or (type.gpus is None and not kind):
        return None
    if not kind:
        raise _wrong(f"{type.name} has no GPUs built in, ngpus is {number}", "set gpu_type, such as nvidia-tesla-t4")
    return kind, number


# Labels, scopes, times


def labels(tags: Mapping[str, Any]) -> dict[str, str]:
    """Tags as Google's labels: lower-case, what is not allowed as ``-``. Raises CloudError where that cannot be.

    https://cloud.google.com/compute/docs/labeling-resources#requirements
    """
    found: dict[str, str] = {}
    for key, value in tags.items():
        label = _clean(key)
        text = _clean(str(value).lower() if isinstance(value, bool) else str(value))
        if not re.match(r"[^\W\d_]", label) or len(label) > LONGEST:
            raise _tag(key, "a label starts with a letter and has at most 63 characters")
        if len(text) > LONGEST:
            raise _tag(key, f"its value has {len(text)} characters, Google allows 63")
        if label in found:
            raise _tag(key, f"another tag becomes the label {label!r} too")
        if label.startswith("dask-cloudvm-"):
            raise _tag(key, "labels that start with dask-cloudvm- are kept for its own use")
        found[label] = text
    if len(found) > MOST_LABELS:
        raise _wrong(f"there are {len(found)} instance_tags, Google allows {MOST_LABELS}", "give fewer instance_tags")
    return found


def _tag(key: str, what: str) -> CloudError:
    return _wrong(f"instance_tags: {key!r} cannot be a label: {what}", "change instance_tags (instance_labels)")


def _clean(text: str) -> str:
    return re.sub(r"[^\w-]", "-", text.lower())


def scopes(options: Mapping[str, Any]) -> list[str]:
    """https://cloud.google.com/compute/docs/access/service-accounts#accesscopesiam"""
    return [scope if "://" in scope else f"{SCOPE}{scope}" for scope in options["instance_scopes"]]


def deletes_itself(options: Mapping[str, Any]) -> bool:
    """Whether a machine may ask for its own deletion, as far as the options tell."""
    names = {scope.removeprefix(SCOPE) for scope in options["instance_scopes"]}
    return bool(options["auto_shutdown"] and options["service_account"] and names & DELETING)


def run_time(options: Mapping[str, Any]) -> int:
    """Seconds after which Google deletes the machine; 0 for never. Raises CloudError."""
    if not options["max_run_time"]:
        return 0
    from dask.utils import parse_timedelta

    seconds: int = round(parse_timedelta(options["max_run_time"]))
    if not RUN_TIME[0] <= seconds <= RUN_TIME[1]:
        what = f"max_run_time is {seconds} seconds, Google allows from 30 seconds to 120 days"
        raise _wrong(what, "change max_run_time, or leave it out")
    return seconds


def ending(options: Mapping[str, Any]) -> str:
    """What becomes of a machine when Dask ends on it, in one sentence."""
    if not options["auto_shutdown"]:
        return "machines keep running, and are paid for, when Dask ends on them: auto_shutdown is off"
    if deletes_itself(options):
        account = options["service_account"]
        return (
            f"machines delete themselves when Dask ends on them, if service account {account} has "
            "compute.instances.delete ('dask-cloudvm doctor gcp' looks); else they stop"
        )
    why = "instance_scopes has no compute" if options["service_account"] else "there is no service_account"
    return f"machines stop when Dask ends on them, since {why}; their disks are paid for until 'dask-cloudvm down'"
