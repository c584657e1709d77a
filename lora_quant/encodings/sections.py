"""What 0.6.1 and 1.0.0 share: two sections, a version and a header that is carried along."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from lora_quant.encodings.encoding import Encoding
from lora_quant.encodings.encoding_file import EncodingFile
from lora_quant.encodings.json_entry import describe
from lora_quant.encodings.json_text import Section, value_text
from lora_quant.errors import EncodingsError, Where

ACTIVATIONS = "activation_encodings"
PARAMS = "param_encodings"

Entry = tuple[str, str, Encoding]
"""Tensor name, path in the document, encoding."""


def collect(entries: Iterable[Entry], into: dict[str, Encoding]) -> frozenset[str]:
    """Put entries into `into` and return their names; EncodingsError if one is there already."""
    names = []
    for name, path, encoding in entries:
        if name in into:
            raise EncodingsError(
                "the tensor has a second entry",
                where=Where(tensor=name, field=path),
                hint="remove one of them: readers disagree on which one counts",
            )
        into[name] = encoding
        names.append(name)
    return frozenset(names)


def file_of_sections(
    document: Mapping[str, Any], activations: Iterable[Entry], params: Iterable[Entry]
) -> EncodingFile:
    """The file of both sections, without findings; EncodingsError if a tensor has two entries."""
    encodings: dict[str, Encoding] = {}
    collect(activations, encodings)
    names = collect(params, encodings)
    return EncodingFile(
        document["version"], encodings, names, header_of(document, (ACTIVATIONS, PARAMS))
    )


def header_of(document: Mapping[str, Any], sections: tuple[str, ...]) -> dict[str, Any]:
    """The members of a document that are neither sections nor the version.

    They are written again as they are: EncodingsError for `quantizer_args` that the
    schemas would not let out.
    """
    arguments = document.get("quantizer_args", {})
    if not isinstance(arguments, Mapping):
        raise EncodingsError(
            f"expected an object, got {describe(arguments)}",
            where=Where(field="quantizer_args"),
            hint="leave it out, or take it from the file that AIMET wrote",
        )
    return {k: v for k, v in document.items() if k not in (*sections, "version")}


def members_of_sections(
    file: EncodingFile, section: Callable[[tuple[str, ...]], Section]
) -> Iterator[tuple[str, str | Section]]:
    """The members of the document in alphabetical order, as AIMET writes them.

    Raises EncodingsError if the file does not tell which entries are parameters.
    """
    if file.params is None:
        raise EncodingsError(
            f"encodings {file.version} has one section for activations and one for parameters, "
            "and the file does not tell which entries are parameters",
            hint="convert the file with the shapes of the graph's weights",
        )
    members: dict[str, str | Section] = {k: value_text(v) for k, v in file.header.items()}
    members[ACTIVATIONS] = section(file.activation_names)
    members[PARAMS] = section(file.param_names)
    members["version"] = value_text(file.version)
    return iter(sorted(members.items()))
