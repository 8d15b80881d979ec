"""The detector: a tiny model of each kind, once in the child process."""

import logging
import threading
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from fixtures.models.tiny import tiny_classifier, tiny_hhem
from fixtures.servers.judges import asked
from retuned.consumers.common.process import run_child
from retuned.consumers.errors import ChildFailed, ConfigurationError
from retuned.monitors.hallucination import detector
from retuned.monitors.hallucination.abstention import MOST_CHARACTERS
from retuned.monitors.hallucination.detector import classify
from retuned.monitors.hallucination.opinions import Opinions
from retuned.monitors.hallucination.scorer import Abstention, Answer, Judgement, ScorerFailed
from retuned.monitors.settings import QualitySettings

LABELS = ("contradiction", "neutral", "entailment")
NOW = datetime(2026, 3, 2)
ANSWERS = [Answer(str(n), "", ("It is open.",), "The store is open.") for n in range(5)]


def judged(model: Path, *answers: tuple[str, list[str]], question: str = "") -> list[tuple[float, list[str]]]:
    shown = [{"question": question, "response": response, "passages": passages} for response, passages in answers]
    found: list[dict[str, Any]] = []
    classify({"model": str(model), "answers": shown}, found.append)
    return [one["judged"] for one in found if "judged" in one]


def certainties(model: Path, *answers: tuple[str, list[str]]) -> list[float]:
    return [score for score, _ in judged(model, *answers)]


def test_a_sentence_is_as_certain_as_its_best_passage_and_an_answer_as_its_sentences_in_the_mean(
    tmp_path: Path,
) -> None:
    model = tiny_classifier(tmp_path, LABELS)
    said, passages = ["We take it back.", "The store is open on monday."], ["Parcels cost 5 euro. " * 200, "Open."]
    alone = certainties(model, *[(s, [p]) for s in said for p in passages])
    (together, nothing) = certainties(model, (" ".join(said), passages), ("", passages))
    assert len(set(alone)) == 4
    assert together == pytest.approx((max(alone[:2]) + max(alone[2:])) / 2, abs=1e-5)
    assert nothing == 1.0


def test_a_long_answer_is_no_less_certain_than_its_sentences(tmp_path: Path) -> None:
    model = tiny_classifier(tmp_path, LABELS)
    said = "We take it back."
    (once, often) = certainties(model, (said, ["Open."]), (" ".join([said] * 12), ["Open."]))
    assert often == pytest.approx(once, abs=1e-5)


def test_no_text_is_too_long(tmp_path: Path) -> None:
    model = tiny_classifier(tmp_path, LABELS)
    endless = "we take it back and please tell me about the store " * 200
    assert all(0 <= score <= 1 for score in certainties(model, (endless, ["Open."]), (endless, [endless])))


def test_a_long_passage_is_read_to_its_end(tmp_path: Path) -> None:
    model = tiny_classifier(tmp_path, LABELS)
    for word in ("hello ", "we "):
        begin = word * 130  # more than the 128 tokens of the model
        here, there = certainties(model, *(("days", [begin + end]) for end in ("lamp", "open on monday")))
        assert here != there


def test_the_sentences_that_are_not_entailed_are_named(tmp_path: Path) -> None:
    said = ["We take it back.", "The store is open."]
    surely = (tiny_classifier(tmp_path / str(label), LABELS, surely=label) for label in (0, 2))
    (neither,), (both,) = (judged(model, (" ".join(said), ["Open."])) for model in surely)
    assert neither == (pytest.approx(0, abs=0.01), said)
    assert both == (pytest.approx(1, abs=0.01), [])


@pytest.mark.parametrize("question", ["", "When is it open?"])
def test_a_model_of_tokens_marks_what_is_not_supported(tmp_path: Path, question: str) -> None:
    labels = ("supported", "hallucinated")
    surely = (tiny_classifier(tmp_path / str(n), labels, surely=n, of_tokens=True) for n in (0, 1))
    passages = ["The store is open on monday. " * 50, "Hello."]
    (right,), (wrong,) = (judged(model, ("We take it back.", passages), question=question) for model in surely)
    assert right == (pytest.approx(1, abs=0.01), [])
    assert wrong == (pytest.approx(0, abs=0.01), ["We take it back."])
    three = tiny_classifier(tmp_path / "three", LABELS, of_tokens=True)
    with pytest.raises(ConfigurationError, match="two labels, not contradiction, neutral, entailment"):
        judged(three, ("Yes.", ["No."]))


