"""`retuned demo`: the whole loop on one machine, with nothing pretended but the customers.

A broker, the same daemon and gateway as in production, and an app that serves a small model to the customers of a
fictional company. The company changes its policies half-way; the daemon must notice, retrain, prove the new adapter,
and promote it.
"""

import json
import os
import signal
import sys
import threading
import time
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from retuned.daemon.demo.company import Company, load, split_questions
from retuned.daemon.demo.parts import Parts, get, memory_of
from retuned.daemon.demo.users import WORKLOAD, Client, Users, right_answers
from retuned.daemon.demo.view import View, in_service
from retuned.daemon.demo.waits import Waits, setbacks

STAGES = (
    "start a broker, the model server, the gateway and the daemon",
    "customers ask; the base model knows nothing of the company",
    "the daemon has seen enough corrections, and retrains",
    "the first adapter answers more and more customers",
    "customers are served by the first adapter",
    "the company changes its policies; nobody tells the daemon",
    "the daemon noticed, and retrains",
    "the second adapter answers more and more customers",
    "customers are served by the second adapter",
)
NIGHT_PAUSE_SECONDS = 8.0  # two cores serve and train: while they train, few customers are awake


def demo(folder: Path, company_file: Path | None, seed: int, port: int, keep: bool) -> int:
    """Run the demo; the exit status is 0 only when the loop closed and the answers got better.

    Args:
        folder: what the run leaves behind: warehouse, models, reports, logs, result.json. An earlier run's is replaced.
        company_file: a company in the form of company.yaml; None: that one.
        port: of the daemon's HTTP server; 0: any free one.
        keep: leave everything running at the end until a signal.

    Raises:
        RetunedError: a part is missing or failed; the text names it.
    """
    company = load(company_file)
    console = Console(width=None if sys.stdout.isatty() else 120, soft_wrap=not sys.stdout.isatty())
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # leave through the clean-up below
    with ExitStack() as stack:
        view = View(console, STAGES, f"retuned demo: {company.name}")
        stage = Stage(folder, company, seed, port, stack, view)
        with view:
            result = stage.play()
        stage.report(console, result)
        if keep:
            console.print(f"\nStill running: {stage.parts.daemon_url} (metrics at /metrics). Ctrl-C ends it.")
            try:
                while stage.parts.alive():
                    time.sleep(1)
            except KeyboardInterrupt:
                pass
    return 0 if result["closed"] and result["improved"] else 1


