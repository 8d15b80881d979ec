"""LoRA adapters on a frozen base model (Hu et al. 2021), through PEFT, with the layers' arithmetic fused.

Runs in child processes alone.
"""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, TaskType, get_peft_model
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn
from torch.nn import functional

from retuned.consumers.errors import RetunedError
from retuned.retrain import attention
from retuned.retrain.batches import Encoded, packed_losses, padded, padded_losses
from retuned.retrain.settings import TrainSettings

LAYERS = (
    "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",  # Llama, Mistral, Qwen, Gemma
    "query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h",  # Falcon, GPT-NeoX
    "c_attn", "c_proj", "c_fc",  # GPT-2
    "qkv_proj", "gate_up_proj", "fc1", "fc2",  # Phi
)  # fmt: skip
"""The linear layers of attention and MLP, by the names that models give them."""


def new_adapter(model: nn.Module, base: Path, settings: TrainSettings) -> Any:
    """The base model with a fresh adapter, which at first changes nothing."""
    present = {name.rsplit(".", 1)[-1] for name, _ in model.named_modules()}
    named = settings.target_modules or tuple(name for name in LAYERS if name in present) or None
    if settings.target_modules and not present & set(settings.target_modules):
        raise RetunedError(
            f"train.target_modules {', '.join(settings.target_modules)}: the base model {base} has none of them; "
            "leave it out to take the usual ones"
        )
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        use_dora=settings.use_dora,
        use_rslora=settings.use_rslora,
        target_modules=list(named) if named else None,
        task_type=TaskType.CAUSAL_LM,
        base_model_name_or_path=str(base),
    )
    try:
        return get_peft_model(model, config).eval()
    except ValueError as error:
        raise RetunedError(
            f"train.target_modules: name the layers to adapt in the base model {base} ({error})"
        ) from error


def load_adapter(
    model: nn.Module, folder: Path, *, name: str = "default", trainable: bool = False, dropout: float = 0.0
) -> Any:
    """The model with a saved adapter under a name (without dots); the model may have others already.

    Args:
        dropout: of this training; what the adapter was trained with before does not count.

    Raises:
        RetunedError: the adapter was made for another base model.
    """
    try:
        if isinstance(model, PeftModel):
            model.load_adapter(folder, adapter_name=name, is_trainable=trainable)
            return model.eval()
        config = PeftConfig.from_pretrained(folder)
        config.lora_dropout = dropout
        found = PeftModel.from_pretrained(model, folder, adapter_name=name, is_trainable=trainable, config=config)
        return found.eval()
    except (RuntimeError, ValueError) as error:
        raise RetunedError(
            f"adapter {folder}: does not fit the base model (another number or size of layers); "
            "set models.base to the one that it was trained on"
        ) from error


class FusedLora(torch.autograd.Function):
    """y = x Wᵀ + b + s (x Aᵀ) Bᵀ with W and b frozen.

    PEFT computes the same from separate layers, which cast and keep more activations than the gradients of A, B and x
    need.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        a_cast, b_cast = a.to(flat.dtype), b.to(flat.dtype)
        y = functional.linear(flat, weight, bias)
        inner = flat @ a_cast.T
        y.addmm_(inner, b_cast.T, alpha=scale)
        ctx.save_for_backward(flat, inner, weight, a_cast, b_cast)
        ctx.scale, ctx.shape, ctx.dtype = scale, x.shape, a.dtype
        return y.view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        flat, inner, weight, a, b = ctx.saved_tensors
        g = gradients[0].reshape(-1, weight.shape[0])
        g_b = (g.T @ inner).mul_(ctx.scale).to(ctx.dtype)
        g_inner = (g @ b).mul_(ctx.scale)
        g_a = (g_inner.T @ flat).to(ctx.dtype)
        g_x = (g @ weight).addmm_(g_inner, a).view(ctx.shape) if ctx.needs_input_grad[0] else None
        return g_x, None, None, g_a, g_b, None


def fuse(model: Any) -> int:
    """Let the adapted linear layers compute with FusedLora where it says the same; returns how many do.

    Layers with dropout, DoRA, a quantized weight, a LoRA bias or a transposed weight keep PEFT's forward, and so does any call with
    adapters off, merged, mixed or several at once.
    """
    count = 0
    for module in model.modules():
        if isinstance(module, LoraLinear) and _plain(module):
            module.forward = _fused_forward(module)
            count += 1
    head = model.get_output_embeddings()
    if isinstance(head, nn.Linear):
        # A frozen bf16 head on a slice of the hidden states takes a kernel 200 times slower and copies the weight.
        head.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(), *inputs[1:]))
    return count


def dropping(model: nn.Module, on: bool) -> None:
    """Switch the adapters' dropout; that of the base model stays off."""
    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.lora_dropout.train(on)


def _plain(module: Any) -> bool:
    base = module.get_base_layer()
    return (
        type(base) is nn.Linear
        and not module.fan_in_fan_out
        and not module.lora_variant
        and all(isinstance(dropout, nn.Identity) for dropout in module.lora_dropout.values())
        and not any(layer.bias is not None for layer in module.lora_B.values())
    )


def _fused_forward(module: Any) -> Any:
    plain = module.forward

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        active = module.active_adapters
        if (
            module.disable_adapters
            or module.merged
            or args
            or kwargs
            or len(active) != 1
            or active[0] not in module.lora_A
        ):
            return plain(x, *args, **kwargs)
        name, base = active[0], module.get_base_layer()
        return FusedLora.apply(  # type: ignore[no-untyped-call]
            x, base.weight, base.bias, module.lora_A[name].weight, module.lora_B[name].weight, module.scaling[name]
        )

    return forward


def packing_fits(model: Any, rows: Sequence[Encoded], pad: int, max_length: int) -> bool:
    """Does this model compute on a pack what it computes on a padded batch? Found by trying it on the shortest rows.

    It does not with positions of its own making, with attention that cannot be exchanged or sees a window only, with
    recurrent layers, or with logits that are more than a linear layer's.
    """
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    head = model.get_output_embeddings()
    if (
        config._attn_implementation != attention.NAME
        or type(head) is not nn.Linear
        or "position_ids" not in inspect.signature(model.get_base_model().base_model.forward).parameters
        or (window and window < max_length)
    ):
        return False
    trial = sorted(rows, key=len)[:3]
    with torch.no_grad():
        if not _logits_are_linear(model, trial[:1], pad):
            return False
        expected = padded_losses(model, trial, pad)
        try:
            found = packed_losses(model, trial, pad)
        except (RuntimeError, ValueError, TypeError, IndexError):
            return False
    tolerance = 1e-3 if model.dtype == torch.float32 else 0.05 + 0.02 * float(expected.max())
    return bool((found - expected).abs().mean() < tolerance)


def _logits_are_linear(model: Any, rows: Sequence[Encoded], pad: int) -> bool:
    """No scale, no cap: what the head makes of the hidden states are the logits."""
    base = model.get_base_model()
    batch = {name: value.to(model.device) for name, value in padded(rows, pad).items() if name != "labels"}
    hidden = base.base_model(**batch, use_cache=False).last_hidden_state
    return torch.allclose(base.get_output_embeddings()(hidden), base(**batch, use_cache=False).logits, rtol=1e-4)
