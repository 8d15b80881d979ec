"""`retuned check --plan`: what a training would load where, and whether it fits, before anything is paid for."""

import json
from datetime import UTC, datetime
from pathlib import Path

from retuned.consumers.common.memory import available_bytes
from retuned.daemon.settings import Settings
from retuned.monitors.rates import Rates, rate_on
from retuned.retrain import versions
from retuned.retrain.data import chat
from retuned.retrain.runners.devices import gpu_memory
from retuned.retrain.settings import ProviderModel
from retuned.retrain.training.plan import Plan, Shape, ways_out
from retuned.retrain.training.plan import plan as planned

CHARACTERS_OF_A_TOKEN = 4
"""A rule of thumb for English text; other languages have fewer."""


def plan(
    settings: Settings, workload: str, base: Path | None, gpus: int | None, memory: int | None
) -> tuple[bool, list[str]]:
    """Whether training and evaluation of a workload fit, and the plan in lines for people.

    Args:
        base: another base model than `models.base`; a folder needs to hold no weights.
        gpus: so many GPUs; None: those that this machine has and `train.devices` names.
        memory: bytes of each GPU; None: what those of this machine have.

    Raises:
        RetunedError: the plan needs to know more of the base model or of the GPUs.
    """
    settings = settings.for_workload(workload)
    whole = versions.need_base(settings.base_named(str(base)) if base else settings.base)
    if isinstance(whole, ProviderModel):
        return True, _at_provider(settings, workload, whole)
    base = whole
    found = [memory] * (gpus or 0) if memory is not None else gpu_memory(settings.train)
    count = len(found) if gpus is None else gpus
    available = memory or min(found, default=None) if count else available_bytes()
    made = planned(base, settings.train, count, available)
    lines = [f"{workload}: {Shape.of(base).model_type} in {base}", *_lines(made, settings)]
    lines.append(f"time          {_measured(settings, workload, base)}")
    if not made.fits:
        lines.append("DOES NOT FIT  training; it would with:")
        ways = ways_out(base, settings.train, count, available)
        lines += [f"              {way} ({_gigabytes(size)})" for way, size in ways]
        lines += [] if ways else ["              a smaller base model, or more GPUs or memory"]
    if not made.evaluation_fits:
        lines.append(
            "DOES NOT FIT  evaluation, which has the base model in whole on one device; with train.method: qlora"
        )
        lines.append("              it is in 4 bits there, and evaluate.engine: server asks where it is served")
    if made.available is None:
        lines.append("whether it fits is not known: name what each GPU has by --gpu-memory")
    return made.fits and made.evaluation_fits, lines


def _at_provider(settings: Settings, workload: str, base: ProviderModel) -> list[str]:
    """What a training of a provider would be given, by the newest dataset, and what it would cost by the rates."""
    lines = [
        f"{workload}: {base} at {settings.train.api_url}",
        "engine        api: training and evaluation are at the provider; nothing is loaded here",
    ]
    datasets = versions.workload_folder(settings.models.directory, workload) / "datasets"
    newest = max(datasets.glob("*/card.json"), key=lambda card: card.stat().st_mtime, default=None)
    if newest is None:
        return [*lines, "tokens        not known before a first dataset is made"]
    tokens = _tokens(newest.parent / "train.parquet", settings.train.context)
    epochs, roi = settings.train.epochs, settings.roi
    price = _price(roi.provider_training_token_cost, tokens * epochs, roi.currency)
    return [
        *lines,
        f"tokens        about {tokens} in the rows to train on of dataset {newest.parent.name}",
        f"training      × {epochs} epochs (train.epochs): about {tokens * epochs} tokens, {price}",
        f"evaluation    at most {settings.evaluate.maximum_examples} rows of each split and "
        f"{settings.evaluate.general_examples} general prompts, each asked of up to three models",
    ]


def _tokens(file: Path, context: bool) -> int:
    import pyarrow.parquet as pq

    rows = pq.read_table(file).to_pylist()
    return sum(len(json.dumps(chat.training_row(row, context), ensure_ascii=False)) for row in rows) // (
        CHARACTERS_OF_A_TOKEN
    )


def _price(rates: Rates | None, tokens: int, currency: str) -> str:
    rate = rate_on(rates, datetime.now(UTC).date())
    if rate is None:
        return "at a price that is not known (roi.provider_training_token_cost)"
    return f"about {tokens * rate:.2f} {currency}"


def _lines(made: Plan, settings: Settings) -> list[str]:
    has = "" if made.available is None else f" of {_gigabytes(made.available)}"
    where = f"{made.devices} GPU{'s' if made.devices > 1 else ''}{has}" if made.devices else "CPU"
    if not made.devices and made.available is not None:
        where += f", {_gigabytes(made.available)} of memory free"
    spread = "sharded over them" if made.sharded else "in whole on each" if made.devices > 1 else "in whole"
    batch = f"{settings.train.batch_size} examples in a step"
    if made.engine.name == "trl":
        batch += f", {made.micro_batch_size} at once on a device"
        batch += ", gradient checkpointing" if made.gradient_checkpointing else ", no gradient checkpointing"
    memory, tokens = made.memory, settings.train.max_length
    return [
        f"engine        {made.engine.name}: {made.engine.reason}",
        f"devices       {where}; the base model {spread}",
        f"precision     {made.precision}; what is trained in float32",
        f"learning rate {made.learning_rate:.2g} at its peak",
        f"batch         {batch}",
        f"memory        {_gigabytes(memory.total)}{' of each GPU' if made.devices else ''}: weights "
        f"{_gigabytes(memory.weights)}, trained {_gigabytes(memory.trained)}, activations at {tokens} tokens "
        f"{_gigabytes(memory.activations)}, other {_gigabytes(memory.reserved)}",
        f"evaluation    {_gigabytes(made.evaluation)} on one device, and what its batches take",
    ]


def _measured(settings: Settings, workload: str, base: Path) -> str:
    """What the champion's training took, if it was on this base model."""
    file = versions.workload_folder(settings.models.directory, workload) / versions.CHAMPION / "manifest.json"
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        training = manifest["training"]
        if Path(manifest["base_model"]) == base:
            return (
                f"the champion's took {training['seconds']:.0f} s for {training['tokens']} tokens, with engine "
                f"{training.get('engine', 'packed')} in {training['processes']} process(es)"
            )
    except (OSError, ValueError, KeyError):
        pass
    return "not known before a first training on this base model"


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
