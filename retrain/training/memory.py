"""How much memory a training needs at least, from its base model and settings; `plan.py` says what it is for."""

import json
import struct
from collections.abc import Iterator
from math import prod
from pathlib import Path

from retuned.retrain.runners.devices import has_gpu
from retuned.retrain.settings import TrainSettings
from retuned.retrain.training.base_model import expert_rank, text_config

PROCESS_BYTES = 600 * 2**20
"""Of a child with torch and transformers loaded, before any model."""
TRAINED_BYTES = 20
"""Of a weight that is trained, in float32: itself, its gradient, AdamW's two means, and the copy of the best epoch."""
QUANTIZED_BYTES = 0.6


def needed_bytes(base: Path, settings: TrainSettings) -> int | None:
    """The least that a training takes; None: nothing is known of the base model.

    What a step computes comes on top: it grows with the length of the examples, which is not known before. A GPU holds
    the model and all that is trained, and leaves the process.
    """
    if settings.memory_bytes is not None:
        return settings.memory_bytes
    found = list(shapes(base))
    if not found:
        return None
    if has_gpu(settings):
        return PROCESS_BYTES
    weights = sum(prod(shape) for _, shape in found)
    experts = [shape for name, shape in found if _is_expert(name, shape)]
    others = [
        shape for name, shape in found if len(shape) == 2 and not _is_embedding(name) and not _is_expert(name, shape)
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
            weights += sum(map(prod, experts))  # PEFT adds an adapter to a copy of them
        each = QUANTIZED_BYTES if settings.method == "qlora" else bytes_per_weight(settings, on_gpu=False)
        model = int(weights * each) + TRAINED_BYTES * adapter
    return (PROCESS_BYTES + model) * (settings.processes or 1)


def shapes(base: Path) -> Iterator[tuple[str, list[int]]]:
    """Names and shapes of the tensors, from the headers of the safetensors files."""
    for file in sorted(base.glob("*.safetensors")):
        try:
            with file.open("rb") as handle:
                (size,) = struct.unpack("<Q", handle.read(8))
                header = json.loads(handle.read(min(size, file.stat().st_size)))
        except (OSError, ValueError, struct.error):
            continue  # whoever loads it reports what is wrong
        yield from ((name, tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")


def _is_expert(name: str, shape: list[int]) -> bool:
    """One expert's matrix, or those of all experts of a layer."""
    return ".experts." in name and len(shape) in (2, 3)


def _is_embedding(name: str) -> bool:
    return any(part in name for part in ("embed", "lm_head", "wte", "wpe"))


def bytes_per_weight(settings: TrainSettings, *, on_gpu: bool) -> int:
    """Of the frozen model. As `dtype: auto` chooses on most machines: bfloat16 on a GPU, and on a CPU with units for
    it."""
    if settings.dtype != "auto":
        return 2 if settings.dtype == "bfloat16" else 4
    if on_gpu:
        return 2
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return 2
    return 2 if any(flag in flags for flag in ("avx512_bf16", "amx_bf16", " bf16")) else 4
