"""Estimates the memory of a training on each device before it starts, from the base model's config.json and settings.

The training itself does not depend on the estimate: it computes fewer rows at once if memory runs out (`engine.ways`).
Activations are what autograd keeps of dense decoder layers such as Llama's: linear layers with LoRA, RMSNorm in
float32, gated MLP, attention that keeps no scores. Korthikanti et al. 2022 (Reducing activation recomputation in large
transformer models) count the same way for GPT's layers. 4-bit weights: Dettmers et al. 2023 (QLoRA). Sharding: each
device holds its part of the weights and two complete layers, the current one and the next (FSDP).
"""

import json
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from retuned.consumers.errors import RetunedError
from retuned.retrain.settings import TrainSettings
from retuned.retrain.training import engine
from retuned.retrain.training.engine import Engine
from retuned.retrain.training.memory import PROCESS_BYTES, TRAINED_BYTES, bytes_per_weight, shapes

GPU_RESERVED = 2 * 2**30
"""Per GPU: CUDA's context, workspaces of matrix products, logits of some tokens at a time."""
TRL_WORKING = 600 * 2**20
"""Further memory of TRL's training on a CPU: tiles of logits, gradients in flight. Between the measurements of a model
of 135 million weights in float32 (300 MB at 1,024 tokens) and in bfloat16 (860 MB at 480)."""
NF4_BYTES = 0.5 + 0.127 / 8
"""Bytes of a 4-bit weight, with its share of the doubly quantized scales."""

_FULL = 0.9  # the usable share: allocations leave gaps, and estimates are inexact
_BLOCK = 64
_PACK_TOKENS = 1_024
_NORMS = 25
"""Bytes that a decoder layer keeps per token and unit of its width, beside MLP, keys and values: two norms with their
copies in float32, the inputs of the projections, queries, and the output of attention. Measured; equal within
3% in both precisions, as float32 needs no copies."""


@dataclass(frozen=True)
class Shape:
    """The dimensions of a dense decoder, from its config.json."""

    model_type: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    key_heads: int
    head_size: int
    vocabulary: int
    tied: bool

    @classmethod
    def of(cls, base: Path) -> "Shape":
        """Reads the shape from a base model's folder, which need not hold weights.

        Raises:
            RetunedError: there is no config.json, or it does not describe a dense decoder.
        """
        file = base / "config.json"
        try:
            config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RetunedError(f"{file} cannot be read ({error}); name a folder with a model's config.json") from error
        text = config | config.get("text_config", {})
        if any("expert" in name and value for name, value in text.items()):
            raise RetunedError(f"{file}: the plan supports no mixtures of experts; set train.memory_bytes by a trial")
        try:
            heads = text.get("num_attention_heads") or text["n_head"]
            hidden = text.get("hidden_size") or text["n_embd"]
            return cls(
                model_type=config["model_type"],
                layers=text.get("num_hidden_layers") or text["n_layer"],
                hidden=hidden,
                intermediate=text.get("intermediate_size") or text.get("n_inner") or 4 * hidden,
                heads=heads,
                key_heads=text.get("num_key_value_heads") or heads,
                head_size=text.get("head_dim") or hidden // heads,
                vocabulary=text["vocab_size"],
                tied=config.get("tie_word_embeddings", False),
            )
        except KeyError as error:
            raise RetunedError(f"{file} has no {error}: the plan supports decoders in transformers' format") from error

    @property
    def linear(self) -> list[tuple[int, int]]:
        """The input and output sizes of the linear layers of a decoder layer."""
        queries, keys = self.heads * self.head_size, self.key_heads * self.head_size
        attention = [(self.hidden, queries), (self.hidden, keys), (self.hidden, keys), (queries, self.hidden)]
        return [*attention, *[(self.hidden, self.intermediate)] * 2, (self.intermediate, self.hidden)]

    @property
    def layer_weights(self) -> int:
        """The number of weights in the matrices of one decoder layer."""
        return sum(inputs * outputs for inputs, outputs in self.linear)

    @property
    def other_weights(self) -> int:
        """The number of weights in embeddings, head and norms."""
        matrices = self.vocabulary * self.hidden * (1 if self.tied else 2)
        return matrices + (2 * self.layers + 1) * self.hidden

    @property
    def parameters(self) -> int:
        """The number of weights of the base model."""
        return self.layers * self.layer_weights + self.other_weights

    def adapter(self, rank: int) -> int:
        """Returns the number of weights of an adapter on all linear layers."""
        return self.layers * rank * sum(map(sum, self.linear))


