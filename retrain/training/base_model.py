"""The frozen base model, as the child processes load it. Imports torch inside: only children may."""

import json
import time
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retuned.consumers.errors import ConfigurationError, RetunedError
from retuned.retrain.settings import Base, ProviderModel

if TYPE_CHECKING:
    import torch

_ACTIVE = ("num_experts_per_tok", "num_experts_per_token", "top_k_experts", "moe_k", "moe_topk", "moe_top_k")
"""The keys of configurations that name how many experts a token passes through."""
_TRIAL_SECONDS = 0.05


def check_base_model(base: Base | None, key: str = "models.base") -> str:
    """What the base model's folder holds. A provider is not asked.

    Args:
        key: what named it.

    Raises:
        ConfigurationError: it is not there, or not a model in transformers' format.
    """
    if base is None:
        return f"none ({key}): the daemon watches and never trains"
    if isinstance(base, ProviderModel):
        return f"{base}, which a provider has (train.engine api)"
    folder = base
    config = folder / "config.json"
    if not folder.is_dir():
        raise ConfigurationError(f"{key}: {folder} is not there; give the folder of a model in transformers' format")
    if not config.is_file() or not any(folder.glob("*.safetensors")):
        raise ConfigurationError(
            f"{key}: {folder} holds no config.json and *.safetensors; is it a model in transformers' format?"
        )
    if not (folder / "tokenizer_config.json").is_file():
        raise ConfigurationError(f"{key}: {folder} holds no tokenizer (tokenizer_config.json)")
    try:
        kind = json.loads(config.read_text(encoding="utf-8")).get("architectures", ["?"])[0]
    except (ValueError, OSError) as error:
        raise ConfigurationError(f"{key}: {config} cannot be read ({error})") from error
    return f"{kind} in {folder}"


def model_type(folder: Path) -> str:
    """As the base model's config.json has it; of one that also sees or hears, that of the whole."""
    return str(json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type", ""))


def has_experts(folder: Path) -> bool:
    """Whether the base model is a mixture of experts, by its config.json; no where there is none."""
    config = text_config(folder)
    return any(key.startswith("n") and key.endswith("_experts") and value for key, value in config.items())


def expert_rank(rank: int, config: Mapping[str, Any]) -> int:
    """The rank of an adapter on one expert, by the configuration of the language model. A token passes through several
    experts, whose ranks add up to that of a layer that is always on."""
    return max(1, rank // next((int(config[key]) for key in _ACTIVE if config.get(key)), 1))


def text_config(folder: Path) -> dict[str, Any]:
    """The configuration of the language model in a base model's folder; empty where there is none."""
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return config | (config.get("text_config") or {})


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer, with a pad token that is not the end of a turn where there is another."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        others = [token for token in tokenizer.all_special_tokens if token != tokenizer.eos_token]
        ends = [token for token in others if "endoftext" in token or "pad" in token.casefold()]
        tokenizer.pad_token = (ends or others or [tokenizer.eos_token])[0]
    return tokenizer


def load_config(folder: Path) -> Any:
    """The configuration of a causal language model.

    Raises:
        RetunedError: transformers has no causal language model of this type.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, __version__

    try:
        config = AutoConfig.from_pretrained(folder)
    except ValueError as error:
        reason = str(error).splitlines()[0]
        raise RetunedError(
            f"models.base: transformers {__version__} does not read {folder / 'config.json'} ({reason}); install a "
            "version that does, or take another base model"
        ) from error
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise RetunedError(
            f"models.base: {folder} is of type {config.model_type}, of which transformers {__version__} has no causal "
            "language model (AutoModelForCausalLM), so it cannot be trained; take another base model"
        )
    return config


def load_model(
    folder: Path,
    dtype: "torch.dtype",
    *,
    quantized: bool = False,
    attention: str | None = None,
    sharded: bool = False,
) -> Any:
    """The causal language model, frozen, in evaluation mode, on this process's GPU where there is one.

    Args:
        quantized: linear layers in 4 bits (NF4), as in QLoRA (Dettmers et al. 2023).
        attention: transformers' name of an implementation; None: this package's, where it is proven.
        sharded: it is left where accelerate will shard it from.

    Raises:
        RetunedError: transformers has no such model, or bitsandbytes, which quantizes, is not there.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from retuned.retrain.kernels.attention import install

    load_config(folder)
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    how = _quantization(dtype) if quantized else {}
    if attention is not None:
        how["attn_implementation"] = attention
    if quantized or (device.type != "cpu" and not sharded):
        # Tensor by tensor to where it computes: processes that load at once must not fill the machine's memory.
        how["device_map"] = {"": device}
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **how)
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            # bitsandbytes would lay the weights out for inference at the first call without gradients, for good, and
            # what is computed from that layout has none.
            module.support_avx512bf16_for_cpu = False
    if attention is None:
        install(model)
    head = model.get_output_embeddings()
    if isinstance(head, torch.nn.Linear):
        # A frozen bf16 head on a slice of the hidden states takes a kernel 200 times slower and copies the weight.
        head.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(), *inputs[1:]))
    return model.requires_grad_(False).eval()


def _quantization(dtype: "torch.dtype") -> dict[str, Any]:
    if find_spec("bitsandbytes") is None:
        raise RetunedError(
            "train.method qlora: bitsandbytes is not installed; run pip install 'retuned[qlora]', or set lora"
        )
    from transformers import BitsAndBytesConfig

    nf4 = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    return {"quantization_config": nf4}


def choose_dtype(wanted: str) -> "torch.dtype":
    """bfloat16 or float32: what the settings say, or bfloat16 where the machine has units for it.

    A CPU without them emulates it, many times slower than float32. Where torch cannot tell, a trial of 50 ms does.
    """
    import torch

    if wanted != "auto":
        return torch.bfloat16 if wanted == "bfloat16" else torch.float32
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
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
