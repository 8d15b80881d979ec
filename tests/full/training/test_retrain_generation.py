from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, FalconConfig, GPT2Config, Qwen3Config

from retuned.retrain.generation.adapters import Generator
from retuned.retrain.training.base_model import load_model, load_tokenizer

MODELS = {"base": None, "champion": "champion", "candidate": "candidate"}


def two_adapters(base: Path, **more: Any) -> PeftModel:
    """The tiny model with two random adapters of different ranks and layers, strong enough to change what it says."""
    torch.manual_seed(1)
    layers = ["q_proj", "v_proj", "down_proj"]
    first = LoraConfig(r=4, lora_alpha=24, target_modules=layers, init_lora_weights=False, task_type="CAUSAL_LM")
    second = LoraConfig(r=8, lora_alpha=16, target_modules=layers[1:], init_lora_weights=False, **more)
    model = get_peft_model(load_model(base, torch.float32), first, adapter_name="champion")
    model.add_adapter("candidate", second)
    return model.eval()


def prompts(base: Path, system: str) -> list[list[int]]:
    tokenizer = load_tokenizer(base)
    asked = ("how long", "what is the deadline for the sofa please tell me", "hello", "can you answer my question")
    return [
        tokenizer.apply_chat_template(
            [{"role": "system", "content": system.format(i)}, {"role": "user", "content": question}],
            add_generation_prompt=True,
            return_dict=False,
        )
        for i, question in enumerate(asked)
    ]


def alone(model: PeftModel, name: str | None, prompt: list[int], limit: int) -> list[int]:
    """What transformers' own `generate` answers, one prompt and one adapter at a time."""
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        if name:
            model.set_adapter(name, inference_mode=True)
            found = model.generate(input_ids=ids, max_new_tokens=limit, do_sample=False, pad_token_id=0)
        else:
            with model.disable_adapter():
                found = model.generate(input_ids=ids, max_new_tokens=limit, do_sample=False, pad_token_id=0)
    return found[0, len(prompt) :].tolist()


@pytest.mark.parametrize("system", ["be kind to the customer", "{} is a number"], ids=["shared prefix", "none"])
def test_models_answer_together_what_each_answers_alone(base: Path, system: str) -> None:
    model = two_adapters(base)
    asked = prompts(base, system)
    # Some answers must end before others, that rows leave the batch: any token that is said early ends them.
    said = [token for prompt in asked for name in MODELS.values() for token in alone(model, name, prompt, 5)[1:]]
    model.generation_config.eos_token_id = [2, max(set(said), key=said.count)]
    assert Generator.fits(model)
    found = Generator(model, MODELS, pad=0).answers(asked, 12)
    expected = {label: [alone(model, name, prompt, 12) for prompt in asked] for label, name in MODELS.items()}
    assert found == expected
    assert len({len(answer) for answers in found.values() for answer in answers}) > 1
    assert found["base"] != found["champion"] != found["candidate"]


_SMALL: dict[str, Any] = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
OTHERS = {
    "GPT-2": (GPT2Config(vocab_size=300, n_embd=32, n_layer=2, n_head=4, eos_token_id=2), ["c_attn", "c_fc"]),
    "Falcon": (FalconConfig(**_SMALL, alibi=True, eos_token_id=2), ["query_key_value", "dense_h_to_4h"]),
    "Qwen 3": (
        Qwen3Config(**_SMALL, intermediate_size=64, num_key_value_heads=2, head_dim=8, eos_token_id=2),
        ["q_proj", "down_proj"],
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_so_do_models_of_other_kinds(name: str) -> None:
    config, layers = OTHERS[name]
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    strong: dict[str, Any] = {"init_lora_weights": False, "task_type": "CAUSAL_LM", "lora_alpha": 24}
    model = get_peft_model(base, LoraConfig(r=4, target_modules=layers, **strong), adapter_name="champion")
    model.add_adapter("candidate", LoraConfig(r=8, target_modules=layers[:1], **strong))
    model.eval()
    asked = [[5, 6, 7, 8, 9], [5, 6, 30, 31, 32, 33, 34, 35], [5, 6, 7]]
    assert Generator.fits(model)
    found = Generator(model, MODELS, pad=0).answers(asked, 8)
    assert found == {label: [alone(model, adapter, prompt, 8) for prompt in asked] for label, adapter in MODELS.items()}


def test_what_is_no_plain_addition_does_not_fit(base: Path) -> None:
    assert not Generator.fits(two_adapters(base, use_dora=True))
    assert not Generator.fits(two_adapters(base, modules_to_save=["lm_head"]))
    repeating = two_adapters(base)
    repeating.generation_config.repetition_penalty = 1.1
    assert not Generator.fits(repeating)


def test_layers_are_left_as_they_were(base: Path) -> None:
    model = two_adapters(base)
    before = [module.forward for module in model.modules() if hasattr(module, "lora_A")]
    Generator(model, MODELS, pad=0).answers(prompts(base, "x")[:1], 2)
    assert [module.forward for module in model.modules() if hasattr(module, "lora_A")] == before
