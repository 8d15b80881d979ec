"""`retuned doctor`: what is wrong with a deployment, and what mends it."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from retuned.consumers.errors import ConfigurationError, RetunedError
from retuned.daemon.cli import screen
from retuned.daemon.operations.diagnosis import ARGUMENTS, Diagnosed, diagnosis
from retuned.daemon.operations.fields import Nothing

if TYPE_CHECKING:
    from rich.console import RenderableType

    from retuned.daemon.cli.command import Common

REMEDIES = {
    "configuration": "`retuned config` prints every key with its meaning and its default",
    "broker": "start Kafka, set kafka.bootstrap_servers to where it runs, create the topics that are missing, and set "
    "retention.ms of those without an end",
    "store": "start the database and the object storage of store.postgres_url and store.objects_url",
    "warehouse": "stop what else has the file open, or correct the section warehouse; `retuned migrate` brings an "
    "older file to this version",
    "workloads": "correct the names of the entries of workloads; `retuned status` lists the workloads that have events",
    "events": "mend the warehouse or the access to the daemon first, then try again",
    "privacy": "correct the section privacy; the key of pseudonyms is a file that this user can read",
    "base model": "set models.base to a folder with config.json, the weights and the tokenizer",
    "runner": "start the cluster at runner.url, or set runner.kind to local",
    "memory": "free memory, or see `retuned check --plan WORKLOAD` for what fits",
    "evaluation": "start the server at evaluate.server_url, or set evaluate.engine to transformers",
    "target": "start the model server, or correct its address in serving.targets",
    "metric": "set evaluate.judge_url to a language model that judges, or metric.name to a metric that fits",
    "judge": "start the server at evaluate.judge_url, or correct its address and its key",
    "opinions": "start the detector or the judge of the section quality, or turn it off",
    "models": "let this user write to the folder models.directory",
    "disk": "free space, or shorten retention: the daemon stops on a full disk",
    "http": "set http.port to a free port; beyond loopback make tokens with `retuned token NAME --role ROLE`",
    "upstream": "start the model server, or correct its address in gateway.upstreams",
    "gateway": "correct the key files and the buffer of the section gateway",
}
"""By the first words of the name of a check."""
STYLES = {"FAIL": "bold red", "warn": "yellow", "ok": "green"}


def examine(common: "Common") -> Iterator[Diagnosed]:
    """Everything that `retuned check` tries, and what the stored events show."""
    try:
        settings = common.settings()
    except ConfigurationError as error:
        yield _with_remedy("FAIL", "configuration", str(error))
        return
    from retuned.daemon.cli.check import check

    failed = set[str]()
    for mark, name, found in check(settings):
        if name == ARGUMENTS:  # the diagnosis has it
            continue
        failed |= {name} if mark == "FAIL" else set()
        yield _with_remedy(mark, name, found)
    try:
        if not settings.warehouse.path.exists():
            return
        with common.asking(settings) as service:
            yield from service.ask(diagnosis, Nothing())
    except (RetunedError, OSError) as error:
        known = bool(failed & {"warehouse", "http"})
        yield _with_remedy("warn", "events", "were not looked at" if known else f"were not looked at: {error}")


def shown(found: list[Diagnosed], *, full: bool) -> Iterator["RenderableType"]:
    """What is wrong, the worst first, each with its remedy.

    Args:
        full: what is right is shown, too.
    """
    order = list(STYLES)
    for one in sorted(found, key=lambda one: order.index(one["mark"])):
        if one["mark"] == "ok" and not full:
            continue
        lines = [(f"{one['mark']:4}", f"{one['name']}: {one['found']}")]
        lines += [("", f"→ {one['remedy']}")] if one["remedy"] else []
        yield screen.facts(lines, style=STYLES[one["mark"]])
    counts = {mark: sum(one["mark"] == mark for one in found) for mark in STYLES}
    yield screen.text(
        f"{counts['FAIL']} wrong, {counts['warn']} to look at, {counts['ok']} as they should be"
        + ("" if full or not counts["ok"] else " (--verbose shows them)"),
        "bold",
    )


def _with_remedy(mark: str, name: str, found: str) -> Diagnosed:
    remedy = "" if mark == "ok" else next((text for key, text in REMEDIES.items() if name.startswith(key)), "")
    return Diagnosed(mark=mark, name=name, found=found, remedy=remedy)  # type: ignore[typeddict-item]
