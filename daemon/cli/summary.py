"""The status in words, for a person at a terminal: `retuned status`."""

from collections.abc import Iterator, Mapping
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from retuned.consumers.common.times import shown
from retuned.daemon.cli import progress, screen
from retuned.daemon.cli.command import LINES
from retuned.daemon.jobs.progress import words

if TYPE_CHECKING:
    from rich.console import RenderableType

SOURCES = {"kafka": "Kafka", "segments": "The store"}
"""What is asked for events."""
STYLES = {"bad": "bold red", "warn": "yellow", "busy": "cyan", "quiet": ""}
NEEDS_PERSON = ("bad", "warn")
MARKED_CHANGE = 0.05
"""A change of the helpful rate that is shown beside it."""
WIDE = 100
"""Columns from which there is room for the number of answers."""
RATES = {"helpful_rate": "helpful", "hallucination_rate": "invented"}
LATENCIES = {"latency_p50_seconds": "median", "latency_p95_seconds": "95%"}
RATED_BY = {
    "user": "users",
    "expert": "experts",
    "judge": "judges",
    "app": "apps",
    "grounding_calibrated": "the calibrated scorer",
}
"""Sources of ratings in words."""


def of_all(status: dict[str, Any]) -> Iterator["RenderableType"]:
    """What concerns all workloads, then a table of them, those that need a person first."""
    found = [(name, status["workloads"][name]) for name in status["by_attention"]]
    needing = [one for one in found if one[1]["attention"]["level"] in NEEDS_PERSON]
    yield from _running(status)
    yield from _notices(status)
    if not found:
        yield screen.text("No workload yet: no event has arrived. `retuned doctor` checks why.")
        return
    known = max(status["known_workloads"], len(found))
    yield screen.text(
        (f"{len(needing)} of {_count(len(found), 'workload')}" if needing else "No workload")
        + f" need{'s' if len(needing) < 2 else ''} a person"
        + (f" (the busiest of {known:,})." if known > len(found) else "."),
        "bold",
    )
    yield screen.text("")
    is_wide = screen.console().width >= WIDE
    rows = found[: max(LINES, len(needing))]
    helpful = {name: _helpful(workload) for name, workload in rows}
    yield screen.table(
        ("WORKLOAD", ">HELPFUL", ">CHANGE", ">ANSWERS", "STATE"),
        [
            (
                name,
                *helpful[name],
                f"{workload['attention']['answers']:,}" if is_wide else "",
                (_sentences(workload["attention"]), STYLES[workload["attention"]["level"]]),
            )
            for name, workload in rows
        ],
        most=3,
    )
    yield screen.text("")
    if len(found) > len(rows):
        yield screen.text(f"And {len(found) - len(rows)} more that need nobody; --json has them all.")
    yield screen.text(
        "HELPFUL: the share of the answers rated lately that users called helpful. "
        + ("CHANGE: in a week, in points. " if any(change for _, change in helpful.values()) else "")
        + ("ANSWERS: in 24 hours. " if is_wide else "")
        + "Quiet: nothing needs a person. `retuned status WORKLOAD` shows why, and what to do.",
        "dim",
    )


def of_one(status: dict[str, Any], name: str, *, full: bool) -> Iterator["RenderableType"]:
    """What is known of one workload.

    Args:
        full: long texts are shown in whole.
    """
    workload = status["workloads"][name]
    found = workload["attention"]
    yield from _running(status)
    yield from _notices(status)
    yield screen.text(f"{name}: {found['sentence']}", STYLES[found["level"]] or "bold")
    yield screen.facts(details(name, status), most=None if full else 2)


def details(name: str, status: dict[str, Any]) -> list[tuple[str, str]]:
    """The lines about one workload, each with its name; those of which nothing is known are left out."""
    workload = status["workloads"][name]
    lines = [
        ("why", workload["attention"]["evidence"]),
        ("quality", "; ".join(_quality(workload["quality"]))),
        ("serves", "; ".join(_serves(name, workload))),
        ("rollout", _rollout(name, workload["rollout"], status["as_of"]) if workload["rollout"] else ""),
        ("watch", _watch(name, workload["watch"])),
        ("drift", _drift(workload)),
        ("decision", _decision(workload["decisions"])),
        ("run", _run_now(workload["runs"][0], status, name) if workload["runs"] else ""),
        ("blind", "; ".join("{monitor}: {found} of {needed} {what}".format(**one) for one in workload["blind"])),
        ("set aside", ", ".join(f"{row['rows']} {row['reason']}" for row in workload["quarantine"])),
        ("memory", _memory(workload["memory"])),
        ("money", "; ".join(_money(name, workload["roi"], status))),
        *zip_longest(["to do"], _to_do(name, workload, status), fillvalue=""),
    ]
    return [(label, text) for label, text in lines if text]


