"""Training at a provider, step by step: what is sent, what is never sent, and what is never done twice."""

import json
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from provider_double import BASE, LOST, Provider, error, serving

from retuned.consumers.common import tool_calls
from retuned.consumers.errors import Cancelled, ConfigurationError, RetunedError
from retuned.consumers.settings import PrivacySettings
from retuned.retrain.data import chat
from retuned.retrain.data.dataset import Dataset
from retuned.retrain.data.redaction import PersonalData, check_redacted
from retuned.retrain.generation import models
from retuned.retrain.generation.provider import ANSWERS, ProviderEngine, Used, used
from retuned.retrain.openai_api import Client, NoAnswer, Refused
from retuned.retrain.settings import EvaluateSettings, ModelsSettings, Settings, TrainSettings
from retuned.retrain.training import provider as training
from retuned.retrain.versions import Version, base_hash

RUN = "20260302T090000-abc123"


def rows(count: int, start: int = 0) -> list[dict[str, Any]]:
    """Questions with their right answer, as datasets have them."""
    return [
        {
            "row_id": f"r{number}",
            "messages": json.dumps([{"role": "user", "content": f"how long do i have to return order {number * 37}"}]),
            "completion": f"you have {number % 7} days",
            "context": None,
        }
        for number in range(start, start + count)
    ]


@pytest.fixture
def provider() -> Iterator[Provider]:
    with serving() as double:
        yield double


class Shop:
    """A dataset and what a training on it needs; the child's work is done in this process."""

    def __init__(self, folder: Path, provider: Provider) -> None:
        self.provider, self.folder, self.files = provider, folder / "train", folder / "dataset"
        self.emitted: list[dict[str, Any]] = []
        self.waited: list[float] = []
        self.on_wait: Callable[[float], None] = self.waited.append
        self.settings = Settings(
            models=ModelsSettings(base=BASE, directory=folder / "models"),
            train=TrainSettings(engine="api", api_url=provider.url, api_key=provider.key, epochs=2),
        )
        self.write("train", rows(12))
        self.write("validation", rows(3, 12))
        self.write("holdout", rows(3, 20))

    def write(self, split: str, of: list[dict[str, Any]]) -> None:
        self.files.mkdir(exist_ok=True)
        schema = None if of else pa.Table.from_pylist(rows(1)).schema
        pq.write_table(pa.Table.from_pylist(of, schema=schema), self.files / f"{split}.parquet")

    @property
    def dataset(self) -> Dataset:
        return Dataset("d1", "Support: refunds", datetime(2026, 3, 2), self.files, {}, 0, {})

    def train(self, parent: Version | None = None) -> dict[str, Any]:
        return training.train(self.dataset, parent, self.settings, RUN, self.folder, on_progress=self.emitted.append)

    def posts(self, path: str) -> int:
        return self.provider.asked.count(("POST", path))


@pytest.fixture
def shop(tmp_path: Path, provider: Provider, monkeypatch: pytest.MonkeyPatch) -> Shop:
    made = Shop(tmp_path, provider)

    def run_child(_: str, job: dict[str, Any], folder: Path, **keys: Any) -> dict[str, Any]:
        assert provider.key not in json.dumps(job)
        folder.mkdir(parents=True, exist_ok=True)
        monkeypatch.setenv(training.TOKEN, keys["environment"][training.TOKEN])
        return training.work(job, made.emitted.append)

    real = training.client

    def client(settings: TrainSettings, token: str | None, **more: Any) -> Client:
        return real(settings, token, **{**more, "wait": lambda seconds: made.on_wait(seconds)})

    monkeypatch.setattr(training, "run_child", run_child)
    monkeypatch.setattr(training, "client", client)
    return made


