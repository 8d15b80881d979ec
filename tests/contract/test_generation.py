"""What every engine of generation keeps: models in this process, a double of vLLM, and a vLLM where RETUNED_VLLM names
its command (`RETUNED_VLLM=/opt/vllm/bin/vllm`)."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from model_servers import serving, vllm, with_vllm
from models import tiny_llama
from peft import LoraConfig, get_peft_model
from trainings import rows

from retuned.retrain.generation.engine import Engine
from retuned.retrain.generation.server import Server, ServerEngine
from retuned.retrain.generation.transformers import TransformersEngine
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
def on_server(url: str, trained: Trained, **keys: Any) -> Iterator[Engine]:
    settings = EvaluateSettings(engine="server", url=url, batch_size=3, max_new_tokens=MOST_TOKENS, **keys)
    server = Server(settings, None)
    names = {name: path and f"{name}@1" for name, path in trained.adapters.items()}
    with server.loaded({f"{name}@1": path for name, path in trained.adapters.items() if path is not None}):
        yield ServerEngine(server, load_tokenizer(trained.base), names, settings, ENCODING)


@pytest.fixture(
    scope="module",
    params=[
        "transformers",
        "double",
        pytest.param("vllm", marks=with_vllm),
    ],
)
def engine(request: pytest.FixtureRequest, trained: Trained) -> Iterator[Engine]:
    if request.param == "transformers":
        settings = EvaluateSettings(batch_size=3, max_new_tokens=MOST_TOKENS)
        local = TransformersEngine(trained.base, trained.adapters, settings, dtype="float32", encoding=ENCODING)
        yield local
        local.close()
    elif request.param == "double":
        with serving(trained.base) as double, on_server(double.url, trained, prompt_logprobs=True) as remote:
            yield remote
    else:
        with vllm(trained.base, "float32") as url, on_server(url, trained) as remote:
            yield remote


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