def _running(status: dict[str, Any]) -> Iterator["RenderableType"]:
    """What runs, and what is stored."""
    ingestion = status["ingestion"]
    since = f"runs since {shown(status['started_at'])}" if status["running"] else "is not running"
    yield screen.text(f"retuned {status['version']} {since}; as of {shown(status['as_of'])}", "dim")
    stored = f"{_count(ingestion['interactions'], 'answer')}, {ingestion['feedback']:,} feedback"
    if dead := ingestion["dead_letters"]:
        stored += f", {dead:,} not decoded (`retuned dead-letters list`)"
    yield screen.text(f"{stored}; warehouse {status['storage']['file'] / 1e6:,.0f} MB", "dim")


def _notices(status: dict[str, Any]) -> Iterator["RenderableType"]:
    """What is wrong or under way beside the workloads."""
    ingestion = status["ingestion"]
    if ingestion["broker_up"] is False:
        yield screen.text(f"{SOURCES[ingestion['source']]} does not answer: events wait there.", "bold red")
    for job, problem in status["jobs"]["failures"].items():
        yield screen.text(f"The job {job} failed: {problem}", "bold red")
    for line in refused(ingestion):
        yield screen.text(line, "yellow")
    for warning in status.get("warnings", ()):
        yield screen.text(f"Warning: {warning}", "yellow")
    for pause in status["pauses"]:
        yield screen.text(
            f"Retraining of {pause['workload'] or 'all workloads'} is paused by {pause['actor']} since "
            f"{shown(pause['created_at'])}: {pause['reason']}",
            "yellow",
        )
    for daemon in status.get("daemons", ()):
        yield screen.text(f"daemon    {daemon['said']}{' (this one)' if daemon['this'] else ''}")
    for line in progress.queue(status):
        yield screen.text(line, "cyan")


def _helpful(workload: Mapping[str, Any]) -> tuple[str, str]:
    """The helpful rate by the votes of users, and its change where that is worth a look."""
    figure = next(
        (
            one
            for one in workload["quality"]
            if (one["metric"], one["source"], one["model"]) == ("helpful_rate", "user", "*")
        ),
        None,
    )
    if figure is None or figure["value"] is None:
        return "–", ""
    change = workload["attention"]["change"] or 0.0
    return f"{figure['value']:.0%}", f"{change * 100:+.0f}" if abs(change) >= MARKED_CHANGE else ""


def _sentences(found: Mapping[str, Any]) -> str:
    if found["level"] not in NEEDS_PERSON or not found["evidence"]:
        return str(found["sentence"])
    return f"{found['sentence']}{', ' if found['evidence'][0].islower() else '. '}{found['evidence']}"


def _quality(figures: list[dict[str, Any]]) -> Iterator[str]:
    """Which answers are counted, rates, each with its interval and what it is counted from, and latencies."""
    found = [one for one in figures if one["model"] == "*"]
    counted = {one["model"]: one["n"] for one in figures if one["metric"] == "window_seconds"}
    if answers := counted.pop("*", 0):
        models = ", ".join(f"{n:,} of {model}" for model, n in sorted(counted.items(), key=lambda one: -one[1]))
        is_rated = any(one["metric"] in RATES and one["source"] != "grounding_calibrated" for one in found)
        since = f"since {shown(found[0]['since'])} ({models})"
        yield f"{_count(answers, 'answer')} {since}{'' if is_rated else ', none rated'}"
    for metric, name in RATES.items():
        for one in found:
            if one["metric"] == metric:
                by = RATED_BY.get(one["source"], one["source"])
                within = f"{_share(one['low'])} to {_share(one['high'])} of {one['n']:,}"
                yield f"{name} {_share(one['value'])} by {by} ({within})"
    if rules := [one for one in found if one["metric"] == "cascade_share"]:
        costs = {one["source"]: f" at {one['value']:.3g} each" for one in found if one["metric"] == "cascade_cost"}
        shares = ", ".join(f"{_share(one['value'])} {one['source']}{costs.get(one['source'], '')}" for one in rules)
        by = {one["source"]: one for one in found if one["metric"] == "cascade_helpful_rate"}
        rated = "".join(f"; helpful {_share(one['value'])} by {RATED_BY.get(name, name)}" for name, one in by.items())
        yield f"answered by the incumbent by rule: {shares}{rated}"
    latency = {one["metric"]: one["value"] for one in found if one["metric"] in LATENCIES}
    if latency:
        yield "latency " + ", ".join(
            f"{name} {_number(latency[metric])} s" for metric, name in LATENCIES.items() if metric in latency
        )
    if found:
        yield f"measured {shown(found[0]['created_at'])}"


