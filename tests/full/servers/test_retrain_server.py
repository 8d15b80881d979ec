"""An evaluation on a server, here a double of vLLM: adapters come and go, and errors say what to do."""

import copy
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from peft import LoraConfig, get_peft_model

from fixtures.models.tiny import tiny_llama
from fixtures.models.trainings import rows
from fixtures.servers.models import VllmDouble, serving
from retuned.consumers.errors import ConfigurationError, RetunedError
from retuned.retrain import versions
from retuned.retrain.data.dataset import Dataset
from retuned.retrain.decision import evaluate as evaluation
from retuned.retrain.decision.evaluate import evaluate
from retuned.retrain.decision.evaluation import BASE, CANDIDATE, CHAMPION, LOGGED
from retuned.retrain.decision.power import EXAMPLES, conversations_needed
from retuned.retrain.generation import server
from retuned.retrain.runners import local
from retuned.retrain.settings import (
    EvaluateSettings,
    GateSettings,
    IncumbentSettings,
    ModelsSettings,
    Settings,
    TrainSettings,
)
from retuned.retrain.training.base_model import load_model
from retuned.retrain.versions import Version

AS_GOOD = {"url": "https://api.example/v1", "model": "mini", "margin": 0.1, "wrong_share": 0.2}
pytestmark = pytest.mark.usefixtures("one_thread")


class Shop:
    """A base model, a champion and a candidate where runs leave them, and a dataset."""

    def __init__(self, folder: Path) -> None:
        self.base, self.models = tiny_llama(folder / "base"), folder / "models"
        self.champion, self.candidate = (
            self._adapter(seed, self.models / "support" / name)
            for seed, name in enumerate(("3f2a91c0", "runs/7/train/adapter"), 1)
        )
        data = folder / "dataset"
        data.mkdir()
        columns = [row | {"topic": None, "origin": None, "kind": "correction"} for row in rows(4)]
        for split in ("train", "holdout"):
            pq.write_table(pa.Table.from_pylist(columns[:3]), data / f"{split}.parquet")
        pq.write_table(pa.Table.from_pylist(columns[3:]), data / "regression.parquet")
        counts = {"holdout": 3, "regression": 1}
        self.dataset = Dataset("d1", "support", datetime(2026, 11, 1), data, counts, 0, {})
        self.serving = Version(
            "3f2a91c0", "support", datetime(2026, 11, 1), self.champion, str(self.base),
            versions.base_hash(self.base), None, "d0", "6", {}, None,
        )  # fmt: skip

    def _adapter(self, seed: int, folder: Path) -> Path:
        torch.manual_seed(seed)
        config = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
        get_peft_model(load_model(self.base, torch.float32), config).save_pretrained(folder)
        return folder

    def settings(self, evaluate: EvaluateSettings) -> Settings:
        models = ModelsSettings(base=self.base, directory=self.models)
        return Settings(
            models=models,
            train=TrainSettings(threads=1, max_length=256),
            evaluate=evaluate.model_copy(update={"general_examples": 0}),
        )

    def evaluate(self, settings: EvaluateSettings, folder: Path, champion: bool = True) -> list[Any]:
        found, _ = evaluate(
            self.dataset, self.serving if champion else None, self.candidate, self.settings(settings), "float32",
            folder, logged={"r0": "two weeks"},
        )  # fmt: skip
        return found


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return Shop(tmp_path_factory.mktemp("shop"))


