"""`make mutants`: small faults put into the modules that decide, and how many of them the fast tests see.

    mutants.py [MODULE …]

Each mutant is one change: another operator, a number that is one higher, an argument that is left out; of SQL, a
condition that is left out. Texts are not changed: how a reason reads is nobody's decision. mutmut makes the mutants of
Python and runs for each the tests that come by it. All is done on a copy below build/mutants; what survived is listed
there with its change. The exit status is 1 when a module is below LEAST.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import duckdb

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "mutants"
LEAST = 0.85
# mutmut's exit codes: pytest's, time-outs, and 33 where no test comes by.
KILLED, SURVIVED = {1, 3, 24, -24, 36, 152, 255}, {0, 5, 33}

UNIT, INTEGRATION = "tests/unit/test_", "tests/integration/test_"


@dataclass(frozen=True)
class Target:
    """The tests that should see a fault of a module.

    Attributes:
        tests: files.
        only: an expression for pytest's -k: what is fast.
        functions: those alone are changed; mutmut's pattern.
    """

    tests: tuple[str, ...]
    only: str = ""
    functions: str = "*"


_PRIVACY = (f"{UNIT}consumers_privacy.py",)
_REDACTION = "not time and not long and not linear"
_EVIDENCE = (f"{INTEGRATION}daemon_evidence.py",)
_WATCH = tuple(f"{INTEGRATION}monitors_watch{part}.py" for part in ("", "_references", "_latency", "_rows"))
_COMPARISON = (*_WATCH, f"{INTEGRATION}monitors_canary.py", f"{UNIT}monitors_comparison.py")

TARGETS = {
    "consumers/warehouse/writer.py": Target(
        (f"{INTEGRATION}kafka_ingest.py", "tests/full/cluster/test_cluster_follower.py"),
        "offset_fences or partition_fence or run_stores or do_not_go_on or was_killed",
        "*_move_offsets*",
    ),
    "consumers/kafka/membership.py": Target((f"{UNIT}consumers_membership.py",), functions="*Membership*"),
    **{
        f"consumers/privacy/patterns/{kind}.py": Target(_PRIVACY, _REDACTION)
        for kind in ("accounts", "addresses", "credentials", "national_ids", "phones")
    },
    **{
        f"retrain/data/{module}.py": Target((f"{UNIT}retrain_selection.py",))
        for module in ("selection", "splits", "checks")
    },
    "retrain/decision/gate.py": Target(
        tuple(f"{UNIT}retrain_{name}.py" for name in ("gate", "gate_metrics", "gate_units", "erased")),
        "not promoted and not seldom and not level and not many_the and not errs_no_more",
    ),
    "retrain/release/rollout.py": Target((f"{INTEGRATION}retrain_registry.py",)),
    "daemon/policy/decision.py": Target((f"{UNIT}daemon_policy.py", f"{UNIT}daemon_payoff.py")),
    **{
        f"monitors/watch/{module}.py": Target(_COMPARISON, "not at_the_edge")
        for module in ("check", "comparison", "counts")
    },
    "daemon/policy/evidence.sql": Target(_EVIDENCE),
    "daemon/transfer/exports.sql": Target((f"{INTEGRATION}import_export.py",), "exported"),
    "monitors/watch/watch.sql": Target(_WATCH, "not at_the_edge"),
}

# mutmut has no switch for a kind of change.
MUTMUT = """
from mutmut.mutation import mutators
kinds = mutators.mutation_operators
kinds[:] = [kind for kind in kinds if kind[1] is not mutators.operator_string]
import sys
from mutmut.__main__ import cli
command, *names = sys.argv[1:]
for name in names:
    cli([command, name], standalone_mode=False)
