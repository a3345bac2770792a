"""What is made from schemas/ and from the command line, and where it stands: the one place that knows.

``python -m tests.derived`` (``make config``) writes it; test_derived.py fails where it is stale.
"""

from __future__ import annotations

import re
from pathlib import Path

from click.testing import CliRunner

from dask_cloudvm import schema, template
from dask_cloudvm.cli import cli

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
CONFIGURATION = ROOT / "config" / "cloudprovider.yaml"


def sections() -> dict[str, str]:
    """The text of each generated part of the README, by the name in its markers."""
    help_text = CliRunner().invoke(cli, ["--help"], prog_name="dask-cloudvm", terminal_width=100).output
    tables = {f"options {name}": schema.markdown(name) for name in (schema.SHARED, *schema.clouds())}
    return {"help": f"```text\n{help_text}```", **tables}


def fill(text: str) -> str:
    """A README with each ``<!-- begin NAME -->`` ... ``<!-- end NAME -->`` filled anew."""
    for name, content in sections().items():
        pattern = re.compile(rf"(<!-- begin {name} -->\n).*?(<!-- end {name} -->)", re.DOTALL)
        assert pattern.search(text), f"README has no part {name!r}"
        text = pattern.sub(lambda found, content=content: f"{found[1]}{content}\n{found[2]}", text)
    return text


def main() -> None:
    CONFIGURATION.write_text(template.configuration(), "utf-8")
    README.write_text(fill(README.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    main()
