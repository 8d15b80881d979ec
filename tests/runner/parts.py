"""What the tests need beside Python's packages, and what was left out for want of it: the last line of a run.

RETUNED_REQUIRE=kafka,chromium,… names parts that must be there: a test that would be skipped for want of one fails.
"""

import os
import re
from collections import Counter
from collections.abc import Generator
from typing import Any

import pytest

# By a word in the reason of a skip.
PARTS = {
    "amtool": "amtool",
    "bitsandbytes": "bitsandbytes",
    "chromium": "Chromium",
    "disks": "small disk|disks of daemons",
    "go": "go is not installed",
    "helm": "helm",
    "java": "javac",
    "kafka": "KAFKA_HOME",
    "mlflow": "RETUNED_MLFLOW",
    "nanoidp": "NanoIDP",
    "names": "names of people",
    "postgres": "extra cluster",
    "prometheus": "prometheus|promtool",
    "ray": "RETUNED_RAY|network of its own",
    "torch": "torch",
    "trl": "trl",
    "vllm": "RETUNED_VLLM",
}


def missing(reason: str) -> str | None:
    """The part that a reason for a skip names."""
    return next((part for part, words in PARTS.items() if re.search(rf"\b({words})\b", reason)), None)


def required() -> set[str]:
    return set(filter(None, os.environ.get("RETUNED_REQUIRE", "").split(",")))


def pytest_configure() -> None:
    if unknown := required() - PARTS.keys():
        raise pytest.UsageError(f"RETUNED_REQUIRE: {', '.join(sorted(unknown))}: there are {', '.join(PARTS)}")


def _fail_for_want(report: pytest.TestReport | pytest.CollectReport) -> None:
    if report.skipped and missing(reason := reason_of(report)) in required():
        report.outcome, report.longrepr = "failed", f"RETUNED_REQUIRE: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _fail_for_want(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _fail_for_want(report)
    return report


def reason_of(report: Any) -> str:
    """Of a skipped test or file."""
    text = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
    return str(text).removeprefix("Skipped: ")


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    reporter: Any = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None:
        return
    found = Counter(missing(reason_of(report)) for report in reporter.stats.get("skipped", []))
    parts = [f"{part} ({count})" for part, count in sorted(found.items(), key=str) if part]
    if parts:
        reporter.write_line(f"Not tested, for want of: {', '.join(parts)}. RETUNED_REQUIRE makes that a failure.")
