"""What an adapter of rank 16 covers of the model types of transformers, by their default configurations: the table in
docs/training.md. Models are on the meta device and take no memory."""

import warnings
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from retuned.retrain.settings import TrainSettings
from retuned.retrain.training.adapter import new_adapter
from retuned.retrain.training.targets import coverage

KINDS = (
    "llama", "ministral3", "smollm3", "phi4_multimodal", "gemma3", "gemma4", "glm4", "glm4_moe", "qwen3", "qwen3_moe",
    "qwen3_next", "qwen3_5", "qwen3_5_moe", "mixtral", "gpt_oss", "deepseek_v3", "deepseek_v4", "kimi_linear",
    "minimax_m2", "llama4", "ernie4_5_moe", "lfm2", "olmo_hybrid", "falcon_h1", "granitemoehybrid", "nemotron_h",
    "jamba", "bamba",
)  # fmt: skip


def main() -> dict[str, float]:
    """The share that is covered, 0 to 1, and the weights that are trained, in millions."""
    figures = {}
    for kind in KINDS:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind), dtype=torch.bfloat16)
            adapted = new_adapter(model, Path("base"), TrainSettings())
        found = coverage(adapted)
        trained = sum(value.numel() for value in adapted.parameters() if value.requires_grad)
        figures |= {f"coverage_{kind}": found.share, f"coverage_{kind}_millions_trained": trained / 1e6}
        print(f"| `{kind}` | {found.share:.1%} | {trained / 1e6:.0f} | {', '.join(found.missing[:2])} |", flush=True)
    return figures
