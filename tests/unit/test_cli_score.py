"""`retuned score`: files, standard input, errors, exams."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from retuned.consumers.settings import WarehouseSettings
from retuned.consumers.warehouse.opening import open_existing, open_warehouse
from retuned.daemon.cli.main import main
from retuned.retrain.scoring import exam

ROWS = [
    {"id": "wrong", "question": "How long?", "approved": "It takes 3 days.", "answer": "It takes 4 days."},
    {"id": "right", "question": "How long?", "approved": "It takes 3 days.", "answer": "It takes three days."},
    {"id": "open", "question": "How long?", "approved": "It takes 3 days.", "answer": "In 3 days it is with you."},
]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "retuned.yaml"
    file.write_text(yaml.safe_dump({"warehouse": {"path": str(tmp_path / "w.duckdb")}}))
    return file


def written(file: Path, rows: list[Any]) -> str:
    file.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return str(file)


def test_each_answer_has_a_score_or_the_reason_why_it_has_none(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = written(tmp_path / "rows.jsonl", ROWS)
    assert main(["--config", str(config), "score", file, "--metric", "facts", "--json"]) == 0
    found = {one["id"]: one for one in map(json.loads, capsys.readouterr().out.splitlines())}
    assert found["wrong"] == {
        "id": "wrong",
        "score": 0.0,
        "abstained": False,
        "alarm": True,
        "why": "states 4 days, not 3 days",
    }
    assert (found["right"]["score"], found["right"]["alarm"]) == (1.0, False)
    assert (found["open"]["score"], found["open"]["abstained"], found["open"]["alarm"]) == (None, True, False)
    assert found["open"]["why"]
    assert main(["--config", str(config), "score", file]) == 0
    shown = capsys.readouterr()
    assert [line.split("\t")[2] for line in shown.out.splitlines()] == ["ALARM", "no alarm", "abstained"]
    assert shown.err.endswith("3 rows, 2 judged, mean 0.500, 1 alarms\n")
    assert shown.out.splitlines()[0] == "wrong\t0.000\tALARM\tstates 4 days, not 3 days"


def test_a_scorer_of_groundedness_reads_passages(
    config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    passages = ["Returns are accepted within 30 days of delivery."]
    rows = [
        {"id": 1, "question": "How long?", "passages": passages, "answer": "Returns are accepted within 30 days."},
        {"id": 2, "question": "How long?", "passages": passages[0], "answer": "Returns are accepted within 90 days."},
        {"id": 3, "question": "How long?", "passages": [], "answer": "30 days."},
    ]
    monkeypatch.setattr("sys.stdin", io.StringIO("\ufeff" + "\n".join(map(json.dumps, rows))))
    assert main(["--config", str(config), "score", "-", "--scorer", "grounding", "--json"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(one["id"], one["alarm"], one["abstained"]) for one in found] == [
        ("1", False, False),
        ("2", True, False),
        ("3", False, True),
    ]


@pytest.mark.parametrize(
    ("row", "error"),
    [
        ("{", "line 2: expected a JSON object"),
        ("[1]", "line 2: expected a JSON object, not list"),
        ({"question": "q", "approved": "a", "answer": "a"}, "line 2: id is missing"),
        ({"id": "x", "question": "q", "answer": "a"}, "line 2: approved is missing"),
        ({"id": "x", "question": "q", "approved": 3, "answer": "a"}, "line 2: approved: expected a text, not int"),
    ],
)
def test_an_error_names_the_line_and_the_key(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], row: Any, error: str
) -> None:
    assert main(["--config", str(config), "score", written(tmp_path / "rows.jsonl", [ROWS[0], row])]) == 1
    assert error in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["--exam", "rows.jsonl"]])
def test_a_file_or_the_exam_is_scored(config: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert main(["--config", str(config), "score", *arguments]) == 2
    assert "give one of FILE and --exam" in capsys.readouterr().err


def test_a_file_without_rows_is_refused(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", str(config), "score", written(tmp_path / "rows.jsonl", [])]) == 1
    assert "holds no rows" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["nowhere.jsonl"], "nowhere.jsonl cannot be read"),
        (["--exam", "--metric", "judge"], "evaluate.judge_url: null"),
        (["--exam", "--scorer", "llm"], "quality.judge_url: null"),
    ],
)
def test_what_is_missing_is_named(
    config: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], error: str
) -> None:
    assert main(["--config", str(config), "score", *arguments]) == 1
    assert error in capsys.readouterr().err


def test_the_exit_status_of_an_exam_states_whether_the_metric_may_decide(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--config", str(config), "score", "--exam", "--metric", "facts"]) == 0
    assert "facts may decide" in capsys.readouterr().out
    assert main(["--config", str(config), "score", "--exam", "--metric", "text", "--json"]) == 4
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert (lines[0]["pairs_of"], lines[0]["pairs"], lines[0]["judged"]) == ("all", 320, 1.0)
    assert lines[-1]["may_decide"] is False
    assert {"kind values", "language de"} <= {line.get("pairs_of") for line in lines}


def test_the_exam_of_a_workload_is_stored(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = WarehouseSettings(path=config.parent / "w.duckdb")
    assert main(["--config", str(config), "score", "--exam", "--workload", "support"]) == 0
    assert "the result is not stored" in capsys.readouterr().err
    open_warehouse(settings).close()
    assert main(["--config", str(config), "score", "--exam", "--workload", "support"]) == 0
    warehouse = open_existing(settings)
    marks = exam.newest(warehouse.cursor(), "support", "facts", exam.SHIPPED)
    warehouse.close()
    assert sum(mark.pairs for mark in marks) == 320
