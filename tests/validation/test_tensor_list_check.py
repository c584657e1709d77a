"""Lists of tensors by themselves: one name a line."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_quant.findings import Finding
from lora_quant.validation.files import tensor_list_check
from lora_quant.validation.files.tensor_list_check import check_tensor_list


def check(folder: Path, content: bytes) -> tuple[Finding, ...]:
    path = folder / "quant_updatable_tensors.txt"
    path.write_bytes(content)
    return check_tensor_list(path)


@pytest.mark.parametrize("content", [b"", b"a\nb\n", b"a\nb", "a/Ä b\nb\u00a0c\nπ\n".encode()])
def test_a_sorted_list_of_names_has_no_findings(content: bytes, tmp_path: Path) -> None:
    assert check(tmp_path, content) == ()


@pytest.mark.parametrize(
    ("content", "rule", "line", "message"),
    [
        (b"\xef\xbb\xbfa\n", "list/byte-order-mark", 1, "begins with a byte order mark"),
        (b"a\nb\xff\n", "list/not-utf-8", 2, "byte 2 of the line is 0xff"),
        (b"a\nb\x00c\n", "list/control-character", 2, "U+0000"),
        ("a\nb\u200bc\n".encode(), "list/control-character", 2, "U+200B"),
        ("a\nb\u2028c\n".encode(), "list/control-character", 2, "U+2028"),
        (b"a\nb \nc\n", "list/white-space", 2, "'b' has white space"),
        (b"a\r\nb\r\n", "list/line-ends", 1, "(and 1 more lines)"),
        (b"a\n\nb\n", "list/empty-line", 2, "empty"),
        (b"a\nb\nb\n", "list/twice", 3, "'b' is in line 2 already"),
        (b"b\na\n", "list/not-sorted", 2, "'a' follows 'b'"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(
    content: bytes, rule: str, line: int, message: str, tmp_path: Path
) -> None:
    (finding,) = check(tmp_path, content)
    assert (finding.rule, finding.where.line) == (rule, line)
    assert message in finding.message


def test_findings_are_in_the_order_of_lines_one_for_each_rule(tmp_path: Path) -> None:
    found = check(tmp_path, b"b\na\na\n\nc\nc\n")
    assert [(f.rule, f.where.line) for f in found] == [
        ("list/not-sorted", 2),
        ("list/twice", 3),
        ("list/empty-line", 4),
    ]
    assert found[1].message == "'a' is in line 2 already (and 1 more lines)"


def test_a_list_that_is_not_there_is_a_finding(tmp_path: Path) -> None:
    (finding,) = check_tensor_list(tmp_path / "list.txt")
    assert finding.rule == "document/missing"
    (finding,) = check_tensor_list(tmp_path)
    assert finding.rule == "document/missing"


def test_lists_beyond_the_limits_are_not_looked_into(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensor_list_check, "MAX_LINES", 3)
    assert check(tmp_path, b"a\nb\nc\n") == ()
    (finding,) = check(tmp_path, b"a\nb\nc\nd\n")
    assert (finding.rule, finding.where.line) == ("list/too-large", None)
    monkeypatch.setattr(tensor_list_check, "MAX_BYTES", 3)
    (finding,) = check(tmp_path, b"a\nb\n")
    assert finding.rule == "list/too-large"


@given(
    content=st.binary(max_size=60) | st.text("ab \r\n\t\u200b\ufeff", max_size=20).map(str.encode)
)
def test_no_bytes_raise(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.getbasetemp()
    for finding in check(folder, content):
        assert finding.rule.startswith("list/")


@given(names=st.lists(st.text("abc./_", min_size=1, max_size=6), unique=True))
def test_a_list_has_findings_exactly_if_it_is_not_sorted(
    names: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    found = check(tmp_path_factory.getbasetemp(), "".join(f"{n}\n" for n in names).encode())
    assert [f.rule for f in found] == ["list/not-sorted"] * (names != sorted(names))


def test_the_list_of_weights_stands_in_the_order_of_the_graph(tmp_path: Path) -> None:
    path = tmp_path / "lora_tensor_names.txt"
    path.write_bytes(b"b\na\n")
    assert check_tensor_list(path) == ()
