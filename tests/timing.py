"""Processor time of one step, whatever else the test process has done before."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable


def cpu_seconds(step: Callable[[], object]) -> float:
    """Seconds that this thread computes.

    Neither the threads that an engine of an earlier test keeps spinning nor a collection of
    the garbage of thousands of tests belong to the step.
    """
    gc.collect()
    gc.disable()
    try:
        started = time.thread_time()
        step()
        return time.thread_time() - started
    finally:
        gc.enable()
