"""``dask-cloudvm`` and ``python -m dask_cloudvm``."""

import signal


def main() -> None:
    """The program."""
    # Until a verb runs there is nothing to clean up: Ctrl-C just ends the program, without a traceback of its imports.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from dask_cloudvm.cli import cli

    cli(prog_name="dask-cloudvm")


if __name__ == "__main__":
    main()