class Stage:
    """Everything that runs during the demo."""

    def __init__(self, folder: Path, company: Company, seed: int, port: int, stack: ExitStack, view: View) -> None:
        self.folder, self.company, self.seed, self.stack = folder.resolve(), company, seed, stack
        self.parts = Parts(self.folder, port, stack)
        self.view, self.waits = view, Waits(self.parts.check, view.wait, view.setback)
        self.asked, self.exam = split_questions(company, seed)
        self.server = Client(self.parts.server_url, company.system)
        self.gateway = Client(self.parts.gateway_url, company.system)
        self.began = time.monotonic()
        self.peak_memory_bytes = 0
        self.changed_at = ""
        self._status: dict[str, Any] = {}

    # The story

    def play(self) -> dict[str, Any]:
        """The stages, and what came of them."""
        view, until, parts = self.view, self.waits.until, self.parts
        view.begin(0)
        parts.start(view, self.waits)
        users = Users(self.company, self.asked, self.gateway, parts.bootstrap, self.seed)
        self.stack.callback(users.stop)
        threading.Thread(target=self._watch, args=(users,), name="view", daemon=True).start()
        view.end(0, f"page at {parts.daemon_url}")

        facts = self.company.facts(False)
        view.begin(1)
        base = right_answers(self.server, facts, self.exam)
        users.start()
        run = until(lambda: self._new_run(set()), "the daemon to retrain", name="corrections")
        view.end(1, f"{_share(base)} right on questions that nobody is trained on")

        view.begin(2)
        until(lambda: self._put_into_service(1), "the first adapter to pass the gate", name="training")
        view.end(2, f"because of {'; '.join(run['reasons'])}")

        view.begin(3)
        until(lambda: self._served(1), "the first adapter to be promoted and served", name="rollout")
        view.end(3, self._steps())

        view.begin(4)
        first = right_answers(self.server, facts, self.exam)
        until(lambda: self._customers_served(users) >= 90, "90 answers of the first adapter", like=["corrections"])
        before = self._figures()
        view.end(4, f"{_share(first)} right on questions never trained on")

        view.begin(5)
        facts = self.company.facts(True)
        known, adapters = {run["id"] for run in self._workload()["runs"]}, self._promoted()
        users.change_policies()
        self.changed_at = datetime.now(UTC).isoformat()
        view.figures.policies = "the new policies"
        stale = right_answers(self.server, facts, self.exam)
        again = ["corrections", "training"]
        run = until(lambda: self._new_run(known), "the daemon to notice the change and retrain", like=again)
        during = self._figures()
        view.end(5, f"{_share(stale)} right by the new policies")

        view.begin(6)
        until(lambda: self._put_into_service(adapters + 1), "the second adapter to pass the gate", like=again)
        view.end(6, f"because of {'; '.join(run['reasons'])}")

        view.begin(7)
        again = ["corrections", "training", "rollout"]  # one that is taken back is trained anew
        until(lambda: self._served(adapters + 1), "the second adapter to be promoted and served", like=again)
        view.end(7, self._steps())

        view.begin(8)
        second = right_answers(self.server, facts, self.exam)
        until(lambda: self._customers_served(users) >= 60, "60 answers of the second adapter", like=["corrections"])
        users.stop()
        until(lambda: self._caught_up(users), "the daemon to take in every event", like=["corrections"])
        after = self._figures()
        view.end(8, f"{_share(second)} right on questions never trained on")
        moments = {
            "the base model": (base, None),
            "first adapter": (first, before),
            "… after the change": (stale, during),
            "second adapter": (second, after),
        }
        return self._result(users, moments)

    # Watching

    def status(self) -> dict[str, Any]:
        """The daemon's status; while a busy machine does not answer, the one before."""
        if answer := get(f"{self.parts.daemon_url}/api/v1/status"):
            self._status = json.loads(answer)
        return self._status

    def _workload(self) -> dict[str, Any]:
        found: dict[str, Any] = self.status().get("workloads", {}).get(WORKLOAD, {})
        return found

    def _new_run(self, known: set[str]) -> dict[str, Any] | None:
        """The oldest run that is none of the known ones, once it is under way."""
        runs = reversed(self._workload().get("runs", []))
        return next((run for run in runs if run["state"] != "refused" and run["id"] not in known), None)

    def _promoted(self) -> int:
        """How many adapters were promoted."""
        return sum(change["event"] == "promoted" for change in self._workload().get("promotions", []))

    def _put_into_service(self, number: int) -> bool:
        """Whether so many adapters were promoted, or the last of them has begun to answer customers."""
        return self._promoted() + (self._workload().get("rollout") is not None) >= number

    def _steps(self) -> str:
        """The shares of the champion until it had all, and when it got them, in words."""
        workload = self._workload()
        changes = [change for change in workload["promotions"] if change["version"] == workload["champion"]]
        return ", ".join(f"{change['share']:.0%} at {change['created_at'][11:19]}" for change in reversed(changes))

    def _served(self, number: int) -> bool:
        """Whether so many adapters were promoted, and customers get the champion."""
        if self._promoted() < number:
            return False
        served = self.server.ask(self.company.facts(False)[0].questions[0], max_tokens=1).model
        return served == f"{WORKLOAD}@{self._workload()['champion']}"

    def _customers_served(self, users: Users) -> int:
        """Answers that the champion has given."""
        return users.served[f"{WORKLOAD}@{self._workload()['champion']}"]

    def _figures(self) -> dict[str, float]:
        """The daemon's next measurement of the current window, and the ROI so far."""

        def measured() -> str:
            return max((f["created_at"] for f in self._workload().get("quality", [])), default="")

        last = measured()
        self.waits.until(lambda: measured() > last, "the daemon's next measurement", like=["corrections"])
        workload = self._workload()
        newest = measured()
        found = {
            figure["metric"]: figure["value"]
            for figure in workload["quality"]
            if figure["model"] == "*" and figure["source"] in ("user", "app") and figure["created_at"] == newest
        }
        if workload["roi"]["ratio"] is not None:
            found["roi"] = workload["roi"]["ratio"]
        return found

    def _caught_up(self, users: Users) -> bool:
        ingestion = self.status()["ingestion"]
        return all(ingestion[topic] >= users.counts[topic] for topic in ("interactions", "feedback"))

    def _watch(self, users: Users) -> None:
        """Feed the view, watch the memory and set the pace, until the process ends."""
        view, seen, at = self.view, 0, time.monotonic()
        told: set[str] = set()
        served = ""
        while True:
            time.sleep(1.0)
            sent, now = users.counts["interactions"] + users.counts["feedback"], time.monotonic()
            view.figures.events_per_second = (sent - seen) / (now - at)
            seen, at = sent, now
            if users.recent:
                view.figures.right_share = sum(users.recent) / len(users.recent)
            memory = memory_of(os.getpid())
            self.peak_memory_bytes = max(self.peak_memory_bytes, memory)
            view.figures.memory_gigabytes = memory / 1e9
            view.figures.status = self.status()
            workload = view.figures.status.get("workloads", {}).get(WORKLOAD, {})
            if workload and served != (served := in_service(workload)):
                view.tell_step(f"customers are answered by {served}")
            for id, text in setbacks(workload):
                if id not in told:
                    told.add(id)
                    view.tell_setback(text)
            asked, corrected = users.counts["interactions"], users.counts["corrections"]
            view.tell_progress(view.figures.status.get("training") or {}, f"{asked} questions, {corrected} corrections")
            users.pause_seconds = NIGHT_PAUSE_SECONDS if view.figures.status.get("training") else 0.0

    # What came of it

    def _result(
        self, users: Users, moments: dict[str, tuple[dict[str, bool], dict[str, float] | None]]
    ) -> dict[str, Any]:
        workload, ingestion = self._workload(), self.status()["ingestion"]
        promotions = [p for p in workload["promotions"] if p["event"] == "promoted"]
        right = {name: sum(answers.values()) / len(answers) for name, (answers, _) in moments.items()}
        closed = len(promotions) >= 2
        gates = [decision for decision in workload["decisions"] if decision["kind"] == "gate"]
        result = {
            "closed": closed,
            "improved": right["second adapter"] > right["… after the change"]
            and right["first adapter"] > right["the base model"],
            "seconds": round(time.monotonic() - self.began, 1),
            "peak_memory_gigabytes": round(self.peak_memory_bytes / 1e9, 2),
            "exam_questions": {name: len(answers) for name, (answers, _) in moments.items()},
            "right_answers_ratio": right,
            "figures": {name: figures for name, (_, figures) in moments.items() if figures},
            "sent": {topic: users.counts[topic] for topic in ("interactions", "feedback")},
            "stored": {topic: ingestion[topic] for topic in ("interactions", "feedback")},
            "dead_letters": ingestion["dead_letters"],
            "addresses_sent": users.counts["addresses"],
            "decisions": [
                {"kind": d["kind"], "outcome": d["outcome"], "reasons": d["reasons"], "at": d["created_at"]}
                for d in reversed(workload["decisions"])
                if d["outcome"] or d in gates
            ],
            "promotions": [
                {key: p[key] for key in ("event", "version", "share", "reason", "created_at")}
                for p in reversed(workload["promotions"])
            ],
            "drift": [
                {"at": c["created_at"], "detail": c["detail"], "report": c["report"]}
                for c in workload["drift"]
                if c["drifted"]
            ],
            "changed_at": self.changed_at,
            "roi": workload["roi"],
            "seed": self.seed,
            "company": self.company.name,
        }
        (self.folder / "result.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        return result

    def report(self, console: Console, result: dict[str, Any]) -> None:
        """The table before and after, the reasons, and where everything is."""
        moments = list(result["right_answers_ratio"])
        table = Table(title=f"{self.company.name}: before and after", title_justify="left")
        table.add_column("")
        for name in moments:
            table.add_column(name, justify="right")
        asked = result["exam_questions"]
        table.add_row(
            "right answers*",
            *(f"{result['right_answers_ratio'][m]:.0%} of {asked[m]}" for m in moments),
        )
        for label, key, form in (
            ("hallucination rate (users)", "hallucination_rate", "{:.0%}"),
            ("helpful rate (users)", "helpful_rate", "{:.0%}"),
            ("latency, median", "latency_p50_seconds", "{:.2f} s"),
            ("latency, 95%", "latency_p95_seconds", "{:.2f} s"),
            ("ROI so far", "roi", "{:.1f}"),
        ):
            figures = (result["figures"].get(m, {}).get(key) for m in moments)
            table.add_row(label, *("–" if value is None else form.format(value) for value in figures))
        console.print(table)
        console.print("* to questions in wordings that no customer ever asked and nothing was trained on", style="dim")
        for line in _history(result):
            console.print(f"  {line}", markup=False, highlight=False)
        sent, stored = result["sent"], result["stored"]
        console.print(
            f"\n{sum(sent.values())} events sent, {sum(stored.values())} stored, "
            f"{result['dead_letters']} dead letters; {result['addresses_sent']} e-mail addresses, stored as <EMAIL_1>."
        )
        console.print(
            f"{result['seconds']:.0f} s, {result['peak_memory_gigabytes']:.1f} GB at most, all processes together."
        )
        console.print(f"Page and metrics: {self.parts.daemon_url} while it runs (--keep).")
        if found := _drift_found(result):
            console.print(f"Drift report: {Path(found['report']).with_suffix('.html')}")
        console.print(f"Files: {self.folder} (data/retuned.duckdb, data/models, data/reports, logs, result.json)")
        verdict = (
            "The loop closed, and answers got better."
            if result["closed"] and result["improved"]
            else "The loop did NOT close."
        )
        console.print(verdict, style="bold green" if result["closed"] and result["improved"] else "bold red")


def _share(answers: dict[str, bool]) -> str:
    return f"{sum(answers.values())} of {len(answers)}"


def _drift_found(result: dict[str, Any]) -> dict[str, Any] | None:
    """The first check that found drift after the policies changed, and whose report is there."""
    found = [check for check in result["drift"] if check["at"] > result["changed_at"] and check["report"]]
    return found[-1] if found else None


def _history(result: dict[str, Any]) -> list[str]:
    """What happened, a line each: the change, what drifted, why the daemon retrained, what the gate said."""
    lines = [(result["changed_at"], "the company changed its policies")]
    if found := _drift_found(result):
        lines.append((found["at"], f"drift found: {found['detail']}"))
    for decision in result["decisions"]:
        reasons = decision["reasons"]
        if decision["kind"] == "retrain":
            text = f"retraining because of {'; '.join(reasons)}"
        elif decision["outcome"]:
            text = f"gate passed: {reasons[0]}"
        else:
            text = f"gate refused: {reasons[-1]}"
        lines.append((decision["at"], text))
    return [f"{at[11:19]} {text}" for at, text in sorted(lines)]
