"""Which format a checkpoint is of, asked of every format; and which reader its weights need.

Names that only one library writes decide. PEFT's configuration decides where no name does: other
libraries put one beside files of their own.
"""

from __future__ import annotations

from pathlib import Path

from lora_quant.adapters.files.opened import opened
from lora_quant.adapters.files.safetensors_file import SafetensorsFile
from lora_quant.adapters.files.tensor_source import TensorSource
from lora_quant.adapters.formats.aimet import Aimet
from lora_quant.adapters.formats.contract import CheckpointFormat, Found
from lora_quant.adapters.formats.diffusers import Diffusers
from lora_quant.adapters.formats.foreign_files import foreign_file
from lora_quant.adapters.formats.gguf_file import GgufFile
from lora_quant.adapters.formats.gguf_header import MAGIC
from lora_quant.adapters.formats.gguf_lora import GgufLora
from lora_quant.adapters.formats.kohya import Kohya
from lora_quant.adapters.formats.mlx import Mlx
from lora_quant.adapters.formats.peft import Peft
from lora_quant.adapters.formats.torch_zip import LOCAL_MAGIC, TorchZipFile
from lora_quant.adapters.formats.torchtune import Torchtune
from lora_quant.errors import AdapterError, UnsupportedAdapterError, Where

_PEFT = Peft()
FORMATS: tuple[CheckpointFormat, ...] = (
    _PEFT,
    Kohya(),
    Diffusers(),
    Mlx(),
    Torchtune(),
    GgufLora(),
    Aimet(),
)

# safetensors: 8 bytes of length, then JSON; the length may begin like any other file
_BRACE = slice(8, 9)
_TAR_MARK = slice(257, 262)
# a pickle of protocol 2 to 5 begins with its number
_BARE_PICKLES = tuple(bytes([0x80, protocol]) for protocol in range(2, 6))


def open_weights(path: Path) -> TensorSource:
    """Open a file of tensors with the reader that its first bytes ask for.

    Raises InputMissingError, UnsupportedAdapterError for the pickles of old torch versions,
    AdapterError for any other file, and what the readers raise for damage.
    """
    with opened(path) as file:
        head = file.read(512)
    if head.startswith(MAGIC):
        return GgufFile(path)
    if head.startswith(LOCAL_MAGIC):
        return TorchZipFile(path)
    if head[_BRACE] == b"{":
        return SafetensorsFile(path)
    foreign = foreign_file(path, head)
    if foreign is not None:
        raise foreign
    if head.startswith(_BARE_PICKLES) or head[_TAR_MARK] == b"ustar":
        raise UnsupportedAdapterError(
            "the file is a pickle of torch before 1.6, or no torch file at all; it is not opened, "
            "as a pickle can run code when it is read",
            where=Where(file=path),
            hint="load the adapter with PEFT and save it with "
            "save_pretrained(safe_serialization=True)",
        )
    raise AdapterError(
        "the file is of no format that is known here, expected safetensors (a length and an "
        "opening brace), a zip archive of torch.save or GGUF",
        where=Where(file=path),
        hint="name the weights of an adapter; if it is one, it is cut short or damaged",
    )


def find_format(found: Found) -> CheckpointFormat | None:
    """The format of the files; None if there is none. AdapterError if several claim them."""
    claims = [one for one in FORMATS if one is not _PEFT and one.claims(found)]
    if len(claims) > 1:
        raise AdapterError(
            "the file could be of several formats: "
            + "; ".join(f"{one.name} ({one.signature})" for one in claims),
            where=Where(file=found.tensors.path),
            hint="keep tensors of each format in a file of their own",
        )
    if claims:
        return claims[0]
    return _PEFT if _PEFT.claims(found) else None