@dataclass(frozen=True)
class Plan:
    """The plan of a training. Sizes are bytes per device, or of the machine if there is no GPU.

    Attributes:
        precision: the precision of the frozen base model.
        devices: the number of GPUs, each with a process; 0: a CPU.
        micro_batch_size: the rows that a device computes at once.
        weights: the frozen base model.
        trained: the trained weights, with their gradients and the optimizer's state.
        activations: what a forward pass keeps for the backward pass, at the longest rows.
        reserved: memory of the process or the device for any model.
        available: None: unknown.
        evaluation: the base model in evaluation, whole on one device.
    """

    engine: Engine
    precision: str
    learning_rate: float
    devices: int
    micro_batch_size: int
    gradient_checkpointing: bool
    sharded: bool
    weights: int
    trained: int
    activations: int
    reserved: int
    available: int | None
    evaluation: int

    @property
    def total(self) -> int:
        """All bytes that the training needs."""
        return self.weights + self.trained + self.activations + self.reserved

    def holds(self, size: int) -> bool:
        """Whether so many bytes fit with a tenth to spare; true if the available memory is unknown."""
        return self.available is None or size <= _FULL * self.available


def plan(base: Path, settings: TrainSettings, gpus: int, available: int | None, longest: int | None = None) -> Plan:
    """Plans a training on `gpus` GPUs, or on a CPU: the first of `engine.ways` that fits, else the last.

    Args:
        available: bytes of each GPU, or of this machine.
        longest: tokens of the longest row; None: `train.max_length`.

    Raises:
        RetunedError: the base model's shape is unknown, or settings contradict each other.
    """
    shape, longest = Shape.of(base), longest or settings.max_length
    chosen = engine.choose(shape.model_type, settings, gpus)
    devices = min(settings.processes or gpus, gpus)
    processes = devices or settings.processes or 1
    width = bytes_per_weight(settings, on_gpu=devices > 0)
    sharded = settings.accelerate_file is not None and devices > 1
    parameters = sum(prod(sizes) for _, sizes in shapes(base)) or shape.parameters
    if settings.method == "full":
        trained = shape.layers * shape.layer_weights
        weights = whole_model = 4 * (parameters - trained)
        layer = 4 * shape.layer_weights
        whole_model += width * trained
        # In mixed precision, a step computes with a second copy of the weights.
        trained *= TRAINED_BYTES + (width if width < 4 else 0)
    else:
        trained = TRAINED_BYTES * shape.adapter(settings.rank)
        each = NF4_BYTES if settings.method == "qlora" else width
        weights = whole_model = int((parameters - shape.other_weights) * each) + shape.other_weights * width
        layer = int(shape.layer_weights * each)
    if sharded:
        weights, trained = weights // devices + 2 * layer, trained // devices
    reserved = GPU_RESERVED if devices else PROCESS_BYTES + (TRL_WORKING if chosen.name == "trl" else 0)
    on_one = 1 if devices else processes  # processes on a CPU share its memory
    computes = "bfloat16" if width == 2 else "float32"
    # packed limits the tokens at once, not the rows.
    ways = [(settings.batch_size, False)] if chosen.name == "packed" else engine.ways(settings, processes)
    for rows, checkpointing in ways:
        option = Plan(
            engine=chosen,
            precision=f"4 bits (NF4), computing in {computes}" if settings.method == "qlora" else computes,
            learning_rate=settings.for_model(parameters).learning_rate or 0.0,
            devices=devices,
            micro_batch_size=rows,
            gradient_checkpointing=checkpointing,
            sharded=sharded,
            weights=on_one * weights,
            trained=on_one * trained,
            activations=on_one * _activations(shape, chosen, settings.rank, width, rows, longest, checkpointing),
            reserved=on_one * reserved,
            available=available,
            evaluation=reserved + whole_model,
        )
        if option.holds(option.total):
            break
    return option


def ways_out(base: Path, settings: TrainSettings, gpus: int, available: int | None) -> list[tuple[str, int]]:
    """Returns changes of settings with which a training would fit, each with the bytes that a device then needs."""
    changes: dict[str, dict[str, Any]] = {"train.method: qlora": {"method": "qlora"}}
    if gpus > 1:
        shards = {"method": "lora", "accelerate_file": Path("fsdp2.yaml")}
        changes["train.accelerate_file: one with FSDP"] = shards
    tried = {name: plan(base, settings.model_copy(update=change), gpus, available) for name, change in changes.items()}
    return [(name, option.total) for name, option in tried.items() if option.holds(option.total)]


def _activations(
    shape: Shape, chosen: Engine, rank: int, width: int, rows: int, longest: int, checkpointing: bool
) -> int:
    """Returns the bytes that a forward pass keeps, at the longest rows."""
    # With padded rows, transformers repeats keys and values for each head that shares them.
    tokens, attention = rows * longest, 2 * shape.heads * shape.head_size
    if chosen.name == "packed":
        # Each block of queries has the keys and values of its whole path, and attention keeps its probabilities.
        tokens = max(min(_PACK_TOKENS, tokens), longest)
        attention = 2 * shape.key_heads * shape.head_size * longest // _BLOCK + shape.heads * longest
    layer = _NORMS * shape.hidden + width * (4 * shape.intermediate + attention + len(shape.linear) * rank)
    if checkpointing:
        return tokens * (width * shape.hidden * shape.layers + layer)
    return tokens * layer * shape.layers
