"""Ctrl-C and its relatives: the work is cancelled once, cleans up, and the process ends with exit code 130.

It ends at once then: a thread that waits for the answer of a cloud would keep it for minutes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Coroutine
from typing import Any, NoReturn, TypeVar

import click

T = TypeVar("T")
SAID = (
    "stopping; cleaning up",
    "still cleaning up; once more ends that, too",
    "ended; what was made may still be there: see 'dask-cloudvm ls'",
)


async def interruptible(work: Coroutine[Any, Any, T]) -> T:
    """Runs ``work``; SIGINT, SIGTERM and SIGHUP cancel it once, and the third one ends its clean-up, too."""
    task = asyncio.ensure_future(work)
    loop = asyncio.get_running_loop()
    received: list[int] = []

    def stop(number: int) -> None:
        if not received:
            task.cancel()
        elif len(received) == len(SAID) - 1:
            _end(SAID[-1])
        _say(SAID[len(received)])
        received.append(number)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    for number in numbers:
        loop.add_signal_handler(number, stop, number)
    try:
        return await task
    except asyncio.CancelledError:
        if not received:
            raise
        _end("interrupted")
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # the terminal may be gone, which is what SIGHUP tells
        click.echo(text, err=True)


def _end(text: str) -> NoReturn:
    _say(text)
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    os._exit(130)
