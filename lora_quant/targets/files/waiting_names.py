"""The hidden names of what is not published yet; the tag is that of one build.

OUT                  ->  .OUT.5f0c9a13.part
model.OUT.onnx       ->  .model.OUT.onnx.OUT.5f0c9a13.part      beside the base
"""

from __future__ import annotations

from pathlib import Path


def staging_folder(output: Path, tag: str) -> Path:
    """The folder that the output grows in."""
    return output.with_name(f".{output.name}.{tag}.part")


def waiting_name(final: Path, staging: Path) -> Path:
    """The name of a file of the same build in another folder."""
    # Not two dots in a row: onnx takes them for a way out of the folder.
    return final.with_name(f".{final.name}.{staging.name.lstrip('.')}")
