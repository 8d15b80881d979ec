"""What every engine of generation keeps: models in this process, a double of vLLM, and a vLLM where RETUNED_VLLM names
its command (`RETUNED_VLLM=/opt/vllm/bin/vllm`)."""

import json
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from fixtures.models.tiny import tiny_llama
from fixtures.models.trainings import rows
from fixtures.servers.models import serving, vllm, with_vllm
from retuned.retrain.generation.engine import Engine
from retuned.retrain.generation.kept import Kept, KeptAnswers
from retuned.retrain.generation.server import Server, ServerEngine
from retuned.retrain.generation.transformers import TransformersEngine
from retuned.retrain.kernels.packing import Encoded
from retuned.retrain.settings import EvaluateSettings, TrainSettings
from retuned.retrain.training import adapter as lora
from retuned.retrain.training.base_model import load_model, load_tokenizer
from retuned.retrain.training.batches import encode, padded_losses

MODELS = ("base", "champion", "candidate")
ROWS = rows(5)
ENCODING = TrainSettings(max_length=256).encoding
MOST_TOKENS = 12


pytestmark = pytest.mark.usefixtures("one_thread")


class Trained:
    """A tiny base model and two adapters, strong enough to change what it answers."""

    def __init__(self, folder: Path) -> None:
        # vLLM computes heads of 64 dimensions on a CPU, no smaller ones.
        self.base = tiny_llama(folder / "base", hidden=256)
        self.adapters: dict[str, Path | None] = {"base": None}
        for seed, name in enumerate(MODELS[1:], 1):
            torch.manual_seed(seed)
            config = LoraConfig(
                r=4 * seed,
                lora_alpha=16,
                target_modules=["q_proj", "v_proj", "down_proj"],
                init_lora_weights=False,
                task_type="CAUSAL_LM",
            )
            get_peft_model(load_model(self.base, torch.float32), config).save_pretrained(folder / name)
            self.adapters[name] = folder / name

    def alone(self, name: str) -> Any:
        """A model by itself, as transformers has it."""
        model, folder = load_model(self.base, torch.float32), self.adapters[name]
        return model if folder is None else lora.load_adapter(model, folder)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return Trained(tmp_path_factory.mktemp("models"))


@contextmanager
def on_server(url: str, trained: Trained, kept: KeptAnswers, **keys: Any) -> Iterator[Engine]:
    settings = EvaluateSettings(engine="server", url=url, batch_size=3, max_new_tokens=MOST_TOKENS, **keys)
    server = Server(settings, None)
    names = {name: path and f"{name}@1" for name, path in trained.adapters.items()}
    loaded = {f"{name}@1": path for name, path in trained.adapters.items() if path is not None}
    tokenizer = load_tokenizer(trained.base)
    with server.loaded(loaded), closing(ServerEngine(server, tokenizer, names, settings, ENCODING, kept)) as engine:
        yield engine


Made = Callable[[KeptAnswers], Any]


@pytest.fixture(
    scope="module",
    params=[
        "transformers",
        "double",
        pytest.param("vllm", marks=with_vllm),
    ],
)
def made(request: pytest.FixtureRequest, trained: Trained) -> Iterator[Made]:
    """Makes an engine that has these answers."""
    if request.param == "transformers":
        settings = EvaluateSettings(batch_size=3, max_new_tokens=MOST_TOKENS)
        yield lambda kept: closing(
            TransformersEngine(trained.base, trained.adapters, settings, dtype="float32", encoding=ENCODING, kept=kept)
        )
    elif request.param == "double":
        with serving(trained.base) as double:
            yield lambda kept: on_server(double.url, trained, kept, prompt_logprobs=True)
    else:
        with vllm(trained.base, "float32") as url:
            yield lambda kept: on_server(url, trained, kept)


@pytest.fixture(scope="module")
def engine(made: Made) -> Iterator[Engine]:
    with made(KeptAnswers()) as engine:
        yield engine


def test_each_model_answers_what_it_answers_alone(engine: Engine, trained: Trained) -> None:
    tokenizer = load_tokenizer(trained.base)
    limit = min(MOST_TOKENS, 8 + round(1.5 * max(len(encode(tokenizer, row, 256).completion) for row in ROWS)))
    found = {row["row_id"]: answers for row, answers in engine.answers(ROWS, MODELS)}
    assert found.keys() == {row["row_id"] for row in ROWS}
    assert len({answer.text for answers in found.values() for answer in answers.values()}) > len(ROWS)
    for name in MODELS:
        model = trained.alone(name)
        for row in ROWS:
            prompt = encode(tokenizer, row, 256).prompt
            with torch.inference_mode():
                ids = model.generate(
                    input_ids=torch.tensor([prompt]), max_new_tokens=limit, do_sample=False, pad_token_id=0
                )
            expected = ids[0, len(prompt) :].tolist()
            answer = found[row["row_id"]][name]
            # A limit may cut a character in two; vLLM leaves such halves out.
            assert answer.text.strip("\ufffd") == tokenizer.decode(expected, skip_special_tokens=True).strip(
                " \n\ufffd"
            )
            assert answer.tokens == len(expected)


