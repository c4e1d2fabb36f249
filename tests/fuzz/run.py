"""Fuzz the toolkit at length and print what was counted; not a part of the test suite.

python tests/fuzz/run.py [--share 0.1] [--only layers kernels] [--write docs/reliability.md]
"""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import re
import sys
import time
import warnings
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import numpy as np
import torch
from tally import Tally

# Cases of a whole run, by module.
COUNTS = {"kernels": 2_000, "networks": 300, "layers": 10_000, "damage": 2_000, "wavelets": 2_000}


def main() -> int:
    """Run what is asked for; the exit code says whether all was sound."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--share", type=float, default=1.0, help="of the cases to run")
    parser.add_argument("--only", nargs="*", choices=COUNTS, default=list(COUNTS))
    parser.add_argument("--seed", type=int, default=0, help="of the first case")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes")
    parser.add_argument("--write", type=Path, help="Markdown file to write")
    options = parser.parse_args()
    done = {}
    with ProcessPoolExecutor(options.jobs) as pool:
        runs = {
            pool.submit(fuzz, name, max(1, round(options.share * COUNTS[name])), options.seed): name
            for name in options.only
        }
        for finished in as_completed(runs):
            tally, seconds = done[runs[finished]] = finished.result()
            print(f"{tally}, {seconds:.0f} s in all", flush=True)
            for kind in ("wrong", "raw", "late"):
                for text in getattr(tally, kind):
                    print(f"  {kind}: {text}", flush=True)
    tallies = [done[name] for name in options.only]
    if options.write is not None:
        before = options.write.read_text(encoding="utf-8") if options.write.exists() else ""
        options.write.write_text(page(tallies, options.seed, before), encoding="utf-8")
    return 0 if all(tally.sound for tally, _ in tallies) else 1


def fuzz(name: str, count: int, seed: int) -> tuple[Tally, float]:
    """Run one kind of case on one thread, and tell the seconds of processor time that it took."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    start = time.process_time()
    tally: Tally = importlib.import_module(name).run(count, seed)
    return tally, time.process_time() - start


def page(tallies: list[tuple[Tally, float]], seed: int, before: str) -> str:
    """The counts as a page; kinds that were not run keep their rows of the page before."""
    rows = {kind: row for row, kind in re.findall(r"^(\| \d+ ([a-z ]+) \|.*)$", before, re.M)}
    for t, seconds in tallies:
        rows[t.what] = (
            f"| {t.cases} {t.what} | {len(t.wrong)} | {len(t.raw)} | {len(t.late)} | {t.refused} | "
            f"{t.slowest:.2f} | {seconds:.0f} |"
        )
    table = "\n".join(rows.values())
    return f"""# Reliability

Written by `python tests/fuzz/run.py --write docs/reliability.md`, seed {seed}, one thread a kind:
torch {torch.__version__}, numpy {np.__version__}, Python {platform.python_version()},
{platform.system()} on {platform.machine()}, {os.cpu_count()} cores.

A *wrong* case gave other numbers than its oracle, or changed what it was given. A *raw* error is
one that does not name the argument, what came and what is allowed. *Over budget* is a case that
took more processor time than it may; all times are of the processor. *Refused* cases got a clear
error, as they should.

| cases | wrong | raw errors | over budget | refused | slowest (s) | all (s) |
| --- | --- | --- | --- | --- | --- | --- |
{table}

The oracles: layers against `nn.Conv2d` with the composed kernel, refusals and memory formats
included; kernels against the composition computed anew, bounds against what the difference does to
images; networks against themselves, twice in a row and on calls that the plan has not seen;
damaged plans against the sound one; wavelets against pytorch_wavelets and dtcwt.
"""


if __name__ == "__main__":
    sys.exit(main())
