"""What a cluster shows in a notebook below distributed's own description, in the look of that. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from dask_cloudvm.clouds.base import VM

_FRAME = """
<div class="jp-RenderedHTMLCommon jp-RenderedHTML jp-mod-trusted">
    <details style="margin-left: 48px;">
        <summary style="margin-bottom: 20px;"><h3 style="display: inline;">{title}</h3></summary>
        <table style="width: 100%; text-align: left;">{rows}</table>
    </details>
</div>
"""


def machines(vms: Sequence[VM]) -> str:
    """A table of machines, folded up; columns in which there is nothing are left out."""
    cells = [
        {
            "Machine": vm.name,
            "Role": vm.role,
            "Address": vm.private_ip,
            "Public address": vm.public_ip,
            "Zone": vm.zone,
            "Price": "spot" if vm.spot else "",
        }
        for vm in vms
    ]
    head = [column for column in (cells[0] if cells else ()) if any(row[column] for row in cells)]
    rows = [_row("th", head), *(_row("td", [row[column] or "" for column in head]) for row in cells)]
    return _FRAME.format(title=f"Machines ({len(vms)})", rows="".join(rows))


def _row(tag: str, cells: Sequence[str]) -> str:
    inner = "".join(f'<{tag} style="text-align: left;">{escape(cell)}</{tag}>' for cell in cells)
    return f"<tr>{inner}</tr>"
