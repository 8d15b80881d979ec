"""`make evidence`: every benchmark whose figures the documentation reports, with raw results as Parquet and plots.

    python tests/benchmarks/evidence.py                    # what is missing; goes on where it was stopped
    python tests/benchmarks/evidence.py poison loop        # these alone, anew
    python tests/benchmarks/evidence.py --plots            # the tables and plots again from the results that are there

Each benchmark runs in a process of its own and leaves `build/evidence/NAME.parquet`: a row for each figure, with the
seconds that the benchmark took, the commit, the time and the machine. The years of `loop` are in `loop_years.parquet`,
one row for each, and those that were played before are not played again. The hours of the last run are printed first.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "build" / "evidence"
LONG = ("drift", "loop", "minute", "months", "capacity", "rates.money", "rates.dark", "words")
"""Benchmarks that `make bench` leaves out."""
LIBRARIES = ("torch", "transformers", "peft", "duckdb", "numpy", "kafka-python", "retuned")
CODE = "import json, sys; sys.path[:0] = [{0!r}, {1!r}]; import {2} as m; json.dump(m.main(), open({3!r}, 'w'))"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="benchmarks to run anew; default: those without a result")
    parser.add_argument("--plots", action="store_true", help="run nothing; draw what is there")
    arguments = parser.parse_args()
    failed = []
    if not arguments.plots:
        names = arguments.names or [name for name in known() if not result(name).exists()]
        print(plan(names), flush=True)
        failed = [name for name in names if not run(name)]
    years()
    draw()
    if failed:
        print(f"failed: {', '.join(failed)}; make evidence runs them again", file=sys.stderr)
    return int(bool(failed))


def known() -> list[str]:
    """The names of all benchmarks."""
    sys.path[:0] = [str(ROOT / "tests" / "benchmarks"), str(ROOT / "tests")]
    from run import BENCHMARKS

    return [*BENCHMARKS, *LONG]


def result(name: str) -> Path:
    return FOLDER / f"{name}.parquet"


def plan(names: list[str]) -> str:
    """What is run, and how long that took the last time."""
    seconds = {name: pq.read_table(result(name))["seconds"][0].as_py() for name in known() if result(name).exists()}
    timed = sum(seconds[name] for name in names if name in seconds)
    new = [name for name in names if name not in seconds]
    lines = [f"{len(names)} of {len(known())} benchmarks, on {machine()['processor']}, {machine()['cores']} cores"]
    lines += [f"{timed / 3600:.1f} hours the last time"] * bool(timed)
    lines += [f"never timed here: {', '.join(new)}; most take minutes, drift an hour on two quiet cores"] * bool(new)
    return "\n".join(lines)


def run(name: str) -> bool:
    """Runs a benchmark and stores its figures. Returns whether it succeeded."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    print(f"{name} …", flush=True)
    began, started = time.monotonic(), datetime.now(UTC)
    with tempfile.TemporaryDirectory() as folder, (FOLDER / f"{name}.log").open("wb") as log:
        found = Path(folder) / "figures.json"
        benchmarks = ROOT / "tests" / "benchmarks"
        code = CODE.format(str(benchmarks), str(benchmarks.parent), name.replace(".", "_"), str(found))
        done = subprocess.run([sys.executable, "-c", code], stdout=log, stderr=log, cwd=ROOT, check=False)
        if done.returncode or not found.exists():
            print(f"    failed; see {log.name}", flush=True)
            return False
        figures: dict[str, float] = json.loads(found.read_text(encoding="utf-8"))
    seconds = time.monotonic() - began
    common = {"benchmark": name, "seconds": seconds, "started": started, "commit": commit(), **machine()}
    rows = [{"figure": figure, "value": float(value), **common} for figure, value in figures.items()]
    # A benchmark that was skipped for want of data has no figures, and is done, too.
    pq.write_table(pa.Table.from_pylist(rows or [{"figure": None, "value": None, **common}]), result(name))
    print(f"    {len(figures)} figures in {seconds:.0f} s", flush=True)
    return True


def machine() -> dict[str, Any]:
    """The machine and the versions that figures depend on."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text(encoding="utf-8").splitlines() if information.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": models[0] if models else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": json.dumps({name: importlib.metadata.version(name) for name in LIBRARIES}),
        "load": os.getloadavg()[0],
    }


def commit() -> str:
    """The commit, with a mark if files were changed since."""
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"


def years() -> None:
    """The years of the simulated year as Parquet: one row for each scenario, seed and system."""
    from loop import score

    found = score.stored()
    if found:
        FOLDER.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(found), FOLDER / "loop_years.parquet")


def draw() -> None:
    """The plots that docs/evidence.md shows."""
    from evidence_plots import PLOTS

    if (FOLDER / "loop_years.parquet").exists():
        results = pq.read_table(FOLDER / "loop_years.parquet").to_pylist()
        for name, plot in PLOTS.items():
            (ROOT / "docs" / "images" / name).write_text(plot(results), encoding="utf-8")
            print(f"docs/images/{name}", flush=True)


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT / "tests" / "benchmarks"), str(ROOT / "tests")]
    sys.exit(main())
