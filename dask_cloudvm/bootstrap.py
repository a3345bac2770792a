"""What one machine runs: command, environment and files. Pure.

The texts are the same for every machine of a role: ``NAME`` stands for the machine's own name and ``DIR`` for the
folder that holds its files, until :func:`fill` or the machine itself puts them in. Secrets are in files only, never in
a command.
"""

from __future__ import annotations

import ast
import inspect
import io
import json
import shlex
import tokenize
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any

from dask_cloudvm import spot, tls

# Nannies set these themselves; other workers would have as many threads a task as the machine has processors.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
NAME, DIR = "@DASK_CLOUDVM_NAME@", "@DASK_CLOUDVM_DIR@"


@dataclass(frozen=True)
class Launch:
    """A command with its environment and the files (name -> text, mode 0600) it finds in its folder."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    files: Mapping[str, str] = field(repr=False)


def fill(text: str, name: str, folder: str) -> str:
    """``text`` for one machine."""
    return text.replace(NAME, name).replace(DIR, folder)


def scheduler(
    options: Mapping[str, Any], certificates: Mapping[str, str], *, python: str, extra: Mapping[str, Any] | None = None
) -> Launch:
    """The scheduler's launch.

    Parameters
    ----------
    options : the options for role ``scheduler``
    certificates : what :func:`dask_cloudvm.tls.make` made; empty without TLS
    python : the interpreter on the machine
    extra : more options of the scheduler command, which the user's ``scheduler_options`` win over
    """
    flags = {"protocol": protocol(options), "idle_timeout": options["idle_timeout"] or None, **(extra or {})}
    argv = (python, "-m", "distributed.cli.dask_scheduler", *_flags({**flags, **options["scheduler_options"]}))
    return _launch(argv, options, certificates, ("scheduler",), {})


def worker(
    options: Mapping[str, Any],
    certificates: Mapping[str, str],
    address: str,
    *,
    python: str,
    extra: Mapping[str, Any] | None = None,
    env: Mapping[str, str] = ONE_THREAD,
) -> Launch:
    """The launch of every worker of one kind, which joins the scheduler at ``address``; see :func:`scheduler`.

    ``env`` are variables that the user's ``env_vars`` win over.
    """
    own = {"death_timeout": options["death_timeout"], **(extra or {}), **options["worker_options"], "name": NAME}
    files: dict[str, str] = {}
    if options["worker_command"]:
        argv = (*shlex.split(options["worker_command"]), address, *_flags(own))
    elif options["worker_module"]:
        argv = (python, "-m", options["worker_module"], address, *_flags(own))
    else:
        files["worker.json"] = json.dumps({"cls": options["worker_class"], "opts": own})
        argv = (python, "-m", "distributed.cli.dask_spec", address, "--spec-file", f"{DIR}/worker.json")
    # Tasks that make a client of their own do it with the worker's certificate: the user's never leaves the user.
    launch = _launch(argv, options, certificates, ("worker", "client"), files)
    return replace(launch, env={**env, **launch.env})


def watching(launch: Launch, cloud: str) -> Launch:
    """A worker's ``launch`` for a spot machine of ``cloud``, whose results move away when the machine is to go."""
    file = f"{DIR}/dask_cloudvm_spot.py"
    env = {**launch.env, "DASK_CLOUDVM_SPOT": cloud}
    for key in ("DASK_DISTRIBUTED__NANNY__PRELOAD", "DASK_DISTRIBUTED__WORKER__PRELOAD"):
        env[key] = json.dumps([*_listed(env.get(key, "[]")), file])
    text = travelling(spot, "dask_setup", cloud)
    return replace(launch, env=env, files={**launch.files, "dask_cloudvm_spot.py": text})


def travelling(module: ModuleType, *roots: str) -> str:
    """The text of a module as a machine gets it: what the functions ``roots`` need, and nothing for readers.

    Entries of its tables whose function stays here stay, too. The lines are otherwise as they were written, since what
    ``ast.unparse`` makes of them differs with the release of Python.
    """
    text = inspect.getsource(module)
    lines, tree = text.splitlines(), ast.parse(text)
    functions = {node.name: node for node in tree.body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))}
    staying = functions.keys() - _needed(functions, roots)
    out = [(functions[name].lineno, functions[name].end_lineno or 0) for name in staying]
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):  # a docstring
            out.append((node.lineno, node.end_lineno or 0))
        if isinstance(node, ast.Dict):
            out += [(v.lineno, v.lineno) for v in node.values if isinstance(v, ast.Name) and v.id in staying]
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column].rstrip()
    gone = {row for start, end in out for row in range(start, end + 1)}
    return "".join(f"{line}\n" for row, line in enumerate(lines, 1) if line and row not in gone)


def _needed(functions: Mapping[str, ast.AST], names: Iterable[str]) -> set[str]:
    """The functions of these names, and those that they name themselves."""
    found: set[str] = set()
    todo = list(names)
    while todo:
        if (name := todo.pop()) in functions and name not in found:
            found.add(name)
            todo += [node.id for node in ast.walk(functions[name]) if isinstance(node, ast.Name)]
    return found


def _listed(text: str) -> list[Any]:
    """What Dask makes of a variable that holds one text or a list of them."""
    try:
        value = ast.literal_eval(text)
    except (SyntaxError, ValueError):
        value = text
    return list(value) if isinstance(value, (list, tuple)) else [value]


def protocol(options: Mapping[str, Any]) -> str:
    """The protocol of Dask's connections: as given, else by ``security``."""
    return options["protocol"] or ("tls" if options["security"] else "tcp")


def _launch(
    argv: tuple[str, ...],
    options: Mapping[str, Any],
    certificates: Mapping[str, str],
    acts_as: tuple[str, ...],
    files: Mapping[str, str],
) -> Launch:
    env = {key: _text(value) for key, value in options["env_vars"].items()}
    if certificates:
        role = acts_as[0]
        env |= {
            "DASK_DISTRIBUTED__COMM__TLS__CA_FILE": f"{DIR}/ca.pem",
            "DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION": "True",
        }
        for name in acts_as:
            env[f"DASK_DISTRIBUTED__COMM__TLS__{name.upper()}__CERT"] = f"{DIR}/{role}.pem"
            env[f"DASK_DISTRIBUTED__COMM__TLS__{name.upper()}__KEY"] = f"{DIR}/{role}.key"
        files = {**files, **tls.for_role(certificates, role)}
    return Launch(argv, env, files)


def _flags(options: Mapping[str, Any]) -> list[str]:
    """``{"idle_timeout": "1h", "dashboard": False}`` -> ``--idle-timeout 1h --no-dashboard``; None is left out."""
    flags: list[str] = []
    for key, value in options.items():
        flag = key.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{flag}" if value else f"--no-{flag}")
        elif value is not None:
            flags += [f"--{flag}", _text(value)]
    return flags


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
