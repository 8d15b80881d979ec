"""Values are compared in a child process."""

import json
import logging
import threading
from pathlib import Path
from typing import Any

import pytest

from retuned.consumers.errors import Cancelled
from retuned.monitors.hallucination import grounding
from retuned.monitors.hallucination.grounding import FEW, Grounding, work
from retuned.monitors.hallucination.scorer import Abstention, Answer, Judgement
from retuned.monitors.settings import QualitySettings

PASSAGE = "Parcels within the country take two days."
SAID = ("Parcels take two days.", "Parcels take nine days.", "Paczka dotrze do Pana w ciągu dwóch dni.")


def answers(count: int) -> list[Answer]:
    return [Answer(str(n), "How long?", (PASSAGE,), SAID[n % len(SAID)]) for n in range(count)]


def scorer(stop: threading.Event | None = None, **settings: float) -> Grounding:
    return Grounding(QualitySettings(**settings), stop or threading.Event())  # type: ignore[arg-type]


def test_many_answers_are_judged_as_few_are() -> None:
    few, many = scorer().judge(answers(FEW)), scorer().judge(answers(3 * FEW))
    assert [answer.id for answer, _ in many] == [str(n) for n in range(3 * FEW)]
    assert many[:FEW] == few
    right, wrong, foreign = (found for _, found in few[:3])
    assert right == Judgement(1.0)
    assert isinstance(wrong, Judgement)
    assert wrong.score < QualitySettings().grounding_threshold
    assert wrong.why == ("nine days: the passages have two days",)
    assert foreign == Abstention("language")


def test_long_texts_get_the_same_verdict_among_many_answers() -> None:
    long = Answer("long", "How long?", (PASSAGE, "It is made of wood. " * 5_000), SAID[1])
    ((_, alone),) = scorer().judge([long])
    assert scorer().judge([*answers(2 * FEW), long])[-1] == (long, alone)
    assert alone == Abstention("too_long")


def test_what_is_not_judged_in_time_waits_and_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert scorer(judging_seconds=1e-6).judge(answers(2 * FEW)) == []
    assert f"0 of {2 * FEW} answers were compared" in caplog.text


def test_an_answer_that_raises_an_error_stops_no_other(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def breaks(answer: Answer) -> Judgement:
        if answer.id == "1":
            raise OverflowError("too large")
        return Judgement(1.0)

    def at_once(_: str, job: dict[str, Any], *__: Any, on_progress: Any, **___: Any) -> dict[str, Any]:
        return work(json.loads(json.dumps(job)), lambda line: on_progress(json.loads(json.dumps(line))))

    monkeypatch.setattr(grounding, "judged", breaks)
    monkeypatch.setattr(grounding, "run_child", at_once)
    for count in (3, 3 * FEW):
        caplog.clear()
        found = [result for _, result in scorer().judge(answers(count))]
        assert (found[0], found[2:]) == (Judgement(1.0), [Judgement(1.0)] * (count - 2))
        assert isinstance(found[1], Abstention)
        assert found[1].reason == "failed"
        (logged,) = caplog.records
        assert "answer 1 cannot be compared" in logged.getMessage()
        assert "OverflowError: too large" in logged.getMessage()


def test_it_stops_when_told() -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(Cancelled):
        scorer(stop).judge(answers(2 * FEW))


def test_texts_that_it_was_shown_do_not_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert len(scorer().judge(answers(2 * FEW))) == 2 * FEW
    assert list(tmp_path.iterdir()) == []
