"""Validations to report, made up by hand and by hypothesis."""

from __future__ import annotations

from pathlib import Path

from hypothesis import strategies as st

from lora_quant.errors import Where
from lora_quant.findings import Finding, Severity
from lora_quant.validation.catalogue.device import BLOCK_SIZE
from lora_quant.validation.checked import Checked, Validation
from lora_quant.validation.kinds import Kind

ODD = Path("ünï códe/with space, comma:colon%25#?.yaml")
FIELD = Where(ODD, line=3, column=5, field="use-case[0].name")
TENSOR = Where(ODD, use_case="both", adapter="tone", module="a.b", tensor="/x/y", node="/n")


def warning(message: str = "a message", where: Where = FIELD) -> Finding:
    return Finding("an-area/a-rule", Severity.WARNING, message, where)


def sample() -> Validation:
    """One file without findings, one with an error, a warning and a note, one outside."""
    odd = (
        BLOCK_SIZE.finding("blocks of 24 values\nare 100% wrong", FIELD),
        warning(where=TENSOR),
        Finding("an-area/another", Severity.NOTE, "no place is named", hint="do nothing"),
    )
    outside = Path("/elsewhere/pack")
    return Validation(
        (
            Checked(Path("fine.json"), Kind.MANIFEST, (), ignored=2),
            Checked(ODD, Kind.LORA_CONFIG, odd),
            Checked(outside, None, (warning(where=Where(outside / "\udcff.bin")),)),
        )
    )


def many(count: int, severity: Severity = Severity.WARNING) -> Validation:
    """That many findings of one severity in one file, each on a line of its own."""
    path = Path("many.json")
    findings = (
        Finding("an-area/a-rule", severity, f"finding {n} of many", Where(path, line=n))
        for n in range(1, count + 1)
    )
    return Validation((Checked(path, Kind.RUN_CONFIG, tuple(findings)),))


# Also lone surrogates, which stand for the bytes of a name that is no UTF-8.
_texts = st.text(max_size=20) | st.text(
    "\0\x0b\x1b\x85\u2028\ufffe\udcff\r\n<&'\"%:,#[]", max_size=20
)
_paths = _texts.map(lambda text: Path(text.replace("\0", "")))
_lines = st.none() | st.integers(1, 9)
_wheres = st.builds(
    Where, file=st.none() | _paths, line=_lines, column=_lines, field=st.none() | _texts,
    use_case=st.none() | _texts, adapter=st.none() | _texts, module=st.none() | _texts,
    tensor=st.none() | _texts, node=st.none() | _texts,
)  # fmt: skip
_findings = st.builds(
    Finding,
    rule=st.sampled_from(["device/block-size", "no/such-rule"]),
    severity=st.sampled_from(Severity),
    message=_texts,
    where=_wheres,
    hint=st.none() | _texts,
)
validations = st.builds(
    Validation,
    checked=st.lists(
        st.builds(
            Checked,
            path=_paths,
            kind=st.none() | st.sampled_from(Kind),
            findings=st.lists(_findings, max_size=3).map(tuple),
        ),
        max_size=3,
    ).map(tuple),
    fail_on=st.sampled_from(Severity),
)
