"""Paths that documents name, relative to a folder and with forward slashes.

a/../b.onnx  ->  b.onnx        x/../../b.onnx  ->  ../b.onnx, which is outside
"""

from __future__ import annotations

import posixpath


def normalised(path: str) -> str:
    """A path without `.` and inner `..`; one that leaves the folder begins with `..`."""
    return posixpath.normpath(path)


def is_outside(path: str) -> bool:
    """Whether a normalised path leaves the folder that it is relative to."""
    return path == ".." or path.startswith("../")