@pytest.mark.parametrize("supports", [0, 1])
def test_hhem_judges_the_answer_as_a_whole(tmp_path: Path, supports: int) -> None:
    """Its folder has weights, a tokenizer and code, which is not run."""
    model = tiny_hhem(tmp_path, surely=supports)
    (tmp_path / "modeling_hhem_v2.py").write_text("raise SystemExit('run')")
    long = "The store is open on monday. " * 2_000
    assert certainties(model, ("We take it back.", ["Open."]), (long, [long])) == pytest.approx(
        [supports] * 2, abs=0.01
    )


def test_its_verdicts_are_alarms(tmp_path: Path) -> None:
    settings = QualitySettings(detector=tiny_classifier(tmp_path, LABELS, surely=0))
    found = asked(Opinions(settings, threading.Event()), ANSWERS, NOW)
    assert [(one.interaction_id, one.alarm) for one in found] == [(str(n), True) for n in range(5)]


def test_a_model_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"none of its labels is entailment \(good, bad\)"):
        certainties(tiny_classifier(tmp_path, ("good", "bad")), ("Yes.", ["No."]))
    with pytest.raises(ConfigurationError, match=r"quality\.detector: .* cannot be loaded"):
        certainties(tmp_path / "gone", ("Yes.", ["No."]))


def test_the_answers_that_it_had_time_for_have_verdicts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The child is killed at the end of its time; at a later call the answer at which it stopped is known."""
    children = tmp_path / "children"
    children.mkdir()
    (children / "slow.py").write_text(
        "import sys, time\n"
        "from retuned.consumers.child import child_main\n"
        "from retuned.monitors.hallucination import detector\n"
        "def scores(folder):\n"
        "    time.sleep(30 if folder.endswith('huge') else 0)\n"
        "    def score(answer):\n"
        "        time.sleep(30 if answer['response'] == 'slow' else 0)\n"
        "        return 0.25, ['all of it']\n"
        "    return score\n"
        "detector._loaded = scores\n"
        "child_main(detector.classify)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(children))
    monkeypatch.setattr(detector, "run_child", lambda _, *job, **more: run_child("slow", *job, **more))
    scorer = detector.Detector(tmp_path, 10.0, threading.Event())
    slow = replace(ANSWERS[3], response="slow")
    *found, (stopped, interrupted) = scorer.judge([*ANSWERS[:3], slow, ANSWERS[4]])
    assert found == [(answer, Judgement(0.25, ("all of it",))) for answer in ANSWERS[:3]]
    assert isinstance(interrupted, Abstention)
    assert (stopped, interrupted.reason) == (slow, "interrupted")
    ((stopped, failed),) = scorer.judge([slow, ANSWERS[4]])
    assert isinstance(failed, Abstention)
    assert (stopped, failed.reason) == (slow, "failed")
    assert "took longer than 10 s" in failed.error
    with pytest.raises(ScorerFailed, match=r"took longer than 0\.01 s"):
        detector.Detector(tmp_path / "huge", 0.01, threading.Event()).judge(ANSWERS)


def test_as_much_is_read_as_by_the_scorer_of_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = []
    monkeypatch.setattr(detector, "run_child", lambda _, job, *__, **___: jobs.append(job))
    long = "The store is open. " * MOST_CHARACTERS
    detector.Detector(tmp_path, 10.0, threading.Event()).judge([Answer("a", long, (long, long), long)])
    ((shown,),) = (job["answers"] for job in jobs)
    assert {len(shown["question"]), len(shown["response"]), len("".join(shown["passages"]))} == {MOST_CHARACTERS}


def test_a_failing_model_is_logged_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def fail(*_: Any, **__: Any) -> dict[str, Any]:
        raise ChildFailed("detector: out of memory")

    monkeypatch.setattr(detector, "run_child", fail)
    opinions = Opinions(QualitySettings(detector=Path("there")), threading.Event())
    with caplog.at_level(logging.WARNING):
        for hour in (0, 2, 4):
            assert asked(opinions, ANSWERS, NOW + timedelta(hours=hour)) == []
    (told,) = caplog.records
    assert "out of memory" in told.getMessage()
