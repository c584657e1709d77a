"""Lists of tensors, one name a line: quant_updatable_tensors.txt, lora_tensor_names.txt.

/q_proj/A, an empty line, /q_proj/B  ->  ["/q_proj/A", "", "/q_proj/B"]
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from lora_quant.config.document_text import read_bytes
from lora_quant.errors import ConfigError, Where

MAX_BYTES: Final = 256 << 20
MAX_LINES: Final = 1_000_000
"""Each line's name is remembered: graphs have some ten thousand tensors."""


def read_lines(path: Path) -> list[str]:
    """The lines of a list as they are, so that the place of each in the list is that in the file.

    ConfigError for text that is not UTF-8, or has more than 256 MiB or a million lines,
    InputMissingError for a file that cannot be read.
    """
    data = read_bytes(path, max_bytes=MAX_BYTES)
    if data.count(b"\n") > MAX_LINES:
        raise ConfigError(
            f"the list has more than {MAX_LINES:,} lines",
            where=Where(file=path),
            hint="check that the path names a list of tensors",
        )
    try:
        return data.decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ConfigError(
            "the list of tensors is not UTF-8 text", where=Where(file=path)
        ) from error
