"""Figures of texts that are read once are those of texts that are read at each look."""

import threading
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import duckdb
import pytest

from fixtures.feedback.history import HOUR, START, WORKLOADS, History
from fixtures.feedback.traffic import store
from retuned.consumers.settings import IngestSettings, RetentionSettings, Settings
from retuned.consumers.warehouse import judgements
from retuned.consumers.warehouse.archive import Kept, archive
from retuned.consumers.warehouse.connection import Warehouse
from retuned.monitors.quality import readings as module
from retuned.monitors.quality.figure import Figure
from retuned.monitors.quality.measure import measure
from retuned.monitors.quality.readings import Key, Readings
from retuned.monitors.settings import Settings as MonitorSettings
from retuned.monitors.settings import WindowsSettings

WINDOWS = WindowsSettings(reference_seconds=86_400, current_seconds=3 * 86_400, sample_rows=20, minimum_rows=2)


def texts_of(figures: list[Figure]) -> set[Figure]:
    return {replace(figure, value=round(figure.value, 9)) for figure in figures}


@pytest.mark.full
@pytest.mark.parametrize("seed", range(2))
def test_figures_are_those_of_reading_everything_anew(
    warehouse: Warehouse, tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retuned.monitors.quality.measure.APPROVED_MINIMUM", 2)
    monkeypatch.setattr(module, "APPROVED_ANSWERS", 8)
    history, kept, metrics = History(warehouse, seed), Readings(), set()
    settings = MonitorSettings(windows=WINDOWS)
    ingest = Settings(
        ingest=IngestSettings(deduplicate_seconds=3_600),
        retention=RetentionSettings(keep_days=3, archive=tmp_path / "archive"),
    )
    archived = 0
    for step in range(14):
        history.go_on()
        if step % 6 == 5:
            archived += archive(warehouse, ingest, Kept(), history.now, threading.Event()).rows
        if step % 6 == 3:  # a user's rows are deleted
            with judgements.changing, warehouse.transaction() as cursor:
                gone = cursor.execute("SELECT id FROM interactions WHERE user_id = 'anna'").fetchall()
                cursor.execute("DELETE FROM interactions WHERE user_id = 'anna'")
                judgements.renew(cursor, [identity for (identity,) in gone])
        for workload in WORKLOADS:
            figures = measure(warehouse, settings, workload, history.now, readings=kept)
            assert texts_of(figures) == texts_of(measure(warehouse, settings, workload, history.now))
            metrics |= {figure.metric for figure in figures}
    assert {"contradiction_rate", "tone_likeness", "helpful_rate"} <= metrics
    assert archived


def test_no_text_is_read_twice(warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Key] = []
    texts = module.texts

    def noted(cursor: duckdb.DuckDBPyConnection, workload: str, keys: list[Key]) -> object:
        read.extend(keys)
        return texts(cursor, workload, keys)

    monkeypatch.setattr(module, "texts", noted)
    history, kept = History(warehouse, 5), Readings()
    for _ in range(8):
        history.go_on()
    settings = MonitorSettings(windows=WINDOWS)
    for minute in range(3):
        measure(warehouse, settings, "support", history.now + minute * timedelta(minutes=1), readings=kept)
    assert read
    sampled = [key for key in read if key[1] >= history.now - 72 * HOUR]
    assert len(sampled) == len(set(sampled))
    before = len(read)
    kept.keep([])
    measure(warehouse, settings, "support", history.now, readings=kept)
    assert len(read) > before  # what is of no workload any more was forgotten


def test_an_id_that_is_used_again_is_another_answer(warehouse: Warehouse) -> None:
    asked = {"id": "again", "workload": "support", "model": "m", "topic": "t", "partition": 0, "offset": 0}
    asked |= {"messages": '[{"role": "user", "content": "How long does it take?"}]'}
    settings, kept, now = MonitorSettings(windows=WINDOWS.model_copy(update={"minimum_rows": 1})), Readings(), START
    for said in ("It takes 2 days.", "It takes 9 days."):
        now += 12 * HOUR
        answer = {"response": said, "conversation_id": said, "timestamp": now, "received_at": now}
        store(warehouse, "interactions", [asked | answer])
        now += HOUR
        figures = measure(warehouse, settings, "support", now, readings=kept)
    (figure,) = [figure for figure in figures if (figure.metric, figure.model) == ("contradiction_rate", "*")]
    assert (figure.value, figure.n) == (1.0, 1)