def test_files_and_job_are_what_openai_documents(shop: Shop) -> None:
    result = shop.train()
    provider = shop.provider
    (body,) = provider.bodies["/v1/fine_tuning/jobs"]
    assert body == {
        "model": BASE,
        "training_file": "file-0-train",
        "validation_file": "file-1-validation",
        "suffix": "support-refunds",
        "seed": 0,
        "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2}}},
        "metadata": {"retuned_run": RUN, "workload": "Support: refunds"},
    }
    assert provider.lines("train")[0] == {
        "messages": [
            {"role": "user", "content": "how long do i have to return order 0"},
            {"role": "assistant", "content": "you have 0 days"},
        ]
    }
    assert [len(provider.lines(split)) for split in ("train", "validation")] == [12, 3]
    assert provider.files == {}  # deleted once the job is done
    model = provider.jobs["ftjob-0"]["fine_tuned_model"]
    assert (result["provider_model"], result["job"], result["epochs"]) == (model, "ftjob-0", 2)
    assert result["tokens"] == provider.jobs["ftjob-0"]["trained_tokens"]
    assert (result["train_loss"], result["validation_loss"]) == (1.25, 1.375)
    kept = json.loads((shop.folder / "adapter" / "provider_model.json").read_text())
    assert kept == {"model": model, "base": BASE, "url": provider.url, "job": "ftjob-0"}
    assert shop.train() == result  # what is done is done
    assert shop.posts("/v1/fine_tuning/jobs") == 1
    asked = len(provider.asked)
    training.discard(shop.folder, shop.settings.train)  # there is nothing to discard
    assert len(provider.asked) == asked


def test_without_validation_rows_there_is_no_validation_file(shop: Shop) -> None:
    shop.write("validation", [])
    shop.train()
    assert "validation_file" not in shop.provider.bodies["/v1/fine_tuning/jobs"][0]


def test_only_the_answer_of_a_row_is_learned_and_calls_of_tools_have_ids() -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "where is it?", "name": "<NAME_1>"},
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "find", "arguments": {"id": 1}}}]},
        {"role": "tool", "content": "in Ghent", "name": "find"},
        {"role": "user", "content": "and the other?"},
    ]
    schema = tool_calls.schemas([{"name": "find"}])
    row = {
        "messages": json.dumps(messages),
        "completion": tool_calls.written("One moment.", [{"name": "find", "arguments": {"id": 2}}]),
        "context": json.dumps(["Parcels are in Ghent."]),
        "tools": json.dumps(schema),
    }
    call = {"id": "call_before_0", "type": "function", "function": {"name": "find", "arguments": '{"id": 1}'}}
    assert chat.training_row(row, context=True) == {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "where is it?"},
            {"role": "assistant", "content": "", "tool_calls": [call], "weight": 0},
            {"role": "tool", "content": "in Ghent", "tool_call_id": "call_before_0"},
            {"role": "user", "content": "Context:\n\nParcels are in Ghent.\n\nQuestion: and the other?"},
            {
                "role": "assistant",
                "content": "One moment.",
                "tool_calls": [
                    {"id": "call_0", "type": "function", "function": {"name": "find", "arguments": '{"id": 2}'}}
                ],
            },
        ],
        "tools": schema,
    }
    asked = chat.request(row, context=False)["messages"]
    assert asked[-1] == {"role": "user", "content": "and the other?"}
    assert "weight" not in asked[2]


class TestRedaction:
    def test_a_row_with_personal_data_is_named_with_the_kind_and_without_the_value(self) -> None:
        sent = [
            ("r1", {"messages": [{"role": "user", "content": "hello"}]}),
            ("r2", {"messages": [{"role": "user", "content": "I am jane@example.com and joe@example.com"}]}),
            ("r3", {"messages": [{"role": "tool", "content": '{"iban": "DE89370400440532013000"}'}]}),
        ]
        with pytest.raises(PersonalData, match=r"EMAIL in row r2, IBAN in row r3\. Delete or") as caught:
            check_redacted(sent, PrivacySettings())
        assert "example.com" not in str(caught.value)
        assert "DE89" not in str(caught.value)

    def test_it_looks_where_ingestion_does_not_redact_and_leaves_what_is_kept(self) -> None:
        sent = [("r1", {"messages": [{"role": "assistant", "content": "Write to help@shop.example"}]})]
        with pytest.raises(PersonalData):
            check_redacted(sent, PrivacySettings(redact=False))
        check_redacted(sent, PrivacySettings(keep=("help@shop.example",)))

    def test_what_was_redacted_already_is_nothing(self) -> None:
        text = 'Mail <EMAIL_1> or <PHONE_2>. {"id": "<IBAN_1>"} Order 4711 of 2026-03-02, \\u00e9 "quoted"'
        check_redacted([("r1", {"messages": [{"role": "user", "content": text}]})], PrivacySettings())

    @pytest.mark.parametrize("split", ["train", "validation", "holdout", "traffic"])
    def test_nothing_is_sent_whatever_split_it_stands_in(self, shop: Shop, split: str) -> None:
        row = rows(1, 40)[0]
        shop.write(split, [row | {"messages": json.dumps([{"role": "user", "content": "call +49 30 901820"}])}])
        with pytest.raises(PersonalData, match="PHONE in row r40"):
            shop.train()
        assert shop.provider.asked == []

    def test_what_does_not_leave_is_not_looked_at(self, shop: Shop) -> None:
        """Of what is judged on, the approved answer stays here."""
        shop.write("holdout", [rows(1, 40)[0] | {"completion": "mail jane@example.com"}])
        shop.train()
        assert "jane" not in json.dumps(shop.provider.bodies) + str(shop.provider.contents)

    def test_an_evaluation_by_itself_sends_nothing_either(self, shop: Shop, tmp_path: Path) -> None:
        """Reports ask a champion about datasets that nothing was trained on."""
        group = {
            "models": {"base": BASE},
            "bare": ["base"],
            "provider": {"engine": "api", "api_url": shop.provider.url},
            "privacy": {},
            "answers": str(tmp_path / ANSWERS),
        }
        asked = [
            row | {"messages": json.dumps([{"role": "user", "content": "mail jane@example.com"}])} for row in rows(1)
        ]
        with pytest.raises(PersonalData, match="EMAIL in row r0"):
            models.engine(group, {"encoding": {"context": True}}, EvaluateSettings(), [*rows(3, 5), *asked])
        assert shop.provider.asked == []


