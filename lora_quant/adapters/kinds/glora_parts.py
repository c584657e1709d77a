"""The five parts of a GLORA module, told by the names and shapes of their tensors.

product    Xd [n, r], Xu [r, m]
vector     X [n, 1] (A, B, C), X [out] (D, E)
constant   X [1]
none       zeros, as large as what they stand for
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from lora_quant.adapters.frame.module_tensors import Headers
from lora_quant.errors import AdapterError, short

Form = Literal["product", "vector", "constant", "none"]

_FIELDS = {
    "A": "config_A_B",
    "B": "config_A_B",
    "C": "config_C",
    "D": "config_D_E",
    "E": "config_D_E",
}
_DEFAULTS = {"config_A_B": "lora", "config_C": "lora", "config_D_E": "constant"}
_WORDS: Mapping[Form, str] = {"product": "lora", "vector": "vector", "constant": "constant"}


@dataclass(frozen=True)
class Part:
    """One part, and the sizes of the module that it tells."""

    form: Form
    out: int | None = None
    inputs: int | None = None


def read_parts(headers: Headers) -> Mapping[str, Part]:
    """`A` to `E`; AdapterError if one is missing, contradicts another, or the configuration."""
    parts = {path: _part(headers, path) for path in "ABCDE"}
    for path, part in parts.items():
        _check_config(headers, path, part.form)
    _check_sizes(headers, parts)
    return parts


def _part(headers: Headers, path: str) -> Part:
    name = f"glora_{path}"
    present = {tensor for tensor in ("X", "Xd", "Xu", "zeros") if headers.has(f"{name}.{tensor}")}
    if present == {"Xd", "Xu"}:
        rows, rank = headers.dims(f"{name}.Xd", 2)
        columns = headers.dims(f"{name}.Xu", 2)[1]
        headers.expect({f"{name}.Xu": (rank, columns)})
        headers.expect_rank(f"{name}.Xd", rank)
        return Part("product", inputs=rows) if path == "C" else Part("product", rows, columns)
    if present == {"X"}:
        return _column(headers, path, headers.dims(f"{name}.X"))
    if present == {"zeros"}:
        dims = headers.dims(f"{name}.zeros", 1 if path in "DE" else 2)
        if path == "C":
            return Part("none", inputs=dims[0])
        return Part("none", dims[0], None if path in "DE" else dims[1])
    got = ", ".join(sorted(present)) or "nothing"
    raise headers.error(
        f"{name}.{min(present, default='X')}",
        f"of {name} the module has {got}, expected X, zeros, or Xd and Xu",
    )


def _column(headers: Headers, path: str, dims: tuple[int, ...]) -> Part:
    if dims == (1,) and path != "C":
        # a vector of one number is the same as a constant
        return Part("constant")
    expected = 1 if path in "DE" else 2
    if len(dims) != expected or (expected == 2 and dims[1] != 1):
        raise headers.error(
            f"glora_{path}.X",
            f"glora_{path}.X has shape {list(dims)}, expected "
            f"{'[out]' if path in 'DE' else '[in, 1]' if path == 'C' else '[out, 1]'} or [1]",
        )
    return Part("vector", inputs=dims[0]) if path == "C" else Part("vector", dims[0])


def _check_config(headers: Headers, path: str, form: Form) -> None:
    field = _FIELDS[path]
    said = headers.config.names(field) or _DEFAULTS[field]
    accepted = {_WORDS.get(form, "none")}
    if form == "none" and path in "CDE":
        # a module without a bias has none of these, whatever the configuration says
        accepted |= {"lora", "vector", "constant"}
    if form == "constant" and path in "DE":
        accepted.add("vector")
    if said not in accepted:
        raise AdapterError(
            f"glora_{path} of module {headers.module!r} is {form!r} in the weights, but {field} "
            f"is {short(said)}",
            where=headers.config.where(field),
            hint="the configuration is not the one that the weights were saved with",
        )


def _check_sizes(headers: Headers, parts: Mapping[str, Part]) -> None:
    for what, sizes in (
        ("out", {path: part.out for path, part in parts.items()}),
        ("in", {path: part.inputs for path, part in parts.items()}),
    ):
        told = {path: size for path, size in sizes.items() if size is not None}
        if len(set(told.values())) > 1:
            listed = ", ".join(f"glora_{path}: {size}" for path, size in told.items())
            raise AdapterError(
                f"the parts of module {headers.module!r} do not agree on {what} ({listed})",
                where=headers.config.where("target_modules"),
                hint="the tensors are not of one training; save the adapter again",
            )