"""


def main() -> int:
    named = sys.argv[1:] or list(TARGETS)
    worst = 1.0
    for module in named:
        folder = BUILD / module.replace("/", ".")
        _copy(folder)
        found = Counter(_of_sql(folder, module) if module.endswith(".sql") else _of_python(folder, module))
        score = found[True] / max(found.total(), 1)
        print(f"{module:44} {score:6.1%}  {found[True]} of {found.total()} killed", flush=True)
        worst = min(worst, score)
    return int(worst < LEAST)


def _copy(folder: Path) -> None:
    """The sources as one package, which is found before the installed one, and the tests."""
    shutil.rmtree(folder, ignore_errors=True)
    for name in ("consumers", "daemon", "monitors", "retrain"):
        shutil.copytree(ROOT / name, folder / "retuned" / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "tests", folder / "tests", ignore=shutil.ignore_patterns("__pycache__", "ns", "benchmarks"))


def _of_python(folder: Path, module: str) -> Iterator[bool]:
    """Whether each mutant was killed."""
    target = TARGETS[module]
    only = ["-k", target.only] if target.only else []
    settings = {
        "source_paths": ["retuned/"],
        "only_mutate": [f"retuned/{module}"],
        "also_copy": ["tests"],
        "pytest_add_cli_args_test_selection": list(target.tests),
        "pytest_add_cli_args": ["--import-mode=importlib", *only],
    }
    lines = [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
    (folder / "pyproject.toml").write_text("\n".join(["[tool.mutmut]", *lines]) + "\n", encoding="utf-8")
    name = f"retuned.{module.removesuffix('.py').replace('/', '.')}.{target.functions}"
    done = _run(folder, "-c", MUTMUT, "run", name)
    result = folder / "mutants" / "retuned" / f"{module}.meta"
    codes = json.loads(result.read_text(encoding="utf-8"))["exit_code_by_key"] if result.is_file() else {}
    survivors = [mutant for mutant, code in codes.items() if code in SURVIVED]
    killed = sum(code in KILLED for code in codes.values())
    if not killed and not survivors:
        raise SystemExit(f"{module}: no mutant was tried\n{done.stdout[-4_000:]}{done.stderr[-4_000:]}")
    yield from [True] * killed + [False] * len(survivors)
    changes = _run(folder, "-c", MUTMUT, "show", *survivors).stdout if survivors else ""
    (folder / "survived.diff").write_text(changes, encoding="utf-8")


def _of_sql(folder: Path, module: str) -> Iterator[bool]:
    target = TARGETS[module]
    file = folder / "retuned" / module
    whole = file.read_text(encoding="utf-8")
    arguments = ["-m", "pytest", "-q", "-x", "-n", "0", "-p", "no:warnings", "-k", target.only, *target.tests]
    if _run(folder, *arguments).returncode:
        raise SystemExit(f"{module}: its tests fail without any change")
    survived = []
    for start, end, change in conditions(whole):
        file.write_text(whole[:start] + change + whole[end:], encoding="utf-8")
        killed = _run(folder, *arguments).returncode == 1
        if not killed:
            survived.append(f"line {whole.count(chr(10), 0, start) + 1}: without {whole[start:end]!r}")
        yield killed
    (folder / "survived.diff").write_text("\n".join(survived), encoding="utf-8")


def conditions(sql: str) -> Iterator[tuple[int, int, str]]:
    """Where each condition stands, and what is there without it: `AND` and `OR` with what follows, and the first one
    behind WHERE, ON, HAVING or FILTER (, of which TRUE is left."""
    plain = re.sub(r"--[^\n]*", lambda comment: " " * len(comment[0]), sql)
    ends = re.compile(r"\b(AND|OR|AS|FROM|GROUP|ORDER|LIMIT|QUALIFY|HAVING|WHERE|JOIN|LEFT|THEN|ELSE|END|UNION)\b|[()]")
    for begun in re.finditer(r"\b(AND|OR|WHERE|ON|HAVING)\s|\bFILTER \(", plain):
        if begun[0].startswith("AND") and re.search(r"\bBETWEEN\s+[^()]*$", plain[: begun.start()].rsplit("\n", 1)[-1]):
            continue
        depth, end = 0, begun.end()
        for sign in ends.finditer(plain, begun.end()):
            end = sign.start()
            if sign[0] == "(":
                depth += 1
            elif sign[0] == ")" and depth:
                depth -= 1
                end = sign.end()
            elif not depth and (sign[0] == ")" or sign[1]):
                break
        else:
            end = len(plain)
        if blank := plain.find("\n\n", begun.end(), end) + 1:
            end = blank - 1
        joined = begun[0].startswith(("AND", "OR"))
        start, change = (begun.start(), "") if joined else (begun.end(), "TRUE ")
        if is_sql(sql[:start] + change + sql[end:]):
            yield start, end, change


def is_sql(queries: str) -> bool:
    try:
        for query in re.split(r"-- name: .*", queries):
            duckdb.extract_statements(query)
    except duckdb.ParserException:
        return False
    return True


def _run(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | {"PYTHONPATH": str(folder)}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


if __name__ == "__main__":
    sys.exit(main())
