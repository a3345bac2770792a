"""This program's Python environment, and what of it goes on machines with ``runtime: uv``.

The packages are fixed where a cluster is made: they become the options ``python`` and ``packages``, so that every later
launcher gets machines with the same. Packages whose source is on this computer travel as wheels, see wheels.py.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import Distribution, distributions, version
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from dask_cloudvm.errors import CloudError, Problem, ProfileError
from dask_cloudvm.options import Options

BUILD = "send local packages"


@dataclass(frozen=True)
class Package:
    """One installed package: a line of a requirements file, or a path on this computer to make a wheel from."""

    name: str
    version: str
    line: str
    path: str | None = None


def python() -> str:
    """This program's Python, such as ``3.11``."""
    return f"{sys.version_info[0]}.{sys.version_info[1]}"


def captured(options: Options) -> Options:
    """``options`` with what ``runtime: uv`` is to install as ``python`` and ``packages``; others as they are.

    Raises :class:`ProfileError` where a file cannot be used.
    """
    if options.cloud == "local" or options["runtime"] != "uv":
        return options
    if options["sync"]:
        if options["python"] not in (None, python()):
            raise _problem(options, "python", f"sync needs {python()}, which runs this program")
        lines = [package.line for package in installed()]
    elif options["requirements"]:
        lines = _with_dask(_read(options))
    else:
        lines = _with_dask(options["packages"] or [f"dask[complete]=={version('dask')}"])
    return options.with_values("captured", python=options["python"] or python(), packages=lines)


def _problem(options: Options, option: str, what: str) -> ProfileError:
    return ProfileError([Problem(options.origins[option], option, what)])


def _read(options: Options) -> list[str]:
    """The lines of the requirements file. Raises :class:`ProfileError` for what a machine could not follow."""
    path = Path(options["requirements"]).expanduser()
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        what = f"{path} cannot be read: {getattr(error, 'strerror', None) or error}"
        raise _problem(options, "requirements", what) from None
    for number, line in enumerate(lines, 1):
        if re.match(r"\s*(-[rce]|--(requirement|constraint|editable)\b)|\s*(\.|/|file:)|.*@ *file:", line):
            what = (
                f"{path}:{number}: {line.strip()!r} means a file of this computer; write the packages out, or use sync"
            )
            raise _problem(options, "requirements", what)
    return lines


def _with_dask(lines: Sequence[str]) -> list[str]:
    """``lines`` and, where they do not name Dask, the release that this program has."""
    if any(re.match(r"\s*(dask|distributed)\s*([\[=<>!~@;#]|$)", line) for line in lines):
        return list(lines)
    return [*lines, f"dask[diagnostics,distributed]=={version('dask')}"]


def installed(path: Sequence[str] | None = None) -> list[Package]:
    """What is installed here, by name, each exactly as it is; ``path`` instead of ``sys.path`` is for tests."""
    found: dict[str, Package] = {}
    for folder in sys.path if path is None else path:
        for each in distributions(path=[folder]):
            name = re.sub(r"[-_.]+", "-", each.metadata["Name"] or "").lower()
            if name and name not in found and _is_installed(each, folder):  # the first is what is imported
                found[name] = _package(name, each)
    return [found[name] for name in sorted(found)]


def _is_installed(found: Distribution, folder: str) -> bool:
    """Not so what a build leaves in a source folder, from which programs are often started."""
    return found.read_text("METADATA") is not None or Path(folder).name in ("site-packages", "dist-packages")


def _package(name: str, found: Distribution) -> Package:
    """https://packaging.python.org/en/latest/specifications/direct-url/"""
    pinned = f"{name}=={found.version}"
    origin: dict[str, Any] = json.loads(found.read_text("direct_url.json") or "{}")
    url = origin.get("url", "")
    if url.startswith("file:"):
        return Package(name, found.version, f"# {pinned} comes from the launcher", unquote(urlsplit(url).path))
    inside = f"#subdirectory={origin['subdirectory']}" if "subdirectory" in origin else ""
    if vcs := origin.get("vcs_info"):
        return Package(name, found.version, f"{name} @ {vcs['vcs']}+{url}@{vcs['commit_id']}{inside}")
    return Package(name, found.version, f"{name} @ {url}{inside}" if url else pinned)


def wheels(options: Options) -> dict[str, bytes]:
    """The wheels, by file name, of the packages that ``sync`` takes from this computer. Raises :class:`CloudError`."""
    if options.cloud == "local" or options["runtime"] != "uv" or not options["sync"]:
        return {}
    return dict(build(package) for package in installed() if package.path)


def build(package: Package) -> tuple[str, bytes]:
    """File name and content of the wheel of a package whose source is on this computer. Raises :class:`CloudError`."""
    source = Path(package.path or "")
    if not source.exists():
        what = f"{package.name} was installed from {source}, which is gone"
        raise CloudError(doing=BUILD, what=what, hint="install it anew, or give packages instead of sync")
    if source.suffix == ".whl":
        return source.name, source.read_bytes()
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run([*_builder(folder), str(source)], capture_output=True, text=True)
        for wheel in Path(folder).glob("*.whl"):
            _check(package, wheel.name)
            return wheel.name, wheel.read_bytes()
    what = f"no wheel of {package.name} could be built from {source}:\n{done.stderr[-2000:]}"
    raise CloudError(doing=BUILD, what=what, hint="repair its build, or give packages instead of sync")


def _check(package: Package, wheel: str) -> None:
    """A wheel of compiled code runs on Linux machines only where it was built on Linux."""
    if not sys.platform.startswith("linux") and not wheel.endswith("-none-any.whl"):
        what = f"{package.name} has compiled code, which is built for {sys.platform} here"
        raise CloudError(doing=BUILD, what=what, hint="publish it for Linux, or give packages instead of sync")


def _builder(folder: str) -> list[str]:
    def modules() -> Iterator[str]:
        yield from (name for name in ("uv", "pip") if importlib.util.find_spec(name))

    if shutil.which("uv") or "uv" in modules():
        uv = ["uv"] if shutil.which("uv") else [sys.executable, "-m", "uv"]
        return [*uv, "build", "--quiet", "--wheel", "--python", sys.executable, "--out-dir", folder]
    if "pip" in modules():
        return [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder]
    raise CloudError(doing=BUILD, what="neither uv nor pip is here to build them", hint="install uv")
