"""Blocking calls off the event loop, also while the interpreter shuts down."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def in_thread(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """``asyncio.to_thread``, but at the exit of the program, when no thread can be started any more, right here.

    SpecCluster closes its clusters at exit, after Python has shut down its thread pools.
    """
    return await in_pool(None, call, *args, **kwargs)


async def in_pool(pool: Executor | None, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Like :func:`in_thread`, in a pool that bounds how many calls run at once; None is asyncio's own."""
    work = partial(contextvars.copy_context().run, call, *args, **kwargs)
    try:
        return await asyncio.get_running_loop().run_in_executor(pool, work)
    except RuntimeError as error:
        if "shutdown" not in str(error):
            raise
        return call(*args, **kwargs)
