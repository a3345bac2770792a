"""Ctrl-C and its relatives: the work is cancelled once, cleans up, and the process ends with exit code 130."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Coroutine
from typing import Any, TypeVar

import click

T = TypeVar("T")


async def interruptible(work: Coroutine[Any, Any, T]) -> T:
    """Runs ``work``; SIGINT, SIGTERM and SIGHUP cancel it once, and further ones wait for its clean-up."""
    task = asyncio.ensure_future(work)
    loop = asyncio.get_running_loop()
    received: list[int] = []

    def stop(number: int) -> None:
        if not received:
            task.cancel()
        with contextlib.suppress(OSError):  # the terminal may be gone, which is what SIGHUP tells
            click.echo("still cleaning up" if received else "stopping; cleaning up", err=True)
        received.append(number)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    for number in numbers:
        loop.add_signal_handler(number, stop, number)
    try:
        return await task
    except asyncio.CancelledError:
        if not received:
            raise
        raise KeyboardInterrupt from None
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
