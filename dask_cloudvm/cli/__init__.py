"""The command line: ``dask-cloudvm VERB``, ``python -m dask_cloudvm VERB`` and ``dask cloudvm VERB``.

One file a verb, imported when it is used, so that ``--help`` stays quick. Exit codes: 0 done, 1 expected failure,
2 bad profile or usage, 3 a bug, 130 interrupted.
"""

from __future__ import annotations

import importlib
import signal
import warnings
from typing import Any

import click

from dask_cloudvm._version import __version__
from dask_cloudvm.errors import CloudVMError

VERBS = {
    "up": "Create a cluster, or adopt the one of the same name, and leave it running.",
    "plan": "Show what up would create, keep and delete.",
    "validate": "Check profiles; show every problem with its position.",
    "explain": "Show every option, its value and where it comes from.",
    "ls": "List clusters.",
    "status": "Show the machines and the scheduler of one cluster.",
    "logs": "Show the logs of one cluster.",
    "scale": "Change the number of workers.",
    "down": "Remove clusters.",
    "gc": "Find what clusters that are gone left behind, and remove it.",
    "init": "Write a commented profile.",
    "options": "List options.",
    "schema": "Print the JSON Schema of profiles.",
    "doctor": "Check what a cluster needs: credentials, permissions, quota.",
    "policy": "Print the least permissions that clusters need.",
}
BUG = "this is a bug in dask-cloudvm; please report it with this text, the command and the profile"


def _show_warning(message: Warning | str, *_: Any) -> None:
    click.echo(f"warning: {message}", err=True)


class Verbs(click.Group):
    """A group that imports a verb's file only to run it, and turns errors into one message and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in VERBS:
            return None
        command: click.Command = importlib.import_module(f"dask_cloudvm.cli.{name}").command
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and args[0] not in VERBS and not args[0].startswith("-"):
            from dask_cloudvm.errors import did_you_mean

            raise click.UsageError(f"There is no verb {args[0]!r}{did_you_mean(args[0], VERBS)}.", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl(list(VERBS.items()))

    def invoke(self, ctx: click.Context) -> Any:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        warnings.showwarning = _show_warning  # type: ignore[assignment]
        try:
            return super().invoke(ctx)
        except CloudVMError as error:
            click.echo(f"{'' if error.exit_code == 2 else 'error: '}{error}", err=True)
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            ctx.exit(130)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except OSError as error:  # such as a full disk behind the standard output
            click.echo(f"error: {error.strerror or error}{f': {error.filename}' if error.filename else ''}", err=True)
            ctx.exit(1)
        except Exception as error:
            from dask_cloudvm.layers import malformed

            if problem := malformed(error):
                click.echo(str(problem), err=True)
                ctx.exit(2)
            import traceback

            click.echo(f"{traceback.format_exc()}\nerror: {BUG}", err=True)
            ctx.exit(3)


@click.group("cloudvm", cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="dask-cloudvm")
def cli() -> None:
    """Dask clusters on cloud virtual machines, from a short YAML profile."""
