"""What the demo prints, how it waits, and how it is configured."""

from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml

from retuned.consumers.errors import RetunedError
from retuned.daemon import demo
from retuned.daemon.demo.run import reasons, report
from retuned.daemon.demo.story import LONGEST_SECONDS, Story, progress, setbacks
from retuned.daemon.settings import load


class World:
    """A machine on which steps take as long as a test sets."""

    def __init__(self) -> None:
        self.now, self.dead, self.line = 0.0, False, ""
        self.story = Story(self.look, lambda: self.now, self.sleep)

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def look(self) -> str:
        if self.dead:
            raise RetunedError("demo: the broker ended")
        return self.line

    def after(self, seconds: float) -> Callable[[], str]:
        until = self.now + seconds
        return lambda: "done" if self.now >= until else ""


@pytest.fixture
def world() -> World:
    return World()


def test_a_wait_shows_what_it_waits_for_and_now_and_then_what_goes_on(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    world.story.begin("teach")
    world.line = "12 questions"
    assert world.story.until(world.after(25), "a model") == "done"
    world.story.end("it learned")
    lines = [line.split("] ")[1] for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        "… teach",
        "    waiting for a model",
        "        12 questions",
        "        12 questions",
        "✓ teach: it learned (25 s)",
    ]


def test_what_does_not_come_ends_in_an_error_that_names_it_and_the_last_setback(world: World) -> None:
    world.story.set_back("the gate refused an adapter: Refused by gain, because it is small.")
    with pytest.raises(RetunedError, match=r"the second adapter.*Refused by gain, because"):
        world.story.until(lambda: False, "the second adapter")
    assert LONGEST_SECONDS <= world.now < LONGEST_SECONDS + 2


def test_a_part_that_dies_ends_a_wait_at_once(world: World) -> None:
    def happened() -> bool:
        world.dead = world.now >= 5
        return False

    with pytest.raises(RetunedError, match="broker ended"):
        world.story.until(happened, "anything")
    assert world.now < 6


def test_setbacks_are_refusals_and_runs_that_failed_oldest_first() -> None:
    def gate(at: str, outcome: bool, *reasons: str) -> dict[str, object]:
        return {"kind": "gate", "outcome": outcome, "created_at": at, "reasons": reasons}

    def run(id: str, at: str, state: str, error: str | None) -> dict[str, object]:
        return {"id": id, "started_at": at, "state": state, "error": error}

    workload = {
        "decisions": [
            gate("3", True, "better"),
            gate("2", False, "Refused by gain, because it is +0.05; it would take 40 more.", "A gain of +0.05."),
            {"kind": "policy", "outcome": False, "created_at": "1", "reasons": ["cool-down"]},
        ],
        "runs": [
            run("c", "3", "succeeded", None),
            run("b", "1", "failed", "no memory"),
            run("a", "0", "refused", "few"),
        ],
    }
    first, second, third = setbacks(workload)
    assert "few" in first
    assert "no memory" in second
    assert "it would take 40 more." in third
    assert setbacks({}) == []


def test_the_demo_ends_with_its_result_and_reasons_come_before_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moments = ("the base model", "first adapter", "second adapter")
    result = {
        "company": "Northwind", "exam_questions": dict.fromkeys(moments, 40), "seconds": 600.0, "dead_letters": 0,
        "right_answers_ratio": dict(zip(moments, (0.0, 0.5, 0.75), strict=True)), "figures": {},
        "sent": {"interactions": 9}, "stored": {"interactions": 9}, "addresses_sent": 2, "closed": True,
        "improved": True,
    }  # fmt: skip
    gate = [
        {"kind": "gate", "outcome": True, "created_at": "2026-04-01T12:00:00", "reasons": ["A gain of 0.5."]},
        {"kind": "retrain", "outcome": True, "created_at": "2026-04-01T11:00:00", "reasons": ["drift"]},
        {"kind": "gate", "outcome": False, "created_at": "2026-04-01T10:00:00", "reasons": ["No gain.", "Refused."]},
    ]
    report(result, "http://127.0.0.1:1", tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "The loop closed, and answers got better."
    assert len(lines) < 20
    assert "No gain." not in "".join(lines)
    assert "\n".join(reasons(gate)).split("\n") == [
        "",
        "The gate refused an adapter at 10:00:00:",
        "  No gain.",
        "  Refused.",
        "",
        "The gate passed an adapter at 12:00:00:",
        "  A gain of 0.5.",
    ]


def test_the_configuration_of_the_demo_is_one_that_the_daemon_takes(tmp_path: Path) -> None:
    configuration = yaml.safe_load((files(demo) / "retuned.yaml").read_text(encoding="utf-8"))
    configuration["kafka"]["bootstrap_servers"] = "broker:9092"
    configuration["gateway"]["upstreams"] = [{"url": "http://server:8000/v1"}]
    (tmp_path / "retuned.yaml").write_text(yaml.safe_dump(configuration))
    assert load(tmp_path / "retuned.yaml").policy.new_corrections == configuration["policy"]["new_corrections"]


@pytest.mark.parametrize(
    ("training", "text"),
    [
        ({}, ""),
        ({"stage": "dataset"}, "retraining: dataset"),
        ({"stage": "train", "rows": {"train": 56}}, "retraining: train"),
        ({"stage": "train", "step": 30, "steps": 40, "loss": 0.0061}, "retraining: step 30 of 40, loss 0.006"),
        ({"stage": "evaluate", "rows": {"train": 56}, "step": 40, "steps": 40, "loss": 0.1}, "retraining: evaluate"),
        (
            {"stage": "evaluate", "split": "general", "evaluated": 12, "rows": 24},
            "evaluation: 12 of 24 general questions",
        ),
        ({"stage": "promoted", "version": "8bfccec9"}, "retraining: promoted"),
    ],
)
def test_a_run_under_way_is_described_in_words(training: dict[str, Any], text: str) -> None:
    assert progress(training) == text