class TestNothingTwice:
    @pytest.mark.parametrize("path", ["/v1/files", "/v1/fine_tuning/jobs"])
    def test_an_answer_that_never_came_makes_no_second_file_or_job(self, shop: Shop, path: str) -> None:
        lost = iter([LOST])
        shop.provider.interfere = lambda method, at: next(lost, None) if (method, at) == ("POST", path) else None
        shop.train()
        assert len(shop.provider.jobs) == 1
        assert len(shop.provider.contents) == 2
        assert shop.posts(path) == {"/v1/files": 2, "/v1/fine_tuning/jobs": 1}[path]

    @pytest.mark.parametrize("path", ["/v1/files", "/v1/fine_tuning/jobs"])
    def test_a_process_that_is_killed_between_request_and_answer_pays_once(
        self, shop: Shop, path: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Killed(BaseException):
            pass

        request = Client.request

        def killed(self: Client, route: str, *args: Any, **keys: Any) -> Any:
            answer = request(self, route, *args, **keys)
            if path.endswith(route) and (args or keys):
                raise Killed
            return answer

        with monkeypatch.context() as patch:
            patch.setattr(Client, "request", killed)
            with pytest.raises(Killed):
                shop.train()
        made = len(shop.provider.contents), len(shop.provider.jobs)
        assert made == {"/v1/files": (1, 0), "/v1/fine_tuning/jobs": (2, 1)}[path]
        result = shop.train()
        assert (len(shop.provider.contents), list(shop.provider.jobs)) == (2, ["ftjob-0"])
        assert result["job"] == "ftjob-0"
        assert shop.provider.files == {}

    def test_a_job_is_found_on_a_later_page_and_others_are_left_alone(self, shop: Shop) -> None:
        provider = shop.provider
        provider.files["file-other"] = {"id": "file-other", "filename": "mine.jsonl", "purpose": "fine-tune"}
        provider.contents["file-other"] = b""
        method = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 1}}}

        def interfere(verb: str, path: str) -> str | None:
            if (verb, path) != ("POST", "/v1/fine_tuning/jobs"):
                return None
            provider.page = 1
            return LOST

        def others(_: float) -> None:
            for _ in range(2):
                provider._create({"model": BASE, "training_file": "file-other", "seed": 1, "method": method})

        provider.interfere, shop.on_wait = interfere, others
        assert shop.train()["job"] == "ftjob-0"
        assert list(provider.files) == ["file-other"]
        assert {job["status"] for job in provider.jobs.values()} == {"succeeded", "validating_files"}


