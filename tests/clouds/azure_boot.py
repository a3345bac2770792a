"""Boots the machines of the fake as processes of this computer, from the very custom data of each machine."""

from __future__ import annotations

from typing import Any

import boot
import jinja2
import yaml
from azure_fake import user_data


def cloud_config(body: Any) -> Any:
    """What cloud-init makes of a machine's custom data: cloudinit/templater.py."""
    header, text = user_data(body).split("\n", 1)
    assert header == "## template: jinja" and text.startswith("#cloud-config\n")
    template = jinja2.Template(text, trim_blocks=True, extensions=["jinja2.ext.do"])
    hostname = body["properties"]["osProfile"]["computerName"]
    return yaml.safe_load(template.render(v1={"local_hostname": hostname}))


def files(body: Any) -> dict[str, str]:
    """The machine's files by name, without their folders."""
    return {f["path"].rpartition("/")[2]: f["content"] for f in cloud_config(body)["write_files"]}


class Boot(boot.Boot):
    def files(self, body: Any, name: str) -> dict[str, str]:
        return files(body)
