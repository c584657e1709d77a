"""Use cases as torch exports them with PEFT's layers inside: the pack of the PEFT folders.

Both exporters, one adapter and two that meet, float32 and float16. What an exporter folds or
renames on the way must not matter.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from lora_quant import build
from lora_quant.config.lora_config import LoraConfig
from tests.passes.exported.export_cases import files_of

pytestmark = [pytest.mark.heavy, pytest.mark.filterwarnings("ignore")]

ADAPTERS: dict[str, dict[str, Any]] = {
    "tone": {"r": 2, "lora_alpha": 6, "target_modules": ["first", "conv"]},
    "legal": {"r": 3, "lora_alpha": 5, "target_modules": ["first", "second"]},
}
USE_CASES = {"tone": ["tone"], "legal": ["legal"], "both": ["tone", "legal"]}


@pytest.fixture(autouse=True)
def installed() -> None:
    pytest.importorskip("torch")
    pytest.importorskip("peft")


def net(half: bool) -> Any:
    """Two linears, of which the one has a bias, and a convolution on their outputs as an image."""
    import torch

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = torch.nn.Linear(12, 16)
            self.second = torch.nn.Linear(16, 16, bias=False)
            self.conv = torch.nn.Conv2d(4, 6, 3, padding=1)

        def forward(self, x: Any) -> Any:
            y = self.second(torch.nn.functional.relu(self.first(x)))
            return self.conv(y.reshape(-1, 4, 4, 5))

    torch.manual_seed(0)
    made = Net().eval()
    return made.half() if half else made


def write_adapters(folder: Path, half: bool) -> None:
    import peft
    import torch

    for seed, (name, fields) in enumerate(ADAPTERS.items()):
        model = peft.get_peft_model(net(half), peft.LoraConfig(**fields))
        torch.manual_seed(seed)
        with torch.no_grad():
            for key, weight in model.named_parameters():
                if "lora_" in key:
                    weight.copy_(0.2 * torch.randn(weight.shape))
        model.save_pretrained(str(folder / name))


def export(model: Any, path: Path, dynamo: bool, half: bool) -> None:
    import torch

    x = torch.randn(1, 5, 12, generator=torch.Generator().manual_seed(2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model.eval(),
            (x.half() if half else x,),
            str(path),
            dynamo=dynamo,
            input_names=["x"],
            output_names=["y"],
            **({"external_data": False} if dynamo else {"opset_version": 17}),
        )


def write_graphs(folder: Path, dynamo: bool, half: bool) -> None:
    import peft

    export(net(half), folder / "base.onnx", dynamo, half)
    for use_case, names in USE_CASES.items():
        model = peft.PeftModel.from_pretrained(
            net(half), str(folder / names[0]), adapter_name=names[0], autocast_adapter_dtype=False
        )
        for name in names[1:]:
            model.load_adapter(str(folder / name), adapter_name=name, autocast_adapter_dtype=False)
        model.base_model.set_adapter(names)
        model = model.base_model.model
        export(model.half() if half else model, folder / f"{use_case}.onnx", dynamo, half)


def config(folder: Path, *, exported: bool) -> LoraConfig:
    def source(name: str) -> Any:
        fields = ADAPTERS[name]
        if not exported:
            return str(folder / name)
        return {
            "name": name,
            "rank": fields["r"],
            "alpha": fields["lora_alpha"],
            "target_modules": fields["target_modules"],
        }

    return LoraConfig.model_validate(
        {
            "adapter": [{"name": name, "lora_config": source(name)} for name in ADAPTERS],
            "use-case": [
                {
                    "name": name,
                    "adapter_names": names,
                    "adapter_alphas": [1.0] * len(names),
                    "model_name": str(folder / f"{name if exported else 'base'}.onnx"),
                }
                for name, names in {"base": [], **USE_CASES}.items()
            ],
        }
    )


@pytest.mark.parametrize("half", [False, True], ids=["float32", "float16"])
@pytest.mark.parametrize("dynamo", [False, True], ids=["torchscript", "dynamo"])
def test_both_routes_give_the_same_pack(dynamo: bool, half: bool, tmp_path: Path) -> None:
    write_adapters(tmp_path, half)
    write_graphs(tmp_path, dynamo, half)
    one = build(config(tmp_path, exported=False), tmp_path / "from_peft").output
    other = build(config(tmp_path, exported=True), tmp_path / "from_graphs")
    assert files_of(other.output) == files_of(one)
    assert [f.rule for f in other.findings] == []
    weights = load_file(one / "qairt" / "both" / "lora_weights.safetensors")
    assert all(values.any() for values in weights.values())