class TestRefusals:
    def test_what_may_pass_is_waited_for_as_long_as_the_provider_asks(self, shop: Shop) -> None:
        busy = iter([(429, {"error": {"message": "Rate limit"}}, {"Retry-After": "17"}), (503, "overloaded")])
        shop.provider.interfere = lambda *_: next(busy, None)
        shop.train()
        assert shop.waited[:2] == [17.0, 2.0]

    @pytest.mark.parametrize(
        ("answer", "says"),
        [
            (error(401, "Incorrect API key provided."), r"status 401: Incorrect.*; set train\.api_key or train\.api"),
            (error(429, "You exceeded your quota.", "insufficient_quota"), r"exceeded your quota\.; add credit"),
            (
                error(400, "Invalid file format."),
                r"/v1/fine_tuning/jobs answers with status 400: Invalid file format\.",
            ),
        ],
    )
    def test_what_does_not_pass_is_an_error_at_once_that_says_what_to_do(
        self, shop: Shop, answer: Any, says: str
    ) -> None:
        shop.provider.interfere = lambda method, path: (
            answer if (method, path) == ("POST", "/v1/fine_tuning/jobs") else None
        )
        with pytest.raises(RetunedError, match=says):
            shop.train()
        assert shop.waited == []
        assert shop.provider.jobs == {}

    def test_a_provider_that_is_away_while_the_job_runs_is_asked_again(self, shop: Shop) -> None:
        shop.provider.states = ("running", "running", "succeeded")
        away = iter([None, LOST, LOST, LOST, LOST, LOST, LOST, LOST])
        shop.provider.interfere = lambda _, path: (
            next(away, None) if path.startswith("/v1/fine_tuning/jobs/ft") else None
        )
        assert shop.train()["job"] == "ftjob-0"

    def test_a_champion_that_the_provider_does_not_train_on_from_is_named(self, shop: Shop) -> None:
        gone = Version(
            version="3f2a91c0",
            workload="support",
            created_at=datetime(2026, 3, 2),
            path=shop.folder,
            base_model=BASE,
            base_hash=base_hash(shop.settings.base_named(BASE)),
            parent_version=None,
            dataset_version="d0",
            run_id="r0",
            manifest={},
            removed_at=None,
            provider_model="ft:gone",
        )
        with pytest.raises(RetunedError, match=r"train on from ft:gone, put .*`retuned promote Support: refunds base`"):
            shop.train(gone)

    def test_a_job_without_a_reason_fails_in_words(self, shop: Shop) -> None:
        shop.provider.states = ("cancelled",)
        with pytest.raises(RetunedError, match=r"job ftjob-0 cancelled at the provider: no reason is given there"):
            shop.train()

    def test_a_file_that_the_provider_finds_unsound_says_why(self, shop: Shop) -> None:
        shop.write("train", rows(4))
        with pytest.raises(RetunedError, match=r"failed at the provider: Training file has 4 example\(s\)"):
            shop.train()


class TestDiscard:
    def interrupted(self, shop: Shop) -> None:
        def stopped(_: float) -> None:
            raise Cancelled("stopped")

        shop.provider.states = ("running",)
        shop.on_wait = stopped
        with pytest.raises(Cancelled):
            shop.train()

    def test_the_job_is_cancelled_and_its_files_are_deleted(self, shop: Shop) -> None:
        self.interrupted(shop)
        training.discard(shop.folder, shop.settings.train)
        assert shop.provider.cancelled == ["ftjob-0"]
        assert shop.provider.files == {}
        before = len(shop.provider.asked)
        training.discard(shop.folder, shop.settings.train)
        assert len(shop.provider.asked) == before

    def test_what_cannot_be_cancelled_is_named(self, shop: Shop) -> None:
        self.interrupted(shop)
        shop.provider.interfere = lambda *_: error(401, "no")
        with pytest.raises(
            RetunedError, match=r"^ftjob-0, file-0-train, file-1-validation may still be at the provider"
        ):
            training.discard(shop.folder, shop.settings.train)

    def test_files_that_cannot_be_deleted_do_not_undo_a_training(
        self, shop: Shop, caplog: pytest.LogCaptureFixture
    ) -> None:
        shop.provider.interfere = lambda method, _: error(500, "no") if method == "DELETE" else None
        assert shop.train()["job"] == "ftjob-0"
        assert f"files of run {RUN} are still at the provider" in caplog.text


class TestCheck:
    def test_the_model_is_looked_up_which_costs_nothing(self, shop: Shop) -> None:
        assert training.check(shop.settings).startswith(f"{BASE} at {shop.provider.url}; what is learned from")
        assert shop.provider.asked == [("GET", "/v1/models")]

    def test_what_is_wrong_is_named(self, shop: Shop) -> None:
        unknown = shop.settings.with_base(shop.settings.base_named("gpt-6"))
        with pytest.raises(RetunedError, match=r"models\.base: .* lists no model gpt-6 \(it has 2\); name one"):
            training.check(unknown)
        keyless = shop.settings.train.model_copy(update={"api_key": None})
        with pytest.raises(Refused, match=r"status 401.*set train\.api_key or train\.api_key_file"):
            training.check(shop.settings.model_copy(update={"train": keyless}))
        away = shop.settings.train.model_copy(update={"api_url": "http://127.0.0.1:9/v1"})
        with pytest.raises(NoAnswer, match=r"train\.api_url: http://127\.0\.0\.1:9/v1 does not answer"):
            training.check(shop.settings.model_copy(update={"train": away}))
        assert training.check(Settings()) is None


