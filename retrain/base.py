"""The frozen base model, as the child processes load it. Imports torch inside: only children may."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_TRIAL_SECONDS = 0.05


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer, with a pad token that is not the end of a turn where there is another."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        others = [token for token in tokenizer.all_special_tokens if token != tokenizer.eos_token]
        ends = [token for token in others if "endoftext" in token or "pad" in token.casefold()]
        tokenizer.pad_token = (ends or others or [tokenizer.eos_token])[0]
    return tokenizer


def load_model(folder: Path, dtype: "torch.dtype") -> Any:
    """The causal language model, frozen, in evaluation mode, on the GPU where there is one."""
    import torch
    from transformers import AutoModelForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    # On a CPU and at these lengths plain attention with an additive mask beats the fused kernel.
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation="eager" if device == "cpu" else None
    )
    model.requires_grad_(False).eval()
    return model.to(device)


def choose_dtype(wanted: str) -> "torch.dtype":
    """bfloat16 or float32: what the settings say, or bfloat16 where the machine has units for it.

    A CPU without them emulates it, many times slower than float32. Where torch cannot tell, a trial of 50 ms does.
    """
    import torch

    if wanted != "auto":
        return torch.bfloat16 if wanted == "bfloat16" else torch.float32
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    known: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # not in older versions
    if known.get("avx512_bf16") or known.get("amx_bf16"):
        return torch.bfloat16
    pairs = {
        dtype: (torch.ones(256, 576, dtype=dtype), torch.ones(1536, 576, dtype=dtype))
        for dtype in (torch.float32, torch.bfloat16)
    }
    best = dict.fromkeys(pairs, float("inf"))
    for left, right in pairs.values():
        left @ right.T  # the first call prepares kernels
    end = time.perf_counter() + _TRIAL_SECONDS
    while time.perf_counter() < end:
        # In turn, and the fastest of each counts: whatever else this machine is doing can only slow a product down.
        for dtype, (left, right) in pairs.items():
            start = time.perf_counter()
            left @ right.T
            best[dtype] = min(best[dtype], time.perf_counter() - start)
    # Emulated, bfloat16 is several times slower; within this margin it is real, and a busy machine blurs the figures.
    return torch.bfloat16 if best[torch.bfloat16] < 1.5 * best[torch.float32] else torch.float32
