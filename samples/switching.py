"""An application that switches use cases: one session, a use case per request, strengths at will.

    lora-quant build samples/tiny_llama/lora_config.yaml --target onnxruntime -o out/tiny_llama
    python samples/switching.py out/tiny_llama

Nothing is left of one run for the next: threads may ask for different use cases at a time.
"""

import sys

import numpy as np

from lora_quant import AdapterRunConfig, LoraQuantError, UseCaseRunConfig
from lora_quant.runtime import BASE, Session

PROMPT = {"input_ids": np.arange(16)[None]}


def main(pack: str) -> None:
    with Session(pack) as session:
        session.preload()  # otherwise the first run of each use case reads its file
        plain = session.run(PROMPT, BASE)["logits"]
        for use_case in session.use_cases:  # whole use cases, as they were configured
            logits = session.run(PROMPT, use_case)["logits"]
            print(f"{use_case:6} moves the logits by up to {np.abs(logits - plain).max():.3f}")
        for strength in (0.0, 0.5, 1.0):  # one adapter of a mix at another strength
            tone = AdapterRunConfig(name="tone", alpha=strength)
            session.activate(UseCaseRunConfig(name="both", adapters=[tone]))
            logits = session.run(PROMPT)["logits"]
            print(f"both, tone {strength}: by up to {np.abs(logits - plain).max():.3f}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python samples/switching.py OUT")
    try:
        main(sys.argv[1])
    except LoraQuantError as error:
        sys.exit(str(error))
