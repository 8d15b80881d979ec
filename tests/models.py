"""A tiny language model for tests: a random Llama with a tokenizer trained on the spot, in a fraction of a second."""

import string
from pathlib import Path
from typing import Any

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_WORDS = """how long do i have to return an order what is the deadline for sending it back when can parcels be
delivered where does support answer you please tell me about days weeks hours euro money refund exchange
warranty shipping gift card within costs is are we take the free store open from until monday friday
answer question customer policy lamp sofa chair could somebody say hello thanks of a and for with your
our need know want does can i my would like to ask there"""

ANY_LATENCY = 50.0
"""A gate's maximum_latency_ratio for tiny models that really answer. Their answers take milliseconds, most of them the
calls around the model, and whatever else runs on the machine changes that more than the model does: a real limit would
test the machine. What the gate makes of latencies is tested where they are given (unit/test_retrain_gate.py)."""
LINEAR = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
"""The linear layers of a Llama."""


def tiny_llama(folder: Path, *, seed: int = 0, layers: int = 2, hidden: int = 64) -> Path:
    """Save a random Llama and its tokenizer, with a chat template, into a folder; returns the folder."""
    from transformers import LlamaConfig

    fast = _tokenizer()
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.1,
        **_tokens(fast),
    )
    return _saved(config, fast, folder, seed)


def tiny_model(kind: str, folder: Path, **changes: Any) -> Path:
    """As `tiny_llama`, of another model type of transformers, and surer of its next token.

    Args:
        changes: of its configuration.
    """
    from transformers import AutoConfig

    fast = _tokenizer()
    common = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "initializer_range": 0.2}
    gated: dict[str, Any] = {"intermediate_size": 64, "num_key_value_heads": 2}
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2}
    routed = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
    linear = {"linear_num_value_heads": 4, "linear_num_key_heads": 2}
    linear |= {"linear_key_head_dim": 16, "linear_value_head_dim": 16}
    mixed = {"layer_types": ["linear_attention", "full_attention"]}
    own: dict[str, Any] = {
        "deepseek_v3": gated
        | routed
        | {"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "num_key_value_heads": 4, "first_k_dense_replace": 1}
        | {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16},
        "falcon": {"new_decoder_architecture": True, "num_kv_heads": 2},
        "gpt2": {"n_positions": 256},
        "gpt_oss": gated | experts | {"head_dim": 16},
        "granite": gated | {"attention_multiplier": 0.25},
        "granitemoehybrid": gated
        | experts
        | {"shared_intermediate_size": 32, "layer_types": ["mamba", "attention"], "mamba_n_heads": 8}
        | {"mamba_d_head": 16, "mamba_d_state": 16, "mamba_chunk_size": 16},
        "lfm2": gated | {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
        "mistral": gated | {"sliding_window": None},
        "mixtral": gated | experts,
        "qwen3_5_text": gated | linear | mixed | {"head_dim": 16},
        "qwen3_moe": gated | routed | {"num_experts": 4, "head_dim": 16},
        "qwen3_next": gated
        | routed
        | linear
        | mixed
        | {"num_experts": 4, "head_dim": 16, "shared_expert_intermediate_size": 32},
        "qwen3": gated | {"head_dim": 32},
        "smollm3": gated | {"no_rope_layers": [1, 0]},
    }
    changes = common | own.get(kind, gated) | _tokens(fast) | changes
    return _saved(AutoConfig.for_model(kind, **changes), fast, folder, 0)


def tiny_classifier(
    folder: Path, labels: tuple[str, ...], *, surely: int | None = None, of_tokens: bool = False
) -> Path:
    """Save a random classifier of pairs of texts, or of their tokens; `surely`: the label that it gives to all."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification, BertForTokenClassification

    fast = _tokenizer()
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(fast),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=128,
        initializer_range=0.5,
        pad_token_id=fast.pad_token_id,
        id2label=dict(enumerate(labels)),
        label2id={label: number for number, label in enumerate(labels)},
    )
    model = (BertForTokenClassification if of_tokens else BertForSequenceClassification)(config)
    if surely is not None:
        with torch.no_grad():
            model.classifier.weight.zero_()
            model.classifier.bias.zero_()
            model.classifier.bias[surely] = 9.0
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def tiny_hhem(folder: Path, *, surely: int) -> Path:
    """Save a random model as HHEM-2.1-Open is published; `surely`: the class that it gives to all."""
    import torch
    from safetensors.torch import save_file
    from transformers import T5Config, T5ForTokenClassification

    fast = _tokenizer()
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=len(fast), d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu",
        num_labels=2,
    )  # fmt: skip
    model = T5ForTokenClassification(config)
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.zero_()
        model.classifier.bias[surely] = 9.0
    weights = {f"t5.{name}": tensor.clone() for name, tensor in model.state_dict().items() if "shared" not in name}
    fast.save_pretrained(folder)
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(
        '{"model_type": "HHEMv2", "architectures": ["HHEMv2ForSequenceClassification"]}'
    )
    return folder


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([_WORDS, " ".join(_WORDS.split()), string.printable], trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
    )
    fast.chat_template = TEMPLATE
    return fast


def _tokens(fast: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(fast),
        "bos_token_id": None,
        "eos_token_id": fast.eos_token_id,
        "pad_token_id": fast.pad_token_id,
    }


def _saved(config: Any, fast: Any, folder: Path, seed: int) -> Path:
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder
