"""Graphs come in by one door, which bounds their size, parts and time, and refuses pipes."""

from __future__ import annotations

from tests.sample import ROOT


def test_no_graph_is_loaded_past_the_checked_reader() -> None:
    loading = [
        path.name
        for path in sorted((ROOT / "lora_quant").rglob("*.py"))
        if "onnx.load(" in path.read_text(encoding="utf-8")
    ]
    assert loading == [], "use lora_quant.graph.files.model_file.load_model"
