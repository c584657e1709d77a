"""What the programs that work on the HTP in a process of their own have in common."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from lora_quant.errors import LoraQuantError

REFUSED = 1


def run_child(work: Callable[[], None]) -> int:
    """Do the work within the machine's memory; an error of ours becomes one text on stderr.

    The compiler can take memory without end on graphs that it does not finish.
    """
    try:
        import resource
    except ImportError:  # Windows
        pass
    else:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    try:
        work()
    except LoraQuantError as error:
        sys.stderr.write(f"\n{error.message}\n")
        return REFUSED
    return 0
