"""Computes the least memory of a training from its base model and settings; `plan.py` itemises an estimate."""

import json
import struct
from collections.abc import Iterator
from math import prod
from pathlib import Path

from retuned.retrain.runners.devices import has_gpu
from retuned.retrain.settings import TrainSettings
from retuned.retrain.training.base_model import expert_rank, text_config

PROCESS_BYTES = 600 * 2**20
"""A child process with torch and transformers loaded, without a model."""
TRAINED_BYTES = 16
"""Per trained weight, in float32: the weight, its gradient, and AdamW's two moments."""
QUANTIZED_BYTES = 0.6


def needed_bytes(base: Path, settings: TrainSettings) -> int | None:
    """Returns the least memory of the machine that a training takes; None if the base model's size is unknown.

    Activations come on top: they grow with the length of the examples, which is not known in advance. With a GPU, only
    the process itself counts, as the model and the trained weights are on the GPU.
    """
    if settings.memory_bytes is not None:
        return settings.memory_bytes
    tensors = list(shapes(base))
    if not tensors:
        return None
    if has_gpu(settings):
        return PROCESS_BYTES
    weights = sum(prod(shape) for _, shape in tensors)
    experts = [shape for name, shape in tensors if _is_expert(name, shape)]
    others = [
        shape for name, shape in tensors if len(shape) == 2 and not _is_embedding(name) and not _is_expert(name, shape)
    ]
    if settings.method == "full":
        matrices = sum(map(prod, [*experts, *others]))
        model = TRAINED_BYTES * matrices + 4 * (weights - matrices)
    else:
        adapter = 0
        if settings.target_modules is None:
            adapter = settings.rank * sum(map(sum, others))
            rank = expert_rank(settings.rank, text_config(base))
            adapter += rank * sum(prod(shape[:-2]) * sum(shape[-2:]) for shape in experts)
            weights += sum(map(prod, experts))  # PEFT adds the adapter to a copy of the experts
        each = QUANTIZED_BYTES if settings.method == "qlora" else bytes_per_weight(settings, on_gpu=False)
        model = int(weights * each) + TRAINED_BYTES * adapter
    return (PROCESS_BYTES + model) * (settings.processes or 1)


def shapes(base: Path) -> Iterator[tuple[str, list[int]]]:
    """Yields the names and shapes of the tensors, from the headers of the safetensors files."""
    for file in sorted(base.glob("*.safetensors")):
        try:
            with file.open("rb") as handle:
                (size,) = struct.unpack("<Q", handle.read(8))
                header = json.loads(handle.read(min(size, file.stat().st_size)))
        except (OSError, ValueError, struct.error):
            continue  # loading the model reports the error
        yield from ((name, tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")


def _is_expert(name: str, shape: list[int]) -> bool:
    """Whether a tensor is one expert's matrix, or the stack of a layer's experts."""
    return ".experts." in name and len(shape) in (2, 3)


def _is_embedding(name: str) -> bool:
    return any(part in name for part in ("embed", "lm_head", "wte", "wpe"))


def bytes_per_weight(settings: TrainSettings, *, on_gpu: bool) -> int:
    """Returns the bytes per weight of the frozen model. `dtype: auto` is taken as bfloat16 on a GPU, and on a CPU that
    supports it."""
    if settings.dtype != "auto":
        return 2 if settings.dtype == "bfloat16" else 4
    if on_gpu:
        return 2
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return 2
    return 2 if any(flag in flags for flag in ("avx512_bf16", "amx_bf16", " bf16")) else 4
