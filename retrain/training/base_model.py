"""Reads, checks and loads the frozen base model. Functions import torch when called, in child processes only."""

import json
import time
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retuned.consumers.errors import ConfigurationError, RetunedError

if TYPE_CHECKING:
    import torch

_ACTIVE = ("num_experts_per_tok", "num_experts_per_token", "top_k_experts", "moe_k", "moe_topk", "moe_top_k")
"""The configuration keys with the number of experts per token."""
_TRIAL_SECONDS = 0.05


def check_base_model(base: Path | None, key: str = "models.base") -> str:
    """Returns a description of the model in the base model's folder.

    Args:
        key: the setting that names the folder.

    Raises:
        ConfigurationError: the folder does not exist, or holds no model in transformers' format.
    """
    if base is None:
        return f"none ({key}): the daemon watches and never trains"
    folder = base
    config = folder / "config.json"
    if not folder.is_dir():
        raise ConfigurationError(f"{key}: {folder} does not exist; name the folder of a model in transformers' format")
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
    """Returns the model type in the base model's config.json; for a multimodal model, that of the whole model."""
    return str(json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type", ""))


def has_experts(folder: Path) -> bool:
    """Whether the base model is a mixture of experts, by its config.json; false without one."""
    config = text_config(folder)
    return any(key.startswith("n") and key.endswith("_experts") and value for key, value in config.items())


def expert_rank(rank: int, config: Mapping[str, Any]) -> int:
    """Returns the rank of an adapter on one expert, from the language model's configuration. A token passes through
    several experts, whose ranks add up to that of an ordinary layer."""
    return max(1, rank // next((int(config[key]) for key in _ACTIVE if config.get(key)), 1))


def text_config(folder: Path) -> dict[str, Any]:
    """Returns the language model's configuration in a base model's folder; empty if there is none."""
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return config | (config.get("text_config") or {})


def load_tokenizer(folder: Path) -> Any:
    """Loads the tokenizer, with a pad token other than the end of a turn if there is one."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        others = [token for token in tokenizer.all_special_tokens if token != tokenizer.eos_token]
        ends = [token for token in others if "endoftext" in token or "pad" in token.casefold()]
        tokenizer.pad_token = (ends or others or [tokenizer.eos_token])[0]
    return tokenizer


def load_config(folder: Path) -> Any:
    """Loads the configuration of a causal language model.

    Raises:
        RetunedError: transformers has no causal language model of this type.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, __version__

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except ValueError as error:
        if "auto_map" in text_config(folder):
            raise RetunedError(
                f"models.base: {folder / 'config.json'} needs the code in its folder, which is not run; choose a base "
                f"model of a type that transformers {__version__} has"
            ) from error
        reason = str(error).splitlines()[0]
        raise RetunedError(
            f"models.base: transformers {__version__} does not read {folder / 'config.json'} ({reason}); install a "
            "version that does, or choose another base model"
        ) from error
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise RetunedError(
            f"models.base: {folder} is of type {config.model_type}, for which transformers {__version__} has no causal "
            "language model (AutoModelForCausalLM), so it cannot be trained; choose another base model"
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
    """Loads the causal language model, frozen, in evaluation mode, on this process's GPU if there is one.

    Args:
        quantized: linear layers in 4 bits (NF4), as in QLoRA (Dettmers et al. 2023).
        attention: transformers' name of an implementation; None: ours, for supported models.
        sharded: keep the model in memory of the machine, from which accelerate shards it.

    Raises:
        RetunedError: transformers has no such model, or bitsandbytes, which quantizes, is not installed.
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
        # Load tensor by tensor onto the device: processes that load at once must not fill the machine's memory.
        how["device_map"] = {"": device}
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, use_safetensors=True, trust_remote_code=False, **how
    )
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            # At the first call without gradients, bitsandbytes would change the layout of the weights for inference,
            # permanently, and that layout has no gradients.
            module.support_avx512bf16_for_cpu = False
    if attention is None:
        install(model)
    head = model.get_output_embeddings()
    if isinstance(head, torch.nn.Linear):
        # On a slice of the hidden states, a frozen bf16 head uses a kernel 200 times slower and copies the weight.
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
    """Returns the configured dtype; for `auto`, bfloat16 if the hardware supports it, else float32.

    A CPU without support emulates bfloat16, many times slower than float32. If torch reports nothing, a trial of 50 ms
    decides.
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
        # Alternate, and take the fastest of each: other work on this machine can only slow a product down.
        for dtype, (left, right) in pairs.items():
            start = time.perf_counter()
            left @ right.T
            best[dtype] = min(best[dtype], time.perf_counter() - start)
    # Emulated bfloat16 is several times slower; the margin allows for noise on a busy machine.
    return torch.bfloat16 if best[torch.bfloat16] < 1.5 * best[torch.float32] else torch.float32
