"""What a training would load where, by the base model's config.json and the settings, before anything is loaded.

The activations are what autograd keeps of dense decoder layers as Llama has them: linear layers with LoRA, RMSNorm in
float32, gated MLP, attention that keeps no scores. Korthikanti et al. 2022 (Reducing activation recomputation in large
transformer models) count the same way for GPT's layers. 4-bit weights: Dettmers et al. 2023 (QLoRA). Sharding: each
device holds its part of the weights and two layers in whole, the one that computes and the next (FSDP).
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from retuned.consumers.errors import RetunedError
from retuned.retrain.settings import TrainSettings
from retuned.retrain.training import engine
from retuned.retrain.training.engine import Engine
from retuned.retrain.training.memory import PROCESS_BYTES, TRAINED_BYTES, bytes_per_weight, shapes

GPU_RESERVED = 2 * 2**30
"""Of a GPU: CUDA's context, workspaces of matrix products, logits of some tokens at a time."""
TRL_WORKING = 600 * 2**20
"""What TRL's training takes beside all that on a CPU: tiles of logits, gradients on their way. Between what was
measured of a model of 135 million weights in float32 (300 MB at 1,024 tokens) and in bfloat16 (860 MB at 480)."""
NF4_BYTES = 0.5 + 0.127 / 8
"""Of a weight in 4 bits, with its share of the doubly quantized scales."""

_FULL = 0.9  # allocations leave gaps, and estimates are off
_BLOCK = 64
_PACK_TOKENS = 1_024
_NORMS = 25
"""Bytes that a decoder layer keeps of a token for each unit of its width beside MLP, keys and values: two norms with
their copies in float32, the inputs of the projections, queries, and what attention returns. Measured; the same within
3% in both precisions, as float32 needs no copies."""


@dataclass(frozen=True)
class Shape:
    """What memory depends on: a dense decoder, from its config.json."""

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
        """Of a base model's folder, which needs to hold no weights.

        Raises:
            RetunedError: there is no config.json, or it describes something else than a dense decoder.
        """
        file = base / "config.json"
        try:
            config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RetunedError(f"{file} cannot be read ({error}); name a folder with a model's config.json") from error
        text = config | config.get("text_config", {})
        if any("expert" in name and value for name, value in text.items()):
            raise RetunedError(f"{file}: the plan knows no mixtures of experts; set train.memory_bytes by a trial")
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
            raise RetunedError(f"{file} has no {error}: the plan knows decoders as transformers has them") from error

    @property
    def linear(self) -> list[tuple[int, int]]:
        """Inputs and outputs of the linear layers of a decoder layer."""
        queries, keys = self.heads * self.head_size, self.key_heads * self.head_size
        attention = [(self.hidden, queries), (self.hidden, keys), (self.hidden, keys), (queries, self.hidden)]
        return [*attention, *[(self.hidden, self.intermediate)] * 2, (self.intermediate, self.hidden)]

    @property
    def layer_weights(self) -> int:
        """Of one decoder layer's matrices."""
        return sum(inputs * outputs for inputs, outputs in self.linear)

    @property
    def other_weights(self) -> int:
        """Embeddings, head and norms."""
        matrices = self.vocabulary * self.hidden * (1 if self.tied else 2)
        return matrices + (2 * self.layers + 1) * self.hidden

    @property
    def parameters(self) -> int:
        """All weights of the base model."""
        return self.layers * self.layer_weights + self.other_weights

    def adapter(self, rank: int) -> int:
        """Weights of an adapter on all linear layers."""
        return self.layers * rank * sum(map(sum, self.linear))


@dataclass(frozen=True)
class Memory:
    """Bytes that each device needs.

    Attributes:
        weights: of the frozen base model.
        trained: what is trained, with its gradients and the optimizer's state.
        activations: what a forward keeps for the backward, at the longest examples.
        reserved: of the process or the device, whatever the model.
    """

    weights: int
    trained: int
    activations: int
    reserved: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.trained + self.activations + self.reserved


@dataclass(frozen=True)
class Plan:
    """How a training would run.

    Attributes:
        precision: of the frozen base model.
        devices: GPUs, each with a process; 0: a CPU.
        micro_batch_size: examples that a device computes at once, of its share of a step.
        available: bytes of each device, or of the machine; None: not known.
        evaluation: bytes of the base model where it is judged, in whole on one device.
    """

    engine: Engine
    precision: str
    learning_rate: float
    devices: int
    micro_batch_size: int
    gradient_checkpointing: bool
    sharded: bool
    memory: Memory
    available: int | None
    evaluation: int

    @property
    def fits(self) -> bool:
        """Whether each device has what training needs and a tenth to spare, as far as that is known."""
        return self.available is None or self.memory.total <= _FULL * self.available

    @property
    def evaluation_fits(self) -> bool:
        """The same of the evaluation."""
        return self.available is None or self.evaluation <= _FULL * self.available


def plan(base: Path, settings: TrainSettings, gpus: int, available: int | None, longest: int | None = None) -> Plan:
    """How a training would run on so many GPUs, or on a CPU.

    The first that fits of: all of a device's share of a step at once, or less of it; then the same with gradient
    checkpointing, which computes the forward twice. What fits nowhere is planned as it would need least.

    Args:
        available: bytes of each GPU, or of this machine.
        longest: tokens of the longest example; None: as many as `train.max_length` lets through.

    Raises:
        RetunedError: the base model's shape is not known, or settings contradict each other.
    """
    shape = Shape.of(base)
    chosen = engine.choose(shape.model_type, settings, gpus)
    devices = min(settings.processes or gpus, gpus)
    tries = [
        _planned(base, shape, chosen, settings, devices, available, longest or settings.max_length, *each)
        for each in _ways(chosen, settings, devices or settings.processes or 1)
    ]
    return next((one for one in tries if one.fits), tries[-1])


