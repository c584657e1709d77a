"""The HTP of a Qualcomm device, or its emulation on x86-64, through ONNX Runtime's QNN provider.

Every node of a graph runs on the HTP, or opening it fails: nothing moves to the CPU. The provider
keeps state within a process, so that one process has one architecture; graphs for several are
compiled and run in processes of their own (lora_quant.engines.htp_processes).
"""

from __future__ import annotations

import importlib.util
import threading
from pathlib import Path
from typing import Any

from lora_quant.engines.onnxruntime import LoadedGraph, load_onnxruntime, open_graph
from lora_quant.errors import ConfigError, VerificationError, Where, did_you_mean

DEFAULT_ARCH = "73"
ARCHITECTURES = ("68", "69", "73", "75", "79", "81")
_NARROW_PRODUCTS = frozenset({"68", "69"})

_HINT = "pip install 'lora-quant[qnn]' (Python 3.11 or later)"
_lock = threading.Lock()
_state: dict[str, Any] = {}


def has_wide_products(htp_arch: str) -> bool:
    """Whether an architecture multiplies activations of 16 bits by operands of 16 bits."""
    return htp_arch not in _NARROW_PRODUCTS


def check_arch(htp_arch: str) -> None:
    """Raises ConfigError for what is no architecture of the HTP."""
    if htp_arch not in ARCHITECTURES:
        raise ConfigError(
            f"the HTP has no architecture {htp_arch!r}",
            where=Where(field="htp_arch"),
            hint=did_you_mean(htp_arch, ARCHITECTURES, most=len(ARCHITECTURES)),
        )


def chosen_arch(asked: str | None, built: str | None) -> str:
    """The architecture to run a graph on: what is asked for, else what it was built for.

    Raises ConfigError for one that is unknown, or that has no operators for the graph.
    """
    found = asked or built or DEFAULT_ARCH
    check_arch(found)
    if built is not None and has_wide_products(built) and not has_wide_products(found):
        raise ConfigError(
            f"the graph was built for the HTP architecture {built}, got {found}, which has no "
            "products of 16 by 16 bits",
            where=Where(field="htp_arch"),
            hint=f"build it with --htp-arch {found}",
        )
    return found


def unavailable_reason() -> str | None:
    """Why no graph can run on the HTP here; None if the provider is there."""
    for module in ("onnxruntime", "onnxruntime_qnn"):
        if importlib.util.find_spec(module) is None:
            return f"{module.replace('_', '-')} is not installed"
    try:
        _device()
    except VerificationError as error:
        return error.message
    return None


def open_on_htp(
    model: Path, *, htp_arch: str = DEFAULT_ARCH, context: Path | None = None
) -> LoadedGraph:
    """Open a graph on the HTP; what has no context yet is compiled now.

    `context` is where to write the compiled graph, as an ONNX file with a binary beside it. Raises
    VerificationError if the provider is missing or does not take every node, or if this process has
    used another architecture. The compiler can run away or abort: see htp_processes.
    """
    device, library = _device()
    with _lock:
        used = _state.setdefault("arch", htp_arch)
    if used != htp_arch:
        raise VerificationError(
            f"this process runs graphs for the HTP architecture {used}, got {htp_arch}: the "
            "provider keeps it until the process ends",
            hint="run the other architecture in a process of its own",
        )

    def prepare(options: Any) -> None:
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        if context is not None:
            options.add_session_config_entry("ep.context_enable", "1")
            options.add_session_config_entry("ep.context_embed_mode", "0")
            options.add_session_config_entry("ep.context_file_path", str(context.absolute()))
        options.add_provider_for_devices(
            [device], {"backend_path": library.get_qnn_htp_path(), "htp_arch": htp_arch}
        )

    return open_graph(model, prepare=prepare)


def _device() -> tuple[Any, Any]:
    """The provider's device and its package; the provider is registered once in a process."""
    onnxruntime = load_onnxruntime()
    try:
        import onnxruntime_qnn
    except ImportError as error:
        raise VerificationError(
            f"running a graph on the HTP needs onnxruntime-qnn: {error}", hint=_HINT
        ) from error
    name = onnxruntime_qnn.get_ep_name()
    with _lock:
        if "device" not in _state:
            try:
                onnxruntime.register_execution_provider_library(
                    name, onnxruntime_qnn.get_library_path()
                )
            except Exception as error:  # the library has no common base for its errors
                raise VerificationError(
                    f"the QNN provider cannot be loaded: {str(error).strip()}",
                    hint="it needs the system library libatomic (libatomic1 in Debian)",
                ) from error
            devices = [d for d in onnxruntime.get_ep_devices() if d.ep_name == name]
            if not devices:
                raise VerificationError(
                    "the QNN provider finds no device that it can run on",
                    hint="it runs on Snapdragon devices, and emulated on x86-64",
                )
            npu = onnxruntime.OrtHardwareDeviceType.NPU  # the emulation calls itself a CPU
            _state["device"] = next((d for d in devices if d.device.type == npu), devices[0])
        return _state["device"], onnxruntime_qnn
