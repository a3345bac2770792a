"""The house plan stays true: who may import whom, and how long things may be."""

from __future__ import annotations

import ast
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "dask_cloudvm"
FILES = sorted(PACKAGE.rglob("*.py"))
# A module may import, when it is imported itself, only from lines above its own.
ORDER = [
    {"_version"},
    {"errors", "schema", "batch", "threads", "arguments", "spot", "registry", "losses"},
    {"profile", "template"},
    {"text"},
    {"layers", "tls"},
    {"places"},
    {"checks"},
    {"options", "bootstrap"},
    {"environment"},
    {"runtimes"},
    {"userdata"},
    {"clouds.base", "clouds.common", "clouds.machine", "clouds.names"},
    {"plan"},
    {"clouds"},
    {"clouds.*"},
    {"machines", "api", "widget", "fleet"},
    {"versions", "wheels"},
    {"workers", "leftovers"},
    {"cluster"},
    {"cli"},
    {"cli.common", "cli.interrupt"},
    {"cli.*"},
    {"__init__", "__main__"},
]
PURE = {"schema", "options", "checks", "text", "bootstrap", "plan", "template", "runtimes", "userdata"}
HEAVY = {"distributed", "dask_cloudprovider", "dask", "boto3", "botocore", "google", "azure", "psutil", "cryptography"}
MAY_BE_HEAVY = {"cluster", "workers", "machines", "versions", "wheels"}


def module(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def rank(name: str) -> int:
    for i, names in enumerate(ORDER):
        if name in names:
            return i
    parent = name.rpartition(".")[0] + ".*"
    return next(i for i, names in enumerate(ORDER) if parent in names)


def top_imports(path: Path) -> set[str]:
    """Modules that importing this file imports, without those for type checkers and those inside functions."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def ours(path: Path) -> set[str]:
    known = {module(p) for p in FILES}
    names = {n.removeprefix("dask_cloudvm.") for n in top_imports(path) if n.startswith("dask_cloudvm.")}
    return {name for name in names if name in known}


@pytest.mark.parametrize("path", FILES, ids=module)
def test_no_import_runs_upwards(path):
    same_cloud = module(path).split("_")[0]  # clouds/ec2.py and its clouds/ec2_errors.py ... are one cloud
    for name in ours(path) - {module(path)}:
        assert rank(name) < rank(module(path)) or name.split("_")[0] == same_cloud, name


@pytest.mark.parametrize("path", FILES, ids=module)
def test_nothing_heavy_is_imported_on_the_way(path):
    heavy = {name.split(".")[0] for name in top_imports(path)} & HEAVY
    assert not heavy or module(path) in MAY_BE_HEAVY


@pytest.mark.parametrize("name", sorted(PURE))
def test_pure_modules_do_no_io_and_have_no_clock(name):
    text = (PACKAGE / f"{name}.py").read_text()
    tree = ast.parse(text)
    assert not [n for n in ast.walk(tree) if isinstance(n, (ast.AsyncFunctionDef, ast.Await))]
    assert not top_imports(PACKAGE / f"{name}.py") & {"time", "random", "secrets", "socket", "subprocess", "asyncio"}


def functions(path: Path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            yield node, (node.end_lineno - body[0].lineno + 1) if body else 0


def test_functions_and_files_are_short():
    lengths = {f"{path}:{node.name}": length for path in FILES for node, length in functions(path)}
    assert max(lengths.values()) <= 60, max(lengths, key=lengths.get)
    assert statistics.median(lengths.values()) < 10
    sizes = {path.name: len(path.read_text().splitlines()) for path in FILES}
    assert sorted(sizes.values())[-2] <= 350, sizes


def test_every_public_function_and_class_says_what_it_is():
    missing = [
        f"{path.name}:{node.name}"
        for path in FILES
        if "cli" not in path.parts
        for node in ast.parse(path.read_text()).body
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
        and not node.name.startswith("_")
        and not ast.get_docstring(node)
        and path.name != "errors.py"
    ]
    assert missing == []


def loaded_by(program: str) -> set[str]:
    code = f"import sys\n{program}\nprint(' '.join(m for m in sys.modules if '.' not in m))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    return set(out.splitlines()[-1].split())


def test_help_imports_nothing_heavy():
    program = "from dask_cloudvm.cli import cli\ntry: cli(['--help'])\nexcept SystemExit: pass"
    assert not loaded_by(program) & (HEAVY | {"yaml", "jsonschema", "rich"})


def test_validate_imports_neither_dask_nor_a_cloud_sdk():
    profile = PACKAGE.parent / "config" / "ec2.yaml"
    program = f"from dask_cloudvm.cli import cli\ntry: cli(['validate', {str(profile)!r}])\nexcept SystemExit: pass"
    assert not loaded_by(program) & HEAVY


def test_listing_and_removing_need_of_dask_its_configuration_only():
    program = "import dask_cloudvm\ndask_cloudvm.ls()"
    assert not loaded_by(program) & (HEAVY - {"psutil", "dask"})