def test_the_loss_of_the_approved_answer_is_the_models(engine: Engine, trained: Trained) -> None:
    tokenizer = load_tokenizer(trained.base)
    found = {row["row_id"]: answers for row, answers in engine.answers(ROWS, MODELS)}
    told = [answer.loss for answers in found.values() for answer in answers.values() if answer.loss is not None]
    if not told:
        pytest.skip("this server gives no log-probabilities of a prompt")
    for name in MODELS:
        model = trained.alone(name)
        for row in ROWS:
            with torch.inference_mode():
                expected = float(padded_losses(model, [encode(tokenizer, row, 256)], 0).mean())
            assert found[row["row_id"]][name].loss == pytest.approx(expected, abs=1e-3)


def test_the_bare_base_model_has_the_pace_of_the_last_model(engine: Engine) -> None:
    for _, answers in engine.answers(ROWS, ("base", "candidate")):
        base, candidate = (answers[name].seconds / answers[name].tokens for name in ("base", "candidate"))
        assert base == pytest.approx(candidate)
        assert candidate > 0


def test_models_may_be_asked_in_part_and_again(engine: Engine) -> None:
    whole = {row["row_id"]: answers["champion"].text for row, answers in engine.answers(ROWS, MODELS)}
    part = {row["row_id"]: answers for row, answers in engine.answers(ROWS[:3], ("champion", "candidate"))}
    assert {name: answers["champion"].text for name, answers in part.items()}.items() <= whole.items()
    assert all(list(answers) == ["champion", "candidate"] for answers in part.values())
    assert list(engine.answers([], MODELS)) == []


def marked(file: Path) -> None:
    """Give each kept answer a text that no model would generate."""
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps([key, "kept", *rest]) + "\n" for key, _, *rest in lines))


def test_an_answer_of_an_earlier_evaluation_is_not_generated_again(made: Made, tmp_path: Path) -> None:
    file, asked = tmp_path / "models" / "answers.jsonl", rows(20)
    with made(KeptAnswers(file, {"champion": "b+1", "candidate": "b+2"}, "float32")) as engine:
        first = {row["row_id"]: answers for row, answers in engine.answers(asked, ("champion", "candidate"))}
    marked(file)
    # The candidate of then is the champion of now; the new candidate has not answered anything yet.
    with made(KeptAnswers(file, {"base": "b+2", "candidate": "b+3"}, "float32")) as engine:
        again = {row["row_id"]: answers for row, answers in engine.answers(asked, ("base", "candidate"))}
    assert again.keys() == first.keys()
    kept = [id for id, answers in again.items() if answers["base"].text == "kept"]
    # On a server the first rows are asked anew, for its pace of today.
    assert len(kept) == (len(asked) if type(engine) is TransformersEngine else len(asked) - 16)
    assert all(again[id]["base"].loss == first[id]["candidate"].loss for id in kept)
    assert all(again[id]["base"].tokens == first[id]["candidate"].tokens for id in kept)
    assert not [id for id, answers in again.items() if answers["candidate"].text == "kept"]


@pytest.mark.full
@pytest.mark.parametrize("changed", ["prompt", "approved answer", "weights", "scope"])
def test_an_answer_to_anything_else_is_generated(made: Made, tmp_path: Path, changed: str) -> None:
    file, asked = tmp_path / "answers.jsonl", rows(18)
    with made(KeptAnswers(file, {"candidate": "b+1"}, "float32")) as engine:
        list(engine.answers(asked, ("candidate",)))
    marked(file)
    if changed == "prompt":
        asked = [row | {"messages": json.dumps([{"role": "user", "content": "Something else?"}])} for row in asked]
    if changed == "approved answer":
        asked = [row | {"completion": "Something else."} for row in asked]
    weights = "b+9" if changed == "weights" else "b+1"
    scope = "bfloat16" if changed == "scope" else "float32"
    with made(KeptAnswers(file, {"candidate": weights}, scope)) as engine:
        assert not [1 for _, answers in engine.answers(asked, ("candidate",)) if answers["candidate"].text == "kept"]


def test_an_answer_that_the_limit_has_cut_holds_for_that_limit_alone() -> None:
    encoded = Encoded("r", [1, 2], [3])
    kept = KeptAnswers()
    kept.keep("base", {}, encoded, Kept("cut", 12, 12, None))
    assert [kept.find("base", {}, encoded, limit) is not None for limit in (11, 12, 13)] == [False, True, False]
    kept.keep("base", {}, encoded, Kept("whole", 5, 12, None))
    assert [kept.find("base", {}, encoded, limit) is not None for limit in (4, 5, 6, 12, 40)] == [
        False,
        False,
        True,
        True,
        True,
    ]


def test_what_was_used_last_is_kept_and_a_line_that_a_crash_cut_off_is_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "answers.jsonl"
    encoded = [Encoded("r", [number], [3]) for number in range(4)]
    kept = KeptAnswers(file)
    for one in encoded:
        kept.keep("base", {}, one, Kept("whole", 5, 12, None))
    with file.open("a") as handle:
        handle.write('["cut off')
    monkeypatch.setattr("retuned.retrain.generation.kept.MOST", 2)
    later = KeptAnswers(file)
    assert all(later.find("base", {}, one, 12) for one in (encoded[3], encoded[0]))
    later.close()
    last = KeptAnswers(file)
    assert [last.find("base", {}, one, 12) is not None for one in encoded] == [True, False, False, True]
