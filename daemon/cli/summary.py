"""The status in words, for a person at a terminal: `retuned status`."""

from collections.abc import Iterator
from typing import Any

from retuned.consumers.errors import RetunedError
from retuned.daemon.cli import progress
from retuned.daemon.jobs.progress import words

SOURCES = {"kafka": "broker", "segments": "store"}
"""What is asked for events."""


def summary(status: dict[str, Any]) -> list[str]:
    """Its lines."""
    ingestion = status["ingestion"]
    broker = {True: "up", False: "DOWN", None: "not asked: no daemon is running"}[ingestion["broker_up"]]
    lines = [
        f"retuned {status['version']}, "
        + (f"running since {status['started_at']}" if status["running"] else "not running")
        + f"; as of {_at(status.get('as_of'))}",
        f"events    {ingestion['interactions']} interactions, {ingestion['feedback']} feedback, "
        f"{ingestion['dead_letters']} dead letters; {SOURCES[ingestion['source']]} {broker}",
    ]
    lines += refused(ingestion)
    storage = status["storage"]
    rows, taken = (sum(table[what] for table in storage["archived"]) for what in ("rows", "bytes"))
    last = max((table["last_archived_at"] for table in storage["archived"]), default=None)
    lines.append(
        f"storage   warehouse {_megabytes(storage['used'])} of {_megabytes(storage['file'])} used; "
        + (f"archive {rows} rows in {_megabytes(taken)}, the last on {last[:10]}" if last else "nothing archived yet")
    )
    lines += [f"daemon    {one['said']}{' (this one)' if one['this'] else ''}" for one in status.get("daemons", ())]
    lines += [f"warning   {warning}" for warning in status.get("warnings", ())]
    lines += [
        f"paused    {pause['workload'] or 'all workloads'}, by {pause['actor']} since {pause['created_at'][:19]}: "
        f"{pause['reason']}"
        for pause in status["pauses"]
    ]
    lines += progress.queue(status)
    lines += [f"job {job} FAILED: {problem}" for job, problem in status["jobs"]["failures"].items()]
    for name, workload in status["workloads"].items():
        lines += ["", name, *(f"  {line}" for line in _workload(name, workload, status))]
    return lines


def of_workload(status: dict[str, Any], name: str) -> dict[str, Any]:
    """The part of a status that is about one workload, and what is about none.

    Raises:
        RetunedError: it is not in the status.
    """
    if name not in status["workloads"]:
        known = ", ".join(status["workloads"]) or "none yet: no event has arrived"
        raise RetunedError(f"workload {name}: not in the status, which has {known}")
    return status | {
        "workloads": {name: status["workloads"][name]},
        "under_way": [one for one in status["under_way"] if one["workload"] == name],
        "queue": [one for one in status["queue"] if one["workload"] == name],
        "pauses": [one for one in status["pauses"] if one["workload"] in (None, name)],
    }


def _workload(name: str, workload: dict[str, Any], status: dict[str, Any]) -> list[str]:
    """The lines of one workload."""
    from retuned.monitors.money.outcomes import OUTCOMES

    champion = workload["champion"]
    lines = [f"champion    {f'{name}@{champion}' if champion else f'none: {name}@base serves'}"]
    if workload["quality"]:
        lines.append(f"measured    {_at(workload['quality'][0]['created_at'])}")
    lines += [
        f"{figure['metric']:<28} {_number(figure['value'], 3)}"
        f"  ({_number(figure['low'], 3)} to {_number(figure['high'], 3)}, n={figure['n']}, {figure['source']})"
        for figure in workload["quality"]
        if figure["model"] == "*"
    ]
    lines += [
        f"{one['monitor']:<11} blind: {one['found']} of {one['needed']} {one['what']}" for one in workload["blind"]
    ]
    lines += _targets(workload["serving"]["replicas"])
    lines += [
        f"service     {'short of' if one['served_at'] else 'waits for'} replicas: {one['lacking']}"
        for one in workload["serving"]["deployments"]
        if one["served"] is False
    ]
    if rollout := workload["rollout"]:
        lines.append(f"rollout     {_rollout(name, rollout, status['as_of'])}")
    if workload["watch"]:
        watch = workload["watch"]
        lines.append(
            f"watch       {name}@{watch['version']}: {watch['verdict'].replace('_', ' ')}: "
            f"{'; '.join(watch['reasons'])}"
        )
    for one in workload["approvals"]:
        if one["state"] == "waiting":
            until = f"waits until {_at(one['expires_at'])}"
            lines.append(f"approval    {name}@{one['version']} {until}: `retuned approve` has what the gate found")
    if workload["drift"]:
        latest = workload["drift"][0]
        lines.append(f"drift       {_at(latest['created_at'])}: {latest['detail']}")
    if workload["decisions"]:
        decision = workload["decisions"][0]
        verdict = "yes" if decision["outcome"] else "no"
        lines.append(f"decision    {decision['kind']}: {verdict}: {'; '.join(decision['reasons'])}")
    if workload["runs"]:
        waits = {one["run_id"]: one["reason"] for one in status["queue"]}
        begun = {one["run_id"]: one for one in status["under_way"]}
        lines.append(f"run         {_run_now(workload['runs'][0], begun, name, waits)}")
    if workload["quarantine"]:
        doubted = ", ".join(f"{row['rows']} {row['reason']}" for row in workload["quarantine"])
        lines.append(f"quarantine  {doubted}")
    asked = workload["labels"]
    if asked["open"] or asked["answered"]:
        lines.append(f"labels      {asked['open']} asked of experts, {asked['answered']} answered")
    roi = workload["roi"]
    if roi["ratio"] is not None:
        sums = f"gains {_number(roi['gains'])}, costs {_number(roi['costs'])} {status['currency']}"
        ends = _within(roi["ratio_low"], roi["ratio_high"])
        lines.append(f"ROI         {roi['ratio']:.2f}  ({sums}{ends}), booked until {_at(status.get('booked_at'))}")
    if (became := roi["conversations"]) and became["cost_per_resolved"] is not None:
        counts = ", ".join(f"{became[outcome]} {outcome}" for outcome in OUTCOMES)
        each = f"{became['cost_per_resolved']:.4g} {status['currency']} per resolved conversation"
        lines.append(f"cost        {each}  (since {became['since']}: {counts})")
    if roi["promotions"] and (change := roi["promotions"][0])["uplift"] is not None:
        before = f"{name}@{change['previous_version'] or 'base'} would have gained {_number(change['counterfactual'])}"
        ends = _within(change["uplift_low"], change["uplift_high"])
        lines.append(f"uplift      {change['uplift']:.2f} {status['currency']}  ({before}{ends})")
    return lines


