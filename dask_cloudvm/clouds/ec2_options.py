"""What options of EC2 mean to the API. Pure; wrong ones are refused here, before any call."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from dask_cloudvm.clouds.ec2_facts import TAG
from dask_cloudvm.errors import CloudError

LONGEST_KEY, LONGEST_VALUE = 128, 256  # characters
MOST_TAGS = 50 - 7  # some are ours
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")  # what XML cannot hold


def check(values: Mapping[str, Any]) -> None:
    """Refuses what no call needs to be made for. Raises CloudError."""
    for option in ("instance_tags", "volume_tags"):
        _check_tags(option, tags(values[option]))


def tags(given: Mapping[str, Any]) -> dict[str, str]:
    """Tags as EC2 takes them; a number or boolean as JSON writes it."""
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in given.items()}


def _check_tags(option: str, given: Mapping[str, str]) -> None:
    """https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/Using_Tags.html#tag-restrictions"""
    for key, value in given.items():
        if not 0 < len(key) <= LONGEST_KEY or len(value) > LONGEST_VALUE:
            raise _tag(option, key, f"it may have {LONGEST_KEY} characters, and its value {LONGEST_VALUE}")
        if key.lower().startswith(("aws:", TAG)):
            raise _tag(option, key, f"what starts with aws: or {TAG} is kept for AWS's or dask-cloudvm's own use")
        if _CONTROL.search(key + value):
            raise _tag(option, key, "it has characters that AWS cannot take")
    if len(given) > MOST_TAGS:
        what = f"there are {len(given)} {option}, AWS allows {MOST_TAGS} besides dask-cloudvm's own"
        raise CloudError(doing="plan machines on ec2", what=what, hint=f"give fewer {option}")


def _tag(option: str, key: str, what: str) -> CloudError:
    said = f"{option}: {key[:40]!r} cannot be a tag: {what}"
    return CloudError(doing="plan machines on ec2", what=said, hint=f"change {option}")