class TestAnswers:
    def engine(self, shop: Shop, file: Path) -> ProviderEngine:
        models = {"base": BASE, "candidate": "gpt-4.1-nano"}
        settings = EvaluateSettings(batch_size=3)
        return ProviderEngine(training.client(shop.settings.train, "sk-test"), models, ["base"], settings, True, file)

    def test_each_model_is_asked_once_and_its_tokens_are_counted(self, shop: Shop, tmp_path: Path) -> None:
        file = tmp_path / ANSWERS
        assert used(tmp_path) is None
        found = {
            row["row_id"]: answers for row, answers in self.engine(shop, file).answers(rows(4), ["base", "candidate"])
        }
        assert [list(answers) for answers in found.values()] == [["base", "candidate"]] * 4
        assert {answer.text for answers in found.values() for answer in answers.values()} == {"I cannot say."}
        asked = shop.provider.chats()
        assert len(asked) == 8
        first = {
            "model": BASE,
            "messages": [{"role": "user", "content": "how long do i have to return order 0"}],
            "max_tokens": 128,
            "temperature": 0,
        }
        assert first in asked
        with file.open("a") as cut:
            cut.write('\n{"key": "half')  # killed while it wrote
        again = list(self.engine(shop, file).answers(rows(5), ["base", "candidate"]))
        assert len(again) == 5
        assert len(shop.provider.chats()) == 10
        answer = shop.provider._chat(asked[0])[1]["usage"]
        assert used(tmp_path) == Used(10 * 9, 10 * answer["completion_tokens"])

    def test_calls_of_tools_become_the_text_that_is_compared(self, shop: Shop, tmp_path: Path) -> None:
        call = {"id": "c", "type": "function", "function": {"name": "find", "arguments": '{"id": 2}'}}
        message = {"role": "assistant", "content": None, "tool_calls": [call]}
        usage = {"prompt_tokens": 3, "completion_tokens": 4}
        shop.provider.interfere = lambda *_: (200, {"choices": [{"message": message}], "usage": usage})
        ((_, answers),) = self.engine(shop, tmp_path / ANSWERS).answers(rows(1), ["candidate"])
        assert answers["candidate"].text == tool_calls.written("", [{"name": "find", "arguments": {"id": 2}}])

    def test_a_row_that_no_model_can_read_is_left_out(self, shop: Shop, tmp_path: Path) -> None:
        told = iter([error(400, "too long", "context_length_exceeded")])
        shop.provider.interfere = lambda *_: next(told, None)
        assert len(list(self.engine(shop, tmp_path / ANSWERS).answers(rows(4), ["base", "candidate"]))) == 3

    def test_what_is_no_answer_names_the_address(self, shop: Shop, tmp_path: Path) -> None:
        shop.provider.interfere = lambda *_: (200, {"choices": []})
        with pytest.raises(RetunedError, match=r"train\.api_url: .*/chat/completions does not answer as OpenAI's API"):
            list(self.engine(shop, tmp_path / ANSWERS).answers(rows(1), ["base"]))


def test_the_settings_of_an_api_name_what_is_missing_or_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="engine is api: name the provider with api_url"):
        TrainSettings(engine="api")
    url = "https://api.openai.com/v1"
    with pytest.raises(ValueError, match="it does not learn preference dpo"):
        TrainSettings(engine="api", api_url=url, preference="dpo")
    with pytest.raises(ValueError, match="a provider learns no reasoning"):
        TrainSettings(engine="api", api_url=url, reasoning="include")
    with pytest.raises(ValueError, match="put a token into api_key or api_key_file"):
        TrainSettings(engine="api", api_url="https://me:pw@host/v1")
    (tmp_path / "key").write_text("sk-1\n")
    assert TrainSettings(api_key_file=tmp_path / "key").bearer_token() == "sk-1"
    with pytest.raises(ConfigurationError, match=r"train\.api_key_file: .*none cannot be read"):
        TrainSettings(api_key_file=tmp_path / "none").bearer_token()
    assert "sk-2" not in repr(TrainSettings(api_key="sk-2"))
