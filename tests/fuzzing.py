"""A fuzzer for every door that a stranger's file comes through.

    python tests/fuzzing.py                             10,000 damaged files at each door
    python tests/fuzzing.py --door config --count 500 --seed 7
    python tests/fuzzing.py --door config --case 123    one of them, in this process, with its traceback

Files are opened in processes with limits on time and memory, many in each. A case is found again by door, seed and number.
What may come of one: it opens, and where there is another reader of the same file both agree; or one of the library's own
errors, in bounded time, with nothing on standard output. Anything else is a finding; the exit status is how many there are.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

COUNT = 10_000  # damaged files at each door
SECONDS = 10  # of CPU that one case may take; the kernel ends the process that takes more
FIRST = 60  # more for the first at each door, which imports, trains and compiles
MEMORY = 4 << 30  # bytes of data that a process may have
TOGETHER = 2000  # cases in one process


def play(door: str, seed: int, case: int) -> str:
    """One damaged file. Returns what came of it; raises what should not have."""
    from fuzzing_doors import DOORS

    from nanollm_jax.errors import NanoLLMError

    rng = random.Random(f"{door} {seed} {case}")
    with tempfile.TemporaryDirectory() as folder:
        try:
            return DOORS[door](rng, Path(folder))
        except NanoLLMError as error:
            assert len(str(error)) < 3000, "a message that nobody can read"
            return "refused"


def child(seed: int, cases: list[tuple[str, int]], report: Path) -> None:
    """Many cases, each with a line in the report before and after it."""
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    begun = set()
    with report.open("a", buffering=1) as lines:
        for door, case in cases:
            used = resource.getrusage(resource.RUSAGE_SELF)
            limit = int(used.ru_utime + used.ru_stime) + SECONDS + (0 if door in begun else FIRST)
            resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.getrlimit(resource.RLIMIT_CPU)[1]))
            begun.add(door)
            lines.write(json.dumps([door, case]) + "\n")
            try:
                result, said = play(door, seed, case), ""
            except BaseException as error:
                result, said = "escaped", f"{type(error).__name__}: {str(error)[:300]} at {where(error)}"
            lines.write(json.dumps([door, case, result, said]) + "\n")


def where(error: BaseException) -> str:
    """The last two places of a traceback."""
    frames = traceback.extract_tb(error.__traceback__)[-2:]
    return " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames))


def fuzz(doors: list[str], seed: int, count: int) -> tuple[dict[str, dict[str, int]], list[str]]:
    """How often each result came at each door, and what was found."""
    results = {door: collections.Counter[str]() for door in doors}
    found: list[str] = []
    left = [(door, case) for door in doors for case in range(count)]
    with tempfile.TemporaryDirectory() as folder:
        cases, report, output = (Path(folder, name) for name in ("cases", "report", "output"))
        while left:
            cases.write_text(json.dumps(left[:TOGETHER]))
            report.write_text("")
            command = [sys.executable, __file__, "--seed", str(seed), "--cases", str(cases), "--report", str(report)]
            with output.open("wb") as out:
                quiet = os.environ | {"RUST_BACKTRACE": "0", "JAX_PLATFORMS": "cpu"}
                code = subprocess.run(command, stdout=out, stderr=subprocess.DEVNULL, env=quiet).returncode
            rows = [json.loads(line) for line in report.read_text().splitlines()]
            if not rows:
                raise RuntimeError(f"a process ended with {code} before its first case")
            done = [row for row in rows if len(row) > 2]
            for door, case, result, said in done:
                results[door][result] += 1
                if result == "escaped":
                    found.append(f"--door {door} --seed {seed} --case {case}: {said}")
            if output.read_bytes():
                found.append(f"{doors}: wrote to standard output: {output.read_bytes()[:200]!r}")
            left = left[len(done) :]
            if code:
                door, case = left.pop(0)
                results[door]["died"] += 1
                found.append(f"--door {door} --seed {seed} --case {case}: ended with {code} (-24: {SECONDS} s of CPU)")
    return {door: dict(counter) for door, counter in results.items()}, found


def main() -> int:
    """Returns how many findings there are."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--door", action="append", help="which; all of them where none is named")
    options.add_argument("--count", type=int, default=COUNT)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--case", type=int)
    options.add_argument("--cases", type=Path, help=argparse.SUPPRESS)  # for a process that this one starts
    options.add_argument("--report", type=Path, help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.cases:
        child(given.seed, json.loads(given.cases.read_text()), given.report)
        return 0
    from fuzzing_doors import DOORS

    doors = given.door or list(DOORS)
    if given.case is not None:
        print(play(doors[0], given.seed, given.case))
        return 0
    findings = 0
    for door in doors:
        began = time.monotonic()
        results, found = fuzz([door], given.seed, given.count)
        listed = ", ".join(f"{count} {result}" for result, count in sorted(results[door].items()))
        print(f"{door}: {listed}; {len(found)} findings, {time.monotonic() - began:.0f} s", flush=True)
        for line in found[:20]:
            print("   ", line, flush=True)
        findings += len(found)
    return min(findings, 99)


if __name__ == "__main__":
    sys.exit(main())
