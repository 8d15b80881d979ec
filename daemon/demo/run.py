"""`retuned demo`: the whole loop on one machine; only the customers are simulated.

A broker, the same daemon and gateway as in production, and a small model that answers the customers of a fictional
company. The company changes its policies half-way; the daemon must notice, retrain, prove the new adapter, and promote
it.
"""

import json
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from retuned.daemon.demo.company import Company, Fact, load, split_questions
from retuned.daemon.demo.parts import Parts, get
from retuned.daemon.demo.story import Story, progress, setbacks
from retuned.daemon.demo.users import WORKLOAD, Client, Users, right_answers

FIGURES = (
    ("hallucination rate (users)", "hallucination_rate", "{:.0%}"),
    ("helpful rate (users)", "helpful_rate", "{:.0%}"),
    ("latency, median", "latency_p50_seconds", "{:.2f} s"),
    ("latency, 95%", "latency_p95_seconds", "{:.2f} s"),
    ("ROI so far", "roi", "{:.1f}"),
)


def demo(folder: Path, company_file: Path | None, seed: int, port: int, keep: bool, verbose: bool = False) -> int:
    """Runs the demo; the exit status is 0 only when the loop closed and the answers got better.

    Args:
        folder: what the run leaves behind: warehouse, models, reports, logs, result.json. It replaces an earlier run's.
        company_file: a company in the form of company.yaml; None: that one.
        port: of the daemon's HTTP server; 0: any free one.
        keep: leave everything running at the end until a signal.
        verbose: the reasons of the gate come before the result.

    Raises:
        RetunedError: a part is missing or failed; the text names it.
    """
    company = load(company_file)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the processes end
    with ExitStack() as stack:
        running = Demo(folder.resolve(), company, seed, port, stack)
        result = running.play()
        (running.folder / "result.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        if verbose:
            print("\n".join(reasons(result["workload"]["decisions"])))
        report(result, running.url, running.folder)
        if keep:
            print(f"\nStill running: {running.url} (metrics at /metrics). Ctrl-C ends it.", flush=True)
            with suppress(KeyboardInterrupt):
                while True:
                    running.parts.check()
                    time.sleep(1)
    return 0 if result["closed"] and result["improved"] else 1


class Demo:
    """The processes, the customers and the story."""

    def __init__(self, folder: Path, company: Company, seed: int, port: int, stack: ExitStack) -> None:
        self.folder, self.company, self.seed, self.stack = folder, company, seed, stack
        self.parts, self.story = Parts(folder, port, stack), Story(self._look)
        self.url = self.parts.url("daemon")
        self.asked, self.exam = split_questions(company, seed)
        self.users: Users | None = None
        self._status: dict[str, Any] = {}
        self._setbacks = 0

    def play(self) -> dict[str, Any]:
        """Runs all stages and returns the result."""
        story, until = self.story, self.story.until
        story.begin("start a broker, the model server, the gateway and the daemon")
        self.parts.start(story)
        gateway = Client(self.parts.url("gateway"), self.company.system)
        users = self.users = Users(self.company, self.asked, gateway, self.parts.bootstrap, self.seed)
        self.stack.callback(users.stop)
        story.end(f"live figures at {self.url}")

        facts = self.company.facts(False)
        story.begin("customers ask; the base model knows nothing of the company")
        base = self._examine("base", facts)
        users.start()
        run = until(lambda: self._new_run(set()), "the daemon to retrain")
        story.end(f"{_share(base)} right on questions that nobody is trained on")
        self._teach("first", run, 1)

        story.begin("customers are served by the first adapter")
        first = self._examine(self._champion(), facts)
        until(lambda: users.served[self._champion()] >= 90, "90 answers of the first adapter")
        until(self._drift_is_watched, "enough questions to compare later ones with")
        before = self._figures()
        story.end(f"{_share(first)} right on questions never trained on")

        facts = self.company.facts(True)
        story.begin("the company changes its policies; nobody tells the daemon")
        known, adapters = {run["id"] for run in self._workload()["runs"]}, self._promoted()
        users.change_policies()
        changed_at = datetime.now(UTC).isoformat()
        stale = self._examine(self._champion(), facts)
        run = until(lambda: self._new_run(known), "the daemon to notice the change and retrain")
        during = self._figures()
        story.end(f"{_share(stale)} right by the new policies")
        self._teach("second", run, adapters + 1)

        story.begin("customers are served by the second adapter")
        second = self._examine(self._champion(), facts)
        until(lambda: users.served[self._champion()] >= 60, "60 answers of the second adapter")
        users.stop()
        until(
            lambda: all(self._stored()[topic] >= sent for topic, sent in users.sent.items()), "all events to be stored"
        )
        after = self._figures()
        story.end(f"{_share(second)} right on questions never trained on")
        right = {"the base model": base, "first adapter": first, "… after the change": stale, "second adapter": second}
        shares = {name: sum(answers.values()) / len(answers) for name, answers in right.items()}
        return {
            "closed": self._promoted() >= 2,
            "improved": shares["first adapter"] > shares["the base model"]
            and shares["second adapter"] > shares["… after the change"],
            "seconds": round(story.seconds, 1),
            "exam_questions": {name: len(answers) for name, answers in right.items()},
            "right_answers_ratio": shares,
            "figures": {"first adapter": before, "… after the change": during, "second adapter": after},
            "sent": users.sent,
            "stored": self._stored(),
            "dead_letters": self._status["ingestion"]["dead_letters"],
            "addresses_sent": users.counts["addresses"],
            "changed_at": changed_at,
            "seed": self.seed,
            "company": self.company.name,
            "workload": self._workload(),
        }

    def _teach(self, name: str, run: dict[str, Any], number: int) -> None:
        """The two stages from the start of a run until its adapter answers all customers."""
        story, until = self.story, self.story.until
        story.begin(f"the daemon retrains, because of {'; '.join(run['reasons'])}")
        # A run that the gate refused, or a version that was taken back, is repeated.
        until(lambda: self._promoted() + self._rolls_out() >= number, f"the {name} adapter to pass the gate")
        story.end("it passed the gate")
        story.begin(f"the {name} adapter answers more and more customers")
        until(lambda: self._promoted() >= number and not self._rolls_out(), "the adapter to answer all customers")
        workload = self._workload()
        changes = [change for change in workload["promotions"] if change["version"] == workload["champion"]]
        story.end(", ".join(f"{change['share']:.0%} at {change['created_at'][11:19]}" for change in changes[::-1]))

    def _examine(self, model: str, facts: list[Fact]) -> dict[str, bool]:
        """Asks the model server itself, so that neither the gateway nor the daemon sees these questions."""
        return right_answers(Client(self.parts.url("server"), self.company.system), model, facts, self.exam)

    def _look(self) -> str:
        """Checks the processes, sets the customers' pace, prints setbacks and describes what is going on."""
        self.parts.check()
        if self.users is None:
            return ""
        found = setbacks(self._workload())
        for text in found[self._setbacks :]:
            self.story.set_back(text)
        self._setbacks = len(found)
        training = self._status.get("training") or {}
        self.users.night = bool(training)
        return progress(training) or self.users.summary()

    def _workload(self) -> dict[str, Any]:
        """Returns the workload's status; while a busy machine does not answer, the last one."""
        if answer := get(f"{self.url}/api/v1/status"):
            self._status = json.loads(answer)
        found: dict[str, Any] = self._status.get("workloads", {}).get(WORKLOAD, {})
        return found

    def _champion(self) -> str:
        return f"{WORKLOAD}@{self._workload()['champion']}"

    def _new_run(self, known: set[str]) -> dict[str, Any] | None:
        """Returns the oldest run under way that is not known."""
        runs = reversed(self._workload().get("runs", []))
        return next((run for run in runs if run["state"] != "refused" and run["id"] not in known), None)

    def _drift_is_watched(self) -> bool:
        """Returns whether the latest check of drift had enough questions on both sides."""
        checks = self._workload().get("drift", [])
        return bool(checks) and checks[0]["drifted"] is not None

    def _promoted(self) -> int:
        return sum(change["event"] == "promoted" for change in self._workload().get("promotions", []))

    def _rolls_out(self) -> bool:
        return self._workload().get("rollout") is not None

    def _stored(self) -> dict[str, int]:
        self._workload()
        return {topic: self._status["ingestion"][topic] for topic in ("interactions", "feedback")}

    def _figures(self) -> dict[str, float | None]:
        """Waits for the daemon's next measurement; returns its figures, and the ROI so far."""

        def measured() -> str:
            return max((f["created_at"] for f in self._workload().get("quality", [])), default="")

        last = measured()
        newest = self.story.until(lambda: (now := measured()) > last and now, "the daemon's next measurement")
        workload = self._workload()
        found = {"roi": workload["roi"]["ratio"]}
        for figure in workload["quality"]:
            if figure["model"] == "*" and figure["source"] in ("user", "app") and figure["created_at"] == newest:
                found[figure["metric"]] = figure["value"]
        return found


def reasons(decisions: list[dict[str, Any]]) -> Iterator[str]:
    """Yields what the gate compared in each decision, the oldest first."""
    for one in reversed(decisions):
        if one["kind"] == "gate":
            yield f"\nThe gate {'passed' if one['outcome'] else 'refused'} an adapter at {one['created_at'][11:19]}:"
            yield from (f"  {reason}" for reason in one["reasons"])


def report(result: dict[str, Any], url: str, folder: Path) -> None:
    """Prints the table before and after, and where everything is."""
    console = Console(width=None if sys.stdout.isatty() else 120, soft_wrap=not sys.stdout.isatty())
    asked, right = result["exam_questions"], result["right_answers_ratio"]
    table = Table("", title=f"{result['company']}: before and after", title_justify="left")
    for moment in right:
        table.add_column(moment, justify="right")
    table.add_row("right answers*", *(f"{right[moment]:.0%} of {asked[moment]}" for moment in right))
    for label, key, form in FIGURES:
        values = (result["figures"].get(moment, {}).get(key) for moment in right)
        table.add_row(label, *("–" if value is None else form.format(value) for value in values))
    console.print(table)
    console.print("* to questions in wordings that no customer ever asked and nothing was trained on", style="dim")
    console.print(
        f"{sum(result['sent'].values())} events sent, {sum(result['stored'].values())} stored, "
        f"{result['dead_letters']} dead letters; {result['addresses_sent']} e-mail addresses, stored as <EMAIL_1>.\n"
        f"{result['seconds']:.0f} s. Page and metrics: {url} while it runs (--keep).\n"
        f"Files: {folder} (data/retuned.duckdb, data/models, data/reports, logs, result.json)",
        markup=False,
        highlight=False,
    )
    closed = result["closed"] and result["improved"]
    verdict = "The loop closed, and answers got better." if closed else "The loop did NOT close."
    console.print(verdict, style="bold green" if closed else "bold red")


def _share(answers: dict[str, bool]) -> str:
    return f"{sum(answers.values())} of {len(answers)}"