def _serves(name: str, workload: Mapping[str, Any]) -> Iterator[str]:
    """The champion, and what keeps it from being served."""
    champion, incumbent = workload["champion"], workload["incumbent"]
    base = f"the incumbent {incumbent}" if incumbent else "the base model"
    yield f"{name}@{champion}" if champion else f"{name}@base, {base}: no version is promoted"
    for one in workload["serving"]["deployments"]:
        if one["served"] is False:
            yield f"{'short of' if one['served_at'] else 'waits for'} replicas: {one['lacking']}"
    for replica in workload["serving"]["replicas"]:
        problems = [f"{one['model']} {one['state']} ({one['detail']})" for one in replica["models"] if one["detail"]]
        if replica["problem"] or problems:
            yield f"{replica['target']} {replica['replica']}: {replica['problem'] or ', '.join(problems)}"


def _rollout(workload: str, rollout: dict[str, Any], as_of: str) -> str:
    """Who answers how much, since when, and what the next step waits for."""
    share = "in shadow for {shadow:.4g}" if rollout["shadow"] is not None else "{share:.4g}"
    parts = f"{workload}@{rollout['version']} {share.format(**rollout)}"
    parts += f" of the conversations since {shown(rollout['step_since'])}"
    if rollout["state"] == "holdback":
        return f"{parts}; {workload}@{rollout['previous_version'] or 'base'} the rest until the watch has ended"
    check = rollout["check"]
    seen = f"{check['verdict'].replace('_', ' ')}: {'; '.join(check['reasons'])}" if check else "not looked at yet"
    when = f"not before {shown(rollout['next_at'])}" if as_of < rollout["next_at"] else "once nothing holds it"
    return f"{parts}, then {rollout['next_share']:.4g}, {when}; {seen}"


def _watch(name: str, watch: dict[str, Any] | None) -> str:
    if not watch:
        return ""
    return f"{name}@{watch['version']}: {watch['verdict'].replace('_', ' ')}: {'; '.join(watch['reasons'])}"


def _drift(workload: Mapping[str, Any]) -> str:
    if not workload["drift"]:
        return ""
    latest = workload["drift"][0]
    found = f"{shown(latest['created_at'])}: {latest['detail']}"
    return f"{found}; {_estimate(latest['estimate'])}" if latest["estimate"] else found


def _memory(memory: Mapping[str, Any]) -> str:
    if memory["mode"] == "off":
        return ""
    entries = {state: memory["entries"].get(state, 0) for state in ("active", "retired", "withdrawn")}
    counts = f"{entries['active']:,} in force, {entries['retired']:,} learned, {entries['withdrawn']:,} withdrawn"
    return f"{counts}; they helped {_count(memory['helped'], 'answer')}, {memory['held_out']:,} were held out"


def _decision(decisions: list[dict[str, Any]]) -> str:
    if not decisions:
        return ""
    latest = decisions[0]
    verdict = "yes" if latest["outcome"] else "no"
    return f"{shown(latest['created_at'])}, {latest['kind']}: {verdict}: {'; '.join(latest['reasons'])}"


def _run_now(run: dict[str, Any], status: dict[str, Any], workload: str) -> str:
    """The latest run: how far it is, what it waits for, its result, or why it made nothing."""
    begun = next((one for one in status["under_way"] if one["run_id"] == run["id"]), None)
    if begun is not None:
        return f"under way: {words(begun)}"
    if run["state"] == "succeeded":
        return f"succeeded: {workload}@{run['version'] or 'base'}{_scored(run['scores'])}"
    waits = next((one["reason"] for one in status["queue"] if one["run_id"] == run["id"]), None)
    return f"{run['state']}: {waits or run['error']}"


