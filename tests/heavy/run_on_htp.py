"""Run one QDQ graph on the emulated HTP and on the CPU; a program of its own.

    python run_on_htp.py MODEL.onnx FEEDS.npz RESULT.npz

Every node must run on the HTP: there is no fallback to the CPU. RESULT holds `htp` and `cpu`. The
engine keeps state within a process and can run away in its compiler, so that each graph gets a
process, with a limit on memory; the caller limits the time.
"""

from __future__ import annotations

import resource
import sys

import numpy as np
import onnxruntime as ort
import onnxruntime_qnn as qnn  # type: ignore[import-not-found, unused-ignore]

HTP_ARCH = "73"
MOST_MEMORY = 12 * 2**30


def main(model: str, feeds: str, result: str) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
    ort.set_default_logger_severity(3)
    ort.register_execution_provider_library(qnn.get_ep_name(), qnn.get_library_path())
    device = next(d for d in ort.get_ep_devices() if d.ep_name == qnn.get_ep_name())
    options = ort.SessionOptions()
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    options.add_provider_for_devices(
        [device], {"backend_path": qnn.get_qnn_htp_path(), "htp_arch": HTP_ARCH}
    )
    session = ort.InferenceSession(model, options)
    session.disable_fallback()  # otherwise an error would make Python start over on the CPU
    inputs = dict(np.load(feeds))
    reference = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    np.savez(result, htp=session.run(None, inputs)[0], cpu=reference.run(None, inputs)[0])


if __name__ == "__main__":
    main(*sys.argv[1:])
