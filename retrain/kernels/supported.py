"""The model types for which this package's maths is proven."""

from typing import Any

MODEL_TYPES = frozenset(
    {
        "arcee",
        "gemma",
        "glm",
        "glm4",
        "gpt2",
        "gpt_neox",
        "granite",
        "llama",
        "mistral",
        "olmo",
        "olmo2",
        "olmo3",
        "phi",
        "phi3",
        "qwen2",
        "qwen3",
        "seed_oss",
        "smollm3",
        "starcoder2",
    }
)
"""As in `config.model_type`. Tests compare losses, gradients and logits of each with those of the untouched model."""


def supported(model: Any) -> bool:
    """Whether a model may be trained and evaluated with this package's maths.

    Any other model computes as its library has it: on padded batches, with PEFT's LoRA and transformers' attention.
    That holds for whatever this package does not implement, as attention sinks, ALiBi, capped scores and experts.
    """
    return model.config.model_type in MODEL_TYPES
