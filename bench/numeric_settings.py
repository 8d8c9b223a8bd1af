"""Runs the tests that compare numbers under every setting that changes how numbers are rounded: ``python
bench/numeric_settings.py``.

The settings are the number of torch's threads, the instructions that the kernels of torch and oneDNN may use,
and the seeds of all random numbers. A row per setting and seed says how many tests passed. A test that fails
under one of them passes elsewhere by luck.
"""

import argparse
import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MODULES = (
    "int8/test_int8_forms",
    "int8/test_quantize",
    "compress/test_reconstruct",
    "compress/test_obs",
    "compress/test_prune",
    "compress/test_factorise",
    "compress/test_separable",
    "compress/test_distil",
    "compress/test_zoo",
    "graphs/test_every_chain",
    "int8/test_int8_chains",
    "network/test_assemble",
    "network/test_input_size",
    "int8/test_split_gemm",
    "graphs/test_winograd",
    "graphs/test_export",
    "bundle/test_evaluate",
    "network/test_state_dicts",
    "network/test_chain",
    "bundle/test_metrics",
)
THREADS = (1, 2)
INSTRUCTIONS = {
    "as it is": {},
    "torch default": {"ATEN_CPU_CAPABILITY": "default"},
    "torch avx2": {"ATEN_CPU_CAPABILITY": "avx2"},
    "torch avx512": {"ATEN_CPU_CAPABILITY": "avx512"},
    "oneDNN avx2": {"ONEDNN_MAX_CPU_ISA": "AVX2"},
    "oneDNN avx512": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"},
}


def run(threads: int, instructions: dict[str, str], seed: int, modules: list[str]) -> tuple[str, list[str]]:
    """pytest's closing line under a setting, and the names of the tests that failed."""
    paths = os.pathsep.join(filter(None, ("tests", os.environ.get("PYTHONPATH"))))
    environment = (
        os.environ
        | instructions
        | {"VGG_EXPORT_SEED_SHIFT": str(seed), "PYTHONPATH": paths, "OMP_NUM_THREADS": str(threads)}
    )
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "shifted_seeds",
        "-n",
        "0",
        *(f"tests/{name}.py" for name in modules),
    ]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    last = (
        (done.stdout.strip() or f"pytest ended with {done.returncode} and printed nothing")
        .splitlines()[-1]
        .strip("= ")
    )
    return last, re.findall(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)


def main() -> int:
    """Print the table; returns 1 when a test failed anywhere, else 0."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, nargs="*", default=THREADS)
    parser.add_argument("--instructions", nargs="*", choices=INSTRUCTIONS, default=list(INSTRUCTIONS))
    parser.add_argument("--modules", nargs="*", default=list(MODULES))
    args = parser.parse_args()
    print("| torch threads | instructions | seed | pytest |\n|---|---|---|---|", flush=True)
    failed = False
    for threads, name, seed in itertools.product(args.threads, args.instructions, range(args.seeds)):
        line, failures = run(threads, INSTRUCTIONS[name], seed, args.modules)
        print(
            f"| {threads} | {name} | {seed} | {line}{': ' if failures else ''}{', '.join(failures)} |",
            flush=True,
        )
        failed |= bool(failures) or " passed" not in line
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
