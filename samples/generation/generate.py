"""Answer requests with ONNX Runtime GenAI, each with the use case that it names.

    lora-quant build samples/generation/lora_config.yaml --target onnxruntime -o out/generation
    python samples/generation/generate.py out/generation
    python samples/generation/generate.py out/generation --request "legal: Read the contract"
    python samples/generation/generate.py out/generation --check samples/generation/expected.json

Needs onnxruntime-genai, nothing else. `OUT/onnxruntime` is a GenAI model folder: the model is
loaded once, every `.onnx_adapter` is loaded once, and a request picks one of them by name. A use
case is whole in its file, also a mix of adapters: GenAI applies one adapter at a time, and of two
it would silently take the last. A request without a use case (": text") runs the base: no adapter
is active, and the graph's defaults compute the base model.

The files are not hashed here; `lora-quant validate out/generation` does that.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TARGET = "onnxruntime"
NEEDED = ("genai_config.json", "tokenizer.json")


class SampleError(Exception):
    """Something that the person at the keyboard can put right."""


@dataclass(frozen=True)
class Request:
    """A text, and the use case that answers it; None is the base model."""

    use_case: str | None
    text: str

    @classmethod
    def parse(cls, spelling: str) -> "Request":
        """`use case: text`; `: text` is for the base model."""
        name, colon, text = spelling.partition(":")
        if not colon or not text.strip():
            raise SampleError(f"{spelling!r} is no request: write 'use case: text' or ': text'")
        return cls(name.strip() or None, text.strip())


@dataclass(frozen=True)
class Answer:
    """Generated token numbers without the prompt, their text, and the seconds that it took."""

    tokens: list[int]
    text: str
    seconds: float


DEFAULT_REQUESTS = (
    Request(None, "What happens when"),
    Request("tone", "What happens when"),
    Request("legal", "What happens when"),
    Request("style", "What happens when"),
    Request("mix", "What happens when"),
    Request(None, "What happens when"),
)


class Assistant:
    """One loaded model and the adapters of all use cases of a pack."""

    def __init__(self, pack: Path) -> None:
        genai = _genai()
        self._genai: Any = genai
        paths = adapter_files(pack)
        folder = pack / TARGET
        if missing := [name for name in NEEDED if not (folder / name).is_file()]:
            raise SampleError(
                f"{folder} has no {' and no '.join(missing)}: build it from a base graph that lies "
                "in a GenAI model folder"
            )
        try:
            self._model = genai.Model(str(folder))
            self._tokenizer = genai.Tokenizer(self._model)
            self._adapters = genai.Adapters(self._model)
            for name, path in paths.items():
                self._adapters.load(str(path), name)
        except Exception as error:  # GenAI raises classes of its own, all of them Exceptions
            raise SampleError(f"GenAI cannot load {pack}: {error}") from error
        self.use_cases = tuple(paths)

    def answer(self, request: Request, most: int) -> Answer:
        """The greedy continuation of the request's text, of at most `most` tokens."""
        if request.use_case is not None and request.use_case not in self.use_cases:
            raise SampleError(
                f"there is no use case {request.use_case!r}; the pack has "
                f"{', '.join(self.use_cases)}"
            )
        prompt = [int(token) for token in self._tokenizer.encode(request.text)]
        options = self._genai.GeneratorParams(self._model)
        options.set_search_options(do_sample=False, max_length=len(prompt) + most)
        start = time.perf_counter()
        generator = self._genai.Generator(self._model, options)
        if request.use_case is not None:
            generator.set_active_adapter(self._adapters, request.use_case)
        generator.append_tokens(prompt)
        while not generator.is_done():
            generator.generate_next_token()
        seconds = time.perf_counter() - start
        tokens = [int(token) for token in generator.get_sequence(0)[len(prompt) :]]
        return Answer(tokens, self._tokenizer.decode(tokens), seconds)


def adapter_files(pack: Path) -> dict[str, Path]:
    """Use case -> its adapter file, in the order of the pack's manifest."""
    try:
        manifest = json.loads((pack / "pack.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SampleError(f"{pack} is not a pack of lora-quant: {error}") from error
    for target in manifest["targets"]:
        if target["name"] == TARGET:
            files = [f for f in target["files"] if f["role"] == "adapter"]
            return {f["use_case"]: pack / f["path"] for f in files}
    raise SampleError(f"{pack} was not built with --target {TARGET}")


def check(assistant: Assistant, expected: Path, graph: str) -> Iterator[str]:
    """Differences from PEFT's tokens; the use case changes from request to request."""
    requests = json.loads(expected.read_text(encoding="utf-8"))["requests"]
    names = list(requests[0][graph])
    for name in [*names, *reversed(names)]:
        for request in requests:
            tokens = request[graph][name]
            for use_case in (None, name) if name == "base" else (name,):
                got = assistant.answer(Request(use_case, request["text"]), len(tokens)).tokens
                if got != tokens:
                    yield f"{use_case or 'no adapter'}, {request['text']!r}: {got}, not {tokens}"


def _genai() -> Any:
    try:
        import onnxruntime_genai
    except ImportError as error:
        raise SampleError(
            f"onnxruntime-genai cannot be imported ({error}): pip install onnxruntime-genai"
        ) from error
    return onnxruntime_genai


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("pack", type=Path, metavar="OUT", help="what lora-quant build wrote")
    parser.add_argument(
        "--request", action="append", metavar="'USE CASE: TEXT'", help="may be given several times"
    )
    parser.add_argument("--tokens", type=int, default=16, help="most to generate; default 16")
    parser.add_argument("--check", type=Path, metavar="JSON", help="compare with PEFT's tokens")
    parser.add_argument(
        "--graph", default="fp32", choices=("fp32", "int4"), help="which tokens; default fp32"
    )
    arguments = parser.parse_args()
    try:
        requests = [Request.parse(text) for text in arguments.request or ()] or DEFAULT_REQUESTS
        assistant = Assistant(arguments.pack)
        if arguments.check is not None:
            differences = list(check(assistant, arguments.check, arguments.graph))
            print("\n".join(differences) or "all tokens are PEFT's")
            return int(bool(differences))
        for request in requests:
            answer = assistant.answer(request, arguments.tokens)
            print(f"[{request.use_case or 'no adapter'}] {request.text!r} -> {answer.text!r}")
            print(f"    {answer.tokens}, {answer.seconds * 1e3:.1f} ms")
    except SampleError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