@pytest.fixture
def double(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> Iterator[VllmDouble]:
    monkeypatch.setattr(server, "_PAUSES", (0.01, 0.01))
    with serving(shop.base) as found:
        yield found


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The child's side runs in this process: its seconds of importing are not what these tests are about."""

    def run_child(_: str, job: dict[str, Any], __: Path, **more: Any) -> dict[str, Any]:
        monkeypatch.setenv(*next(iter(more["environment"].items())))
        return evaluation.work(json.loads(json.dumps(job)), lambda _: None)

    monkeypatch.setattr(local, "run_child", run_child)


def test_an_evaluation_loads_adapters_under_names_of_its_own_and_unloads_them(
    shop: Shop, double: VllmDouble, tmp_path: Path
) -> None:
    double.token = "s3cret"
    found = shop.evaluate(double.settings(token="s3cret"), tmp_path)
    asked = {(row.model, row.split, row.row_id) for row in found}
    assert asked == {(model, "holdout", f"r{n}") for model in (BASE, CHAMPION, CANDIDATE) for n in range(3)} | {
        (CHAMPION, "regression", "r3"),
        (CANDIDATE, "regression", "r3"),
        (LOGGED, "holdout", "r0"),
    }
    names = {name for name in (one["model"] for one in double.asked) if name != "base"}
    hashes = {versions.content_hash(path) for path in (shop.champion, shop.candidate)}
    assert {name.split("-evaluation-")[0] for name in names} == {f"support@{one}" for one in hashes}
    assert {change[1:] for change in double.history} == names
    assert double.loaded == {}
    assert "s3cret" not in (tmp_path / "evaluate.job.json").read_text()
    assert {row.loss for row in found} == {None}
    assert all(row.latency_seconds > 0 and row.output_tokens > 0 for row in found if row.model != LOGGED)


@pytest.mark.usefixtures("in_process")
class TestInProcess:
    def test_base_and_champion_are_asked_again_only_what_is_new(self, shop: Shop, tmp_path: Path) -> None:
        here = EvaluateSettings(max_new_tokens=8)
        shop.evaluate(here, tmp_path)
        (file,) = shop.models.glob("*/answers.jsonl")
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        file.write_text("".join(json.dumps([key, "kept", *rest]) + "\n" for key, _, *rest in lines))
        other = copy.copy(shop)
        other.candidate = shop._adapter(3, tmp_path / "adapter")
        found = other.evaluate(here, tmp_path)
        assert {row.model for row in found if row.output == "kept"} == {BASE, CHAMPION}
        assert {row.model for row in found if row.output != "kept"} == {CANDIDATE, LOGGED}
        assert all(row.latency_seconds > 0 for row in found if row.model != LOGGED)
        file.unlink()

    @pytest.mark.parametrize(
        ("more", "serves", "incumbent", "asked"),
        [
            ({}, False, AS_GOOD, conversations_needed(GateSettings(), 0.1, 0.2, 0.8)),
            ({}, True, AS_GOOD, EXAMPLES),
            ({}, False, {**AS_GOOD, "wrong_share": None}, EXAMPLES),
            ({"maximum_examples": 30}, False, AS_GOOD, 30),
        ],
        ids=["as_the_gate_needs", "a_version_serves", "wrong_share_is_unknown", "as_configured"],
    )
    def test_beside_an_incumbent_as_many_questions_are_asked_as_the_gate_needs(
        self, shop: Shop, tmp_path: Path, more: dict[str, Any], serves: bool, incumbent: dict[str, Any], asked: int
    ) -> None:
        known = [row | {"kind": "accepted" if number % 5 else "correction"} for number, row in enumerate(rows(500))]
        columns = [row | {"topic": None, "origin": None} for row in known]
        pq.write_table(pa.Table.from_pylist(columns), tmp_path / "holdout.parquet")
        shutil.copy(shop.dataset.path / "train.parquet", tmp_path)
        dataset = replace(shop.dataset, path=tmp_path, rows={"holdout": 500, "regression": 0})
        own = EvaluateSettings(max_new_tokens=1, batch_size=100, **more)
        settings = shop.settings(own).model_copy(update={"incumbent": IncumbentSettings.model_validate(incumbent)})
        logged = {str(row["row_id"]): "two weeks" for row in known}
        champion = shop.serving if serves else None
        found, figures = evaluate(dataset, champion, shop.candidate, settings, "float32", tmp_path, logged=logged)
        assert sum(row.model == CANDIDATE for row in found) == asked
        assert figures["holdout_rows_unasked"] == 500 - asked

    def test_small_topics_are_asked_further_questions_that_count_for_them_alone(
        self, shop: Shop, tmp_path: Path
    ) -> None:
        known = [row | {"topic": "rare" if n < 20 else "main", "origin": None} for n, row in enumerate(rows(400))]
        pq.write_table(pa.Table.from_pylist(known), tmp_path / "holdout.parquet")
        shutil.copy(shop.dataset.path / "train.parquet", tmp_path)
        dataset = replace(shop.dataset, path=tmp_path, rows={"holdout": 400, "regression": 0})
        settings = shop.settings(EvaluateSettings(max_new_tokens=1, batch_size=100, maximum_examples=60))
        found, figures = evaluate(dataset, shop.serving, shop.candidate, settings, "float32", tmp_path)
        asked = {split: {row.row_id for row in found if row.split == split} for split in ("holdout", "slices")}
        assert (len(asked["holdout"]), figures["holdout_rows_unasked"]) == (60, 340)
        assert not asked["holdout"] & asked["slices"]
        of_rare = {f"r{n}" for n in range(20)}
        assert len(of_rare & (asked["holdout"] | asked["slices"])) == 16
        further = [row for row in found if row.split == "slices"]
        assert {tuple(row.slices) for row in further} == {("topic:rare",)}
        assert {row.model for row in further} == {CHAMPION, CANDIDATE}
        assert all(row.score is not None or row.detail for row in further)

    def test_what_is_unloaded_is_also_unloaded_after_a_failure(
        self, shop: Shop, double: VllmDouble, tmp_path: Path
    ) -> None:
        double.interfere = lambda number: (400, {"error": {"message": "too long"}}) if number == 4 else None
        double.loaded["support@3f2a91c0"] = str(shop.champion)  # somebody is served by it
        with pytest.raises(RetunedError, match=r"evaluate\.url: http://.*/v1/completions answers with status 400: too"):
            shop.evaluate(double.settings(), tmp_path)
        assert list(double.loaded) == ["support@3f2a91c0"]
        assert len(double.history) == 4

    def test_an_adapter_that_a_killed_evaluation_left_is_taken_and_unloaded(
        self, shop: Shop, double: VllmDouble, tmp_path: Path
    ) -> None:
        shop.evaluate(double.settings(), tmp_path)
        left = double.history[0][1:]
        double.answer("/v1/load_lora_adapter", {"lora_name": left, "lora_path": str(shop.champion)}, None)
        shop.evaluate(double.settings(), tmp_path)
        assert double.loaded == {}
        assert double.history.count(f"+{left}") == 2

    def test_what_passes_is_tried_again(self, shop: Shop, double: VllmDouble, tmp_path: Path) -> None:
        double.interfere = lambda number: (503, "busy") if number in (2, 3) else None
        assert len(shop.evaluate(double.settings(batch_size=1), tmp_path)) == 12
        double.interfere = lambda _: (503, "busy")
        with pytest.raises(RetunedError, match="answers with status 503: busy"):
            shop.evaluate(double.settings(), tmp_path)

    @pytest.mark.parametrize("answer", [{"object": "error"}, "<html>", {"choices": []}, [1]])
    def test_what_is_no_answer_of_completions_is_an_error_that_names_the_server(
        self, shop: Shop, double: VllmDouble, tmp_path: Path, answer: Any
    ) -> None:
        double.interfere = lambda _: (200, answer)
        with pytest.raises(RetunedError, match=r"/v1/completions does not answer as OpenAI's API does"):
            shop.evaluate(double.settings(), tmp_path)
        assert double.loaded == {}

    def test_no_more_requests_are_open_than_prompts_at_once(
        self, shop: Shop, double: VllmDouble, tmp_path: Path
    ) -> None:
        shop.evaluate(double.settings(batch_size=2), tmp_path)
        assert double.at_once == 2

    def test_a_server_that_ignores_the_adapter_is_found_out(
        self, shop: Shop, double: VllmDouble, tmp_path: Path
    ) -> None:
        double.uses_adapters = False
        with pytest.raises(RetunedError, match=r"answers all 3 rows with support@.*as it does without"):
            shop.evaluate(double.settings(), tmp_path, champion=False)

    def test_the_server_may_see_the_models_elsewhere(self, shop: Shop, double: VllmDouble, tmp_path: Path) -> None:
        shutil.copytree(shop.models, tmp_path / "mnt")
        paths = []
        load = double._load
        double._load = lambda name, path: (paths.append(path), load(name, path))[1]  # type: ignore[method-assign]
        shop.evaluate(double.settings(models_directory=tmp_path / "mnt"), tmp_path / "work")
        assert paths == [str(tmp_path / "mnt/support/3f2a91c0"), str(tmp_path / "mnt/support/runs/7/train/adapter")]

    @pytest.mark.parametrize(
        ("change", "keys", "says"),
        [
            ({"loads": False}, {}, r"status 404: Not Found\..*VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"),
            ({}, {"models_directory": "/nowhere"}, r"No adapter found for /nowhere.*\(evaluate\.models_directory\)"),
            ({"token": "right"}, {"token": "wrong"}, r"status 401: Unauthorized; set evaluate\.token or"),
            ({}, {"url": "http://127.0.0.1:9/v1"}, r"http://127.0.0.1:9/v1 does not answer .*start the server"),
        ],
        ids=["loads none", "other files", "wrong token", "away"],
    )
    def test_errors_say_what_to_do(
        self, shop: Shop, double: VllmDouble, tmp_path: Path, change: dict[str, Any], keys: dict[str, Any], says: str
    ) -> None:
        for name, value in change.items():
            setattr(double, name, value)
        settings = EvaluateSettings(**{"engine": "server", "url": double.url} | keys)
        with pytest.raises(RetunedError, match=says):
            shop.evaluate(settings, tmp_path)


def test_a_server_must_be_named_and_its_token_be_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="engine is server: name it with url"):
        EvaluateSettings(engine="server")
    with pytest.raises(ValueError, match="credentials in the address are not sent; put a token into token or"):
        EvaluateSettings(engine="server", url="http://me:pw@host/v1")
    missing = EvaluateSettings(engine="server", url="http://host/v1", token_file=tmp_path / "none")
    with pytest.raises(ConfigurationError, match=r"evaluate\.token_file: .*none cannot be read"):
        server.check(missing)


def test_check_names_the_base_model_on_the_server(double: VllmDouble) -> None:
    assert server.check(double.settings()) == f"base at {double.url} answers"
    assert server.check(EvaluateSettings()) is None