def ways_out(base: Path, settings: TrainSettings, gpus: int, available: int | None) -> list[tuple[str, int]]:
    """Settings under which a training that does not fit would, each with the bytes that a device needs then."""
    on_trl = {"engine": "trl", "preference": "none"}
    changes: list[tuple[str, dict[str, Any]]] = [
        ("train.engine: trl", on_trl),
        ("train.method: qlora", {"method": "qlora"}),
        ("train.engine: trl, train.method: qlora", on_trl | {"method": "qlora"}),
        ("train.accelerate_file: one with FSDP", on_trl | {"method": "lora", "accelerate_file": Path("fsdp2.yaml")}),
    ]
    now = plan(base, settings, gpus, available)
    found = []
    for name, change in changes:
        if now.engine.name == "trl" and "train.engine" in name:
            continue
        try:
            tried = plan(base, settings.model_copy(update=change), gpus, available)
        except RetunedError:
            continue
        if tried.fits and (tried.sharded or "accelerate_file" not in change):
            found.append((name, tried.memory.total))
    return found


def _ways(chosen: Engine, settings: TrainSettings, processes: int) -> Iterator[tuple[int, bool]]:
    """Micro batch sizes, each with and without gradient checkpointing, the fastest first."""
    share = -(-settings.batch_size // processes)
    if chosen.name == "packed":
        yield share, False  # it takes so many tokens at once, whatever the examples
        return
    if settings.batch_size % processes:
        raise RetunedError(
            f"train.batch_size {settings.batch_size}: trl cannot share it evenly among {processes} processes; set a "
            f"multiple of {processes}, or train.processes to a divisor"
        )
    for checkpointing in (False, True):
        yield from ((size, checkpointing) for size in range(share, 0, -1) if share % size == 0)


def _planned(
    base: Path,
    shape: Shape,
    chosen: Engine,
    settings: TrainSettings,
    devices: int,
    available: int | None,
    longest: int,
    micro_batch_size: int,
    checkpointing: bool,
) -> Plan:
    width = bytes_per_weight(settings, on_gpu=devices > 0)
    sharded = settings.accelerate_file is not None and devices > 1
    parts = devices if sharded else 1
    parameters = sum(prod(sizes) for _, sizes in shapes(base)) or shape.parameters
    if settings.method == "full":
        trained = shape.layers * shape.layer_weights
        weights = 4 * (parameters - trained)
        whole = 4 * shape.layer_weights
        # In mixed precision, the weights are there a second time while a step computes.
        of_trained = TRAINED_BYTES + (width if width < 4 else 0)
    else:
        trained, of_trained = shape.adapter(settings.rank), TRAINED_BYTES
        quantized = NF4_BYTES if settings.method == "qlora" else width
        weights = int((parameters - shape.other_weights) * quantized) + shape.other_weights * width
        whole = int(shape.layer_weights * quantized)
    memory = Memory(
        weights=weights // parts + (2 * whole if sharded else 0),
        trained=of_trained * trained // parts,
        activations=_activations(shape, chosen, settings.rank, width, micro_batch_size, longest, checkpointing),
        reserved=GPU_RESERVED if devices else PROCESS_BYTES + (TRL_WORKING if chosen.name == "trl" else 0),
    )
    computes = "bfloat16" if width == 2 else "float32"
    return Plan(
        engine=chosen,
        precision=f"4 bits (NF4), computing in {computes}" if settings.method == "qlora" else computes,
        learning_rate=settings.for_model(parameters).learning_rate or 0.0,
        devices=devices,
        micro_batch_size=micro_batch_size,
        gradient_checkpointing=checkpointing,
        sharded=sharded,
        memory=memory if devices else _on_one_machine(memory, settings.processes or 1),
        available=available,
        evaluation=memory.reserved + (weights + (width * trained if settings.method == "full" else 0)),
    )


def _activations(
    shape: Shape, chosen: Engine, rank: int, width: int, rows: int, longest: int, checkpointing: bool
) -> int:
    """Bytes that a forward keeps, at the longest examples."""
    inner = len(shape.linear) * rank
    if chosen.name == "packed":
        keys = shape.key_heads * shape.head_size
        tokens = max(_PACK_TOKENS, longest)
        # Each block of queries has the keys and values of its whole path, and attention keeps its shares; which keys a
        # query does not see is there once for all layers.
        shares = shape.heads * longest
        attention = 2 * keys * longest / _BLOCK + shares
        layer = 6 * shape.hidden + 2 * shape.intermediate + inner + attention
        return int(tokens * width * (layer * shape.layers + shares))
    tokens = rows * longest
    # Where rows are padded, transformers repeats keys and values for each head that shares them.
    repeated = 2 * shape.heads * shape.head_size
    layer = _NORMS * shape.hidden + width * (4 * shape.intermediate + repeated + inner)
    if checkpointing:
        return tokens * (width * shape.hidden * shape.layers + layer)
    return tokens * layer * shape.layers


def _on_one_machine(memory: Memory, processes: int) -> Memory:
    return replace(
        memory,
        weights=memory.weights * processes,
        trained=memory.trained * processes,
        activations=memory.activations * processes,
        reserved=memory.reserved * processes,
    )
