"""Blocking calls off the event loop, also while the interpreter shuts down."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def in_thread(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """``asyncio.to_thread``, but at the exit of the program, when no thread can be started any more, right here.

    SpecCluster closes its clusters at exit, after Python has shut down its thread pools.
    """
    try:
        return await asyncio.to_thread(call, *args, **kwargs)
    except RuntimeError as error:
        if "shutdown" not in str(error):
            raise
        return call(*args, **kwargs)
