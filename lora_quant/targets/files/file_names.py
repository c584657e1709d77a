"""Names of files of a target that would meet: its own, the base's data files, the use cases'."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lora_quant.config.names import MAX_NAME_BYTES, folder_key
from lora_quant.errors import ConfigError, PackError, Where
from lora_quant.passes.compilation import Compilation


def check_file_names(
    compilation: Compilation,
    own: Iterable[str],
    suffixes: Sequence[str] = ("",),
    *,
    with_base_data: bool = True,
) -> None:
    """Refuse a base or use cases whose files would meet others of the target.

    `own` are the names that the target writes whatever it compiles; the files and folders of a use
    case have its name and one of `suffixes`. `with_base_data`: whether the base's data files are
    copied beside them. Raises PackError or ConfigError.
    """
    taken = {folder_key(name) for name in own}
    if with_base_data and not compilation.options.beside_base:
        for data in compilation.base.model.data_files:
            first = folder_key(data.location.split("/")[0])
            if first in taken:
                raise PackError(
                    f"the base's data file {data.location!r} has the name of a file of the pack",
                    where=Where(file=compilation.base.path),
                    hint="save the base graph with another name for its data file",
                )
            taken.add(first)
    for use_case in compilation.config.use_cases:
        for suffix in suffixes:
            name = use_case.name + suffix
            if folder_key(name) in taken:
                problem = "is the name of a file of the pack"
                problem += f", with {suffix!r} behind it" if suffix else ""
            elif len(name.encode()) > MAX_NAME_BYTES:
                problem = f"gives a file name of more than {MAX_NAME_BYTES} bytes"
            else:
                taken.add(folder_key(name))
                continue
            raise ConfigError(
                f"the use case name {use_case.name!r} {problem}",
                where=Where(file=compilation.config_file, use_case=use_case.name),
                hint="choose another name for the use case",
            )
