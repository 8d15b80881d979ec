"""Two datasets compared: by the operation, the command and the page."""

import json
import re
import shutil
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from fixtures.daemon.pages import browser, page, text
from fixtures.feedback.teaching import Teacher, question
from fixtures.kafka.brokers import free_port
from fixtures.models.datasets import build_dataset, promote, teach, with_dataset
from retuned.consumers.errors import RetunedError
from retuned.daemon.cli.main import main
from retuned.daemon.operations.local import Local, opened
from retuned.daemon.operations.operation import Caller, Forbidden
from retuned.daemon.operations.rows import compare_datasets
from retuned.daemon.settings import Settings, load
from retuned.retrain.data.compared import compare


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Local]:
    settings = Settings(warehouse={"path": tmp_path / "w.duckdb"}, models={"directory": tmp_path / "models"})
    with opened(settings) as made:
        yield made


def answered_anew(local: Local, promoted: bool = False) -> tuple[str, str]:
    """Of twenty questions the second dataset answers one anew and bans the account that answered another; five are
    new."""
    teacher, own = Teacher(local.warehouse), with_dataset(local.settings)
    teach(teacher, range(19))
    teacher.correct(question(19), "No idea.", "It takes 30 days.", source="user", user_id="mallory")
    first = build_dataset(local.warehouse, own, "support", teacher.now)
    if promoted:
        promote(local.warehouse, first, "3f2a91c0")
    teacher.correct(question(0), "It takes 30 days.", "It takes 45 days.")
    teach(teacher, range(20, 25))
    local.warehouse.insert(
        "account_decisions", id="b", user_id="mallory", action="ban", reason="spam", author="ops",
        decided_at=teacher.now,
    )  # fmt: skip
    second = build_dataset(local.warehouse, own, "support", teacher.now + timedelta(minutes=1))
    return first.version, second.version


@pytest.mark.full
def test_what_differs_between_two_datasets_is_counted_and_shown(local: Local) -> None:
    before, after = answered_anew(local)
    found = compare(local.warehouse, before, after, limit=2)
    assert found["counts"] == {"added": 5, "removed": 1, "answer": 1, "split": 0, "same": 18}
    assert [one["change"] for one in found["rows"]] == ["added", "added", "removed", "answer"]
    removed, anew = found["rows"][2:]
    assert (removed["source"], removed["answer_after"], removed["why"]) == ("user", None, "banned: ops: spam")
    assert (anew["answer_before"], anew["answer_after"]) == ("It takes 30 days.", "It takes 45 days.")
    back = compare(local.warehouse, after, before, limit=None)
    assert back["counts"] == found["counts"] | {"added": 1, "removed": 5}
    same = compare(local.warehouse, after, after, limit=None)
    assert (same["counts"]["same"], same["rows"]) == (24, [])


def test_held_out_questions_move_to_the_regression_set(local: Local) -> None:
    found = compare(local.warehouse, *answered_anew(local, promoted=True), limit=None)
    moved = {(one["split_before"], one["split_after"]) for one in found["rows"] if one["change"] == "split"}
    assert ("holdout", "regression") in moved


def test_only_datasets_of_one_workload_that_exist_are_compared(local: Local) -> None:
    before, after = answered_anew(local)
    other = Teacher(local.warehouse, "sales")
    teach(other, range(12))
    sold = build_dataset(local.warehouse, with_dataset(local.settings), "sales", other.now).version
    with pytest.raises(RetunedError, match="dataset nothing: there is none"):
        compare(local.warehouse, before, "nothing", None)
    with pytest.raises(RetunedError, match="of different workloads"):
        compare(local.warehouse, before, sold, None)
    asked = compare_datasets.parse({"before": before, "after": after})
    with pytest.raises(Forbidden, match="bound to sales"):
        local.perform(compare_datasets, asked, Caller("ada", workloads=("sales",)))
    (folder,) = [one["path"] for one in local.warehouse.rows("FROM datasets") if one["version"] == before]
    (Path(folder) / "regression.parquet").unlink()
    assert compare(local.warehouse, before, after, None)["splits"] == ["train", "holdout"]
    shutil.rmtree(folder)
    with pytest.raises(RetunedError, match=f"dataset {before}: its rows are not here"):
        compare(local.warehouse, before, after, None)


def test_the_page_compares_the_last_two_unless_others_are_asked_for(local: Local) -> None:
    before, after = answered_anew(local)
    shown = text(page(local, "/workloads/support/datasets"))
    for one in ("Added 5", "Removed 1", "Answered anew 1", "The same 18", "banned: ops: spam", "It takes 45 days."):
        assert one in shown
    turned = text(page(local, f"/workloads/support/datasets?before={after}&after={before}"))
    assert "Added 1 Removed 5" in turned
    assert browser(local).get(f"/workloads/support/datasets?before={before}&after=none").status_code == 404


def test_the_command_lists_and_compares(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "retuned.yaml"
    config.write_text(
        f"warehouse: {{path: {tmp_path}/w.duckdb}}\nmodels: {{directory: {tmp_path}/models}}\n"
        f"http: {{port: {free_port()}}}\n"
    )
    with opened(load(config)) as made:
        before, after = answered_anew(made)

    def done(*arguments: str) -> str:
        assert main(["--config", str(config), "dataset", *arguments]) == 0
        return capsys.readouterr().out

    assert [one.split()[0] for one in done("list", "support").splitlines()] == ["VERSION", after, before]
    shown = done("compare", before, after, "--limit", "1")
    assert re.search(r"^counts +added 5, ", shown, re.MULTILINE)
    assert "    answer before  It takes 30 days.\n    answer after  It takes 45 days.\n" in shown
    assert "    why         banned: ops: spam\n" in shown
    assert json.loads(done("compare", before, after, "--json"))["counts"]["added"] == 5
    assert main(["--config", str(config), "dataset", "compare", before]) == 2
    assert "name two datasets" in capsys.readouterr().err
    assert main(["--config", str(config), "dataset", "compare", before, "none"]) == 1
    assert "`retuned dataset list WORKLOAD` lists them" in capsys.readouterr().err
