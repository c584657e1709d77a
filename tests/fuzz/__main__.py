"""Give every reader damaged files:  python -m tests.fuzz --seconds 60

What went wrong is kept in a folder (`fuzz-defects` unless told otherwise): the input, and what
happened. The same seed and number give the same input:  --target yaml --seed 1 --only 4711
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.fuzz.processes import in_process
from tests.fuzz.runner import Tally, run_inputs
from tests.fuzz.target import Target
from tests.fuzz.targets import TARGETS


def main(arguments: list[str]) -> int:
    options = _parser().parse_args(arguments)
    chosen = [TARGETS[name] for name in options.target or TARGETS]
    if options.only is not None:
        tallies = [_only(target, options.seed, options.only) for target in chosen]
    else:
        with ThreadPoolExecutor(options.jobs) as pool:
            tallies = list(pool.map(lambda t: _run(t, chosen, options), chosen))
    keep = Path(options.keep)
    for tally in tallies:
        for defect in tally.defects:
            keep.mkdir(parents=True, exist_ok=True)
            name = f"{defect.target}-{defect.seed}-{defect.index}"
            (keep / f"{name}.input").write_bytes(defect.data)
            (keep / f"{name}.txt").write_text(f"{defect.kind}\n\n{defect.detail}", encoding="utf-8")
    wrong = sum(sum(tally.kinds.values()) for tally in tallies)
    inputs = sum(tally.inputs for tally in tallies)
    print(f"{inputs} inputs, {wrong} defects" + (f"; see {keep}" if wrong else ""))
    return 1 if wrong else 0


def _run(target: Target, chosen: list[Target], options: argparse.Namespace) -> Tally:
    share = target.weight / sum(t.weight for t in chosen)
    inputs = None if options.inputs is None else max(1, round(options.inputs * share))
    seconds = None if options.seconds is None else options.seconds * options.jobs / len(chosen)
    tally = in_process(target, seed=options.seed, inputs=inputs, seconds=seconds)
    _print(tally)
    return tally


def _only(target: Target, seed: int, index: int) -> Tally:
    with tempfile.TemporaryDirectory(prefix="lora-quant-fuzz-") as folder:
        tally = run_inputs(target, Path(folder), iter([index]), seed=seed)
    _print(tally)
    for defect in tally.defects:
        print(defect.detail)
    return tally


def _print(tally: Tally) -> None:
    rate = tally.inputs / max(tally.seconds, 1e-9)
    print(
        f"{time.strftime('%H:%M:%S')} {tally.target:32} {tally.inputs:8} inputs {rate:8.0f}/s "
        f"slowest {tally.slowest:6.3f} s  {sum(tally.kinds.values())} defects",
        flush=True,
    )
    for kind, count in tally.kinds.most_common():
        numbers = [d.index for d in tally.defects if d.kind == kind]
        print(f"    {count} times: {kind}, inputs {numbers}", flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--target", action="append", choices=sorted(TARGETS), metavar="NAME")
    bound = parser.add_mutually_exclusive_group(required=True)
    bound.add_argument("--inputs", type=int, help="in sum, shared by the targets' weights")
    bound.add_argument("--seconds", type=float, help="in sum, shared evenly")
    bound.add_argument("--only", type=int, metavar="NUMBER", help="one input, in this process")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--keep", default="fuzz-defects", metavar="FOLDER")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
