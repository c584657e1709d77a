"""Standard output that is ours alone: what libraries print there goes to standard error.

The vendor's library for the HTP greets on standard output, in the middle of a JSON report.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def own_stdout(*, enabled: bool) -> Iterator[None]:
    """Within this context, what any library writes to standard output goes to standard error."""
    if not enabled:
        yield
        return
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        if os.name == "posix":
            ctypes.CDLL(None).fflush(None)  # or it would appear when the process ends
        os.dup2(kept, 1)
        os.close(kept)