def _scored(scores: dict[str, Any] | None) -> str:
    """Mean scores on the holdout, to follow a version; empty: it has none."""
    means = (
        f"{model} {_number(scores[model], 3)}"
        for model in ("candidate", "champion", "base")
        if scores and model in scores
    )
    text = ", ".join(means)
    return f", holdout score: {text}" if text else ""


def _money(name: str, roi: dict[str, Any], status: dict[str, Any]) -> Iterator[str]:
    from retuned.monitors.money.outcomes import OUTCOMES

    currency = status["currency"]
    if roi["ratio"] is not None:
        sums = f"gains {_number(roi['gains'])}, costs {_number(roi['costs'])} {currency}"
        ends = _within(roi["ratio_low"], roi["ratio_high"])
        booked = shown(status["booked_at"]) if status["booked_at"] else "unknown"
        yield f"ROI {roi['ratio']:.2f} ({sums}{ends}), booked until {booked}"
    if roi["promotions"] and (change := roi["promotions"][0])["uplift"] is not None:
        before = f"{name}@{change['previous_version'] or 'base'} would have gained {_number(change['counterfactual'])}"
        ends = _within(change["uplift_low"], change["uplift_high"])
        yield f"uplift {change['uplift']:.2f} {currency} ({before}{ends})"
    if (became := roi["conversations"]) and became["cost_per_resolved"] is not None:
        counts = ", ".join(f"{became[outcome]} {outcome}" for outcome in OUTCOMES)
        each = f"{became['cost_per_resolved']:.4g} {currency} per resolved conversation"
        yield f"{each} (since {became['since']}: {counts})"


def _to_do(name: str, workload: Mapping[str, Any], status: dict[str, Any]) -> Iterator[str]:
    """What a person can do now, with the command."""
    for one in workload["approvals"]:
        if one["state"] == "waiting":
            what = f"dataset {one['version']}" if one["kind"] == "dataset" else f"{name}@{one['version']}"
            yield f"{what} waits until {shown(one['expires_at'])} for `retuned approve {name}`"
    if asked := workload["labels"]["open"]:
        yield f"{_count(asked, 'answer')} to judge: `retuned labels --workload {name}`"
    if any(one["workload"] in (None, name) for one in status["pauses"]):
        yield "end the pause: `retuned resume`"
    if workload["runs"] and workload["runs"][0]["state"] == "failed":
        yield f"once it is mended: `retuned retrain {name}`"
    if workload["drift"] and workload["drift"][0]["drifted"]:
        yield f"if what is asked now is as usual: `retuned drift accept {name} --reason …`"


def refused(ingestion: dict[str, Any]) -> list[str]:
    """Producers that are set aside and what is passed over, for a person at a terminal."""
    lines = [
        f"set aside  {producer['topic']}, "
        + (f"workload {producer['workload']}" if producer["workload"] else "messages without a workload")
        + f": {producer['dead']} of its last {producer['messages']} messages are no events, since "
        f"{shown(producer['since'])}; the last one: {producer['example']}"
        for producer in ingestion.get("set_aside", ())
    ]
    lines += [
        f"passed over  {passed['count']} {passed['reason']}: {passed['explanation']}"
        for passed in ingestion.get("passed_over", ())
    ]
    return lines


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _within(low: float | None, high: float | None) -> str:
    return "" if low is None else f", 95% {_number(low)} to {_number(high)}"


def _number(value: float | None, digits: int = 2) -> str:
    """For a person; None is a number that JSON has not, as the infinite cost of an event."""
    return "unknown" if value is None else f"{value:.{digits}f}"


def _share(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.0%}"


def _estimate(found: Mapping[str, Any]) -> str:
    """The helpful rate of all answers, as votes on a few suggest."""
    ends = f"{found['low']:.0%} to {found['high']:.0%}"
    text = f"{found['rate']:.0%} of all answers helpful ({ends}, from {found['votes']} votes)"
    if moved := found["moved"]:
        text += (
            f", {found['before']:.0%} before, most in {moved['name'].removeprefix('attributes.')} {moved['value']!r}"
        )
    return text
