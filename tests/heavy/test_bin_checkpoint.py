"""Files of the real torch.save: tensors are read as torch reads them, anything else is refused."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from lora_quant.adapters.files.checkpoint import open_checkpoint
from lora_quant.adapters.formats.torch_zip import TorchZipFile
from lora_quant.errors import AdapterError, UnsupportedAdapterError

pytestmark = [pytest.mark.heavy, pytest.mark.filterwarnings("ignore")]


@pytest.fixture
def torch() -> Any:
    return pytest.importorskip("torch")


def values(torch: Any, tensor: Any) -> np.ndarray[Any, Any]:
    """A torch tensor in its own dtype; NumPy has no bfloat16, so its bits are taken."""
    plain = tensor.detach().contiguous()
    if plain.dtype is torch.bfloat16:
        return np.asarray(plain.view(torch.int16).numpy()).view(ml_dtypes.bfloat16)
    return np.asarray(plain.numpy())


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_dtype_and_every_view_is_read_as_torch_reads_it(
    torch: Any, tmp_path: Path, protocol: int
) -> None:
    base = torch.randn(6, 8)
    state = OrderedDict(
        plain=torch.randn(3, 4),
        view=base[1:5:2, ::3],
        turned=base.t(),
        shared=base,
        parameter=torch.nn.Parameter(torch.randn(2)),
        half=torch.randn(3, 5).half(),
        brain=torch.randn(3, 5).bfloat16(),
        double=torch.randn(2, 2, 2).double(),
        scalar=torch.tensor(2.5),
        empty=torch.zeros(0, 3),
        strided=torch.randn(1, 4, 3, 3).to(memory_format=torch.channels_last),
    )
    path = tmp_path / "adapter_model.bin"
    torch.save(state, path, pickle_protocol=protocol)
    # torch reads protocol 4 and later only by running it, which is safe for what was just written
    loaded = torch.load(path, weights_only=protocol < 4)
    file = TorchZipFile(path)
    assert file.names == tuple(state)
    for name, tensor in loaded.items():
        expected, read = values(torch, tensor), file.read(name)
        assert (read.dtype, read.shape) == (expected.dtype, expected.shape)
        assert read.tobytes() == expected.tobytes()


def test_a_state_dict_of_a_module_is_read(torch: Any, tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    path = tmp_path / "model.bin"
    torch.save(module.state_dict(), path)
    file = TorchZipFile(path)
    assert set(file.names) == set(module.state_dict())
    assert file.info("1.num_batches_tracked").dtype == "I64"


def test_peft_writes_such_a_file_and_it_is_read_as_the_safetensors_are(
    torch: Any, tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft")
    model = torch.nn.Sequential(OrderedDict(fc=torch.nn.Linear(8, 6)))
    config = peft.LoraConfig(r=2, lora_alpha=6, target_modules=["fc"], init_lora_weights=False)
    adapted = peft.get_peft_model(model, config)
    adapted.save_pretrained(tmp_path / "safe")
    adapted.save_pretrained(tmp_path / "bin", safe_serialization=False)
    assert not (tmp_path / "bin" / "adapter_model.safetensors").exists()
    safe, pickled = (open_checkpoint(tmp_path / name) for name in ("safe", "bin"))
    assert set(safe.tensors.names) == set(pickled.tensors.names)
    assert pickled.config.fields["lora_alpha"] == 6
    for name in safe.tensors.names:
        assert np.array_equal(safe.tensors.read(name), pickled.tensors.read(name))


class Hack:
    """What a hostile file holds instead of a tensor."""

    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("hacked",)


@pytest.mark.parametrize("what", ["function", "module", "optimizer", "numpy", "legacy"])
def test_what_is_no_tensor_is_refused(
    torch: Any, tmp_path: Path, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    layer = torch.nn.Linear(2, 2)
    held = {
        "function": {"a": Hack()},
        "module": layer,
        "optimizer": {"optimizer": torch.optim.AdamW(layer.parameters()).state_dict()},
        "numpy": {"a": np.zeros(3)},
        "legacy": layer.state_dict(),
    }[what]
    path = tmp_path / "adapter.bin"
    torch.save(held, path, _use_new_zipfile_serialization=what != "legacy")
    with pytest.raises(UnsupportedAdapterError):
        open_checkpoint(path)
    assert "hacked" not in capsys.readouterr().out


def test_a_file_cut_at_any_hundredth_is_an_adapter_error(torch: Any, tmp_path: Path) -> None:
    path = tmp_path / "adapter.bin"
    torch.save({"a": torch.randn(64, 64)}, path)
    whole = path.read_bytes()
    for part in range(100):
        path.write_bytes(whole[: len(whole) * part // 100])
        with pytest.raises(AdapterError):
            open_checkpoint(path)