def _targets(replicas: list[dict[str, Any]]) -> Iterator[str]:
    """What each replica serves, or why it does not."""
    for replica in replicas:
        if replica["target"] == "folder" and not replica["problem"]:
            continue
        found = [
            f"{model['model']} {model['state']}" + (f" ({model['detail']})" if model["detail"] else "")
            for model in replica["models"]
        ]
        said = replica["problem"] or ", ".join(found) or "nothing to load"
        yield f"target      {replica['target']} {replica['replica']}: {said}"


def _rollout(workload: str, rollout: dict[str, Any], as_of: str) -> str:
    """Who answers how much, since when, and what the next step waits for."""
    share = "in shadow for {shadow:.4g}" if rollout["shadow"] is not None else "{share:.4g}"
    parts = f"{workload}@{rollout['version']} {share.format(**rollout)}"
    parts += f" of the conversations since {_at(rollout['step_since'])}"
    if rollout["state"] == "holdback":
        return f"{parts}; {workload}@{rollout['previous_version'] or 'base'} the rest until the watch has ended"
    check = rollout["check"]
    seen = f"{check['verdict'].replace('_', ' ')}: {'; '.join(check['reasons'])}" if check else "not looked at yet"
    when = f"not before {_at(rollout['next_at'])}" if as_of < rollout["next_at"] else "once nothing holds it"
    return f"{parts}, then {rollout['next_share']:.4g}, {when}; {seen}"


def _run_now(run: dict[str, Any], begun: dict[str, dict[str, Any]], workload: str, waits: dict[str, str]) -> str:
    """The latest run: how far it is, what it waits for, what came of it, or why it made nothing."""
    if run["id"] in begun:
        return f"under way: {words(begun[run['id']])}"
    if run["state"] == "succeeded":
        scores = run["scores"] or {}
        means = ", ".join(
            f"{model} {_number(scores[model], 3)}" for model in ("candidate", "champion", "base") if model in scores
        )
        return f"succeeded: {workload}@{run['version']}" + (f", holdout score: {means}" if means else "")
    return f"{run['state']}: {waits.get(run['id']) or run['error']}"


def refused(ingestion: dict[str, Any]) -> list[str]:
    """Producers that are set aside and what is passed over, for a person at a terminal."""
    lines = [
        f"set aside  {producer['topic']}, "
        + (f"workload {producer['workload']}" if producer["workload"] else "messages without a workload")
        + f": {producer['dead']} of its last {producer['messages']} messages are no events, since "
        f"{producer['since'][:19]}; the last one: {producer['example']}"
        for producer in ingestion.get("set_aside", ())
    ]
    lines += [
        f"passed over  {passed['count']} {passed['reason']}: {passed['explanation']}"
        for passed in ingestion.get("passed_over", ())
    ]
    return lines


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def _at(time: str | None) -> str:
    return "unknown" if time is None else f"{time[:19].replace('T', ' ')} UTC"


def _within(low: float | None, high: float | None) -> str:
    return "" if low is None else f", 95% {_number(low)} to {_number(high)}"


def _number(value: float | None, digits: int = 2) -> str:
    """For a person; None is a number that JSON has not, as the infinite cost of an event."""
    return "unknown" if value is None else f"{value:.{digits}f}"
