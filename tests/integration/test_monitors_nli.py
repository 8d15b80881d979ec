"""The NLI model: a tiny one of the right kind, once in the child process."""

import logging
import threading
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from models import tiny_classifier

from retuned.consumers.errors import ChildFailed, ConfigurationError
from retuned.monitors.hallucination import opinions
from retuned.monitors.hallucination.nli import classify
from retuned.monitors.hallucination.opinions import Answer, Opinions
from retuned.monitors.settings import QualitySettings

LABELS = ("contradiction", "neutral", "entailment")
NOW = datetime(2026, 3, 2)
ANSWERS = [Answer(str(n), "", ("It is open.",), "The store is open.", 1.0) for n in range(5)]


def certainties(model: Path, *answers: tuple[list[str], list[str]]) -> list[float]:
    found: list[float] = classify({"model": str(model), "answers": answers}, lambda _: None)["certainties"]
    return found


def test_a_sentence_is_as_certain_as_its_best_passage_and_an_answer_as_its_worst_sentence(tmp_path: Path) -> None:
    model = tiny_classifier(tmp_path, LABELS)
    sentences, passages = ["We take it back.", "The store is open on monday."], ["Parcels cost 5 euro. " * 200, "Open."]
    alone = certainties(model, *[([s], [p]) for s in sentences for p in passages])
    (together, nothing) = certainties(model, (sentences, passages), ([], passages))
    assert len(set(alone)) == 4
    assert together == pytest.approx(min(max(alone[:2]), max(alone[2:])), abs=1e-5)
    assert nothing == 1.0


def test_its_verdicts_are_a_source_of_their_own(tmp_path: Path) -> None:
    settings = QualitySettings(nli_model=tiny_classifier(tmp_path, LABELS, surely=0))
    found = Opinions(settings, threading.Event()).rates("support", ANSWERS, NOW)
    assert found.keys() == {"nli"}
    assert (found["nli"][0], found["nli"][3]) == (1.0, 5)


def test_a_model_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"none of its labels is entailment \(good, bad\)"):
        certainties(tiny_classifier(tmp_path, ("good", "bad")), (["Yes."], ["No."]))
    with pytest.raises(ConfigurationError, match="cannot be loaded"):
        certainties(tmp_path / "gone", (["Yes."], ["No."]))


def test_a_failing_model_is_told_of_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def fail(*_: Any) -> list[float]:
        raise ChildFailed("nli: out of memory")

    monkeypatch.setattr(opinions, "entailments", fail)
    judge = Opinions(QualitySettings(nli_model=Path("there")), threading.Event())
    with caplog.at_level(logging.WARNING):
        for hour in (0, 2, 4):
            assert judge.rates("support", ANSWERS, NOW + timedelta(hours=hour)) == {}
    (told,) = caplog.records
    assert "out of memory" in told.getMessage()
