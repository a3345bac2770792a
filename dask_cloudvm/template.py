"""Writes commented profiles from the schemas: ``config/cloudprovider.yaml`` and what ``dask-cloudvm init`` makes."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any

import yaml

from dask_cloudvm import schema
from dask_cloudvm.schema import Option

WIDTH = 110
START = {"n_workers": 2}  # what init leaves uncommented, so that the new profile starts something
HEAD = """\
# yaml-language-server: $schema=../schemas/profile.json
# Every option with its default, its name in the environment and its other spellings. A reference: copy the lines that
# you want to change to a profile or to ~/.config/dask/cloudprovider.yaml. Made from schemas/ by 'make config'.

"""


def configuration() -> str:
    """``config/cloudprovider.yaml``: every option of every cloud at its default, as Dask configuration."""
    lines = ["cloudprovider:"]
    for name in (schema.SHARED, *schema.clouds()):
        lines += ["", *_section(name, {option.name: option.default for option in _own(name)})]
    return HEAD + "\n".join(lines) + "\n"


def profile(cloud: str, schema_at: str) -> str:
    """A profile for ``cloud`` with every option explained; ``schema_at`` is where editors find the JSON Schema."""
    lines = [f"# yaml-language-server: $schema={schema_at}", "", "cloudprovider:", f"  cloud: {cloud}"]
    for name in (schema.SHARED, cloud):
        lines += ["", *_section(name, START)]
    return "\n".join(lines) + "\n"


def _own(section: str) -> list[Option]:
    return [option for option in schema.options(section).values() if section == schema.SHARED or not option.shared]


def _section(name: str, active: dict[str, Any]) -> Iterator[str]:
    yield f"  {name}:"
    for option in _own(name):
        names = ", also ".join([f"${option.env(name)}", *option.aliases])
        for line in textwrap.wrap(f"{option.description} [{names}]", WIDTH, break_on_hyphens=False):
            yield f"    # {line}"
        value = active.get(option.name, option.default)
        yield f"    {'' if option.name in active else '# '}{option.name}: {_yaml(value)}"


def _yaml(value: Any) -> str:
    text: str = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10**6, allow_unicode=True)
    return text.removesuffix("...\n").strip()
