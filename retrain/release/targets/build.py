"""The targets of a configuration, each once, however many workloads name it."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import chain
from pathlib import Path

from retuned.consumers.common.lead import Lead, alone
from retuned.consumers.errors import ConfigurationError, RetunedError
from retuned.consumers.warehouse.connection import Warehouse
from retuned.retrain.release.targets import adapters
from retuned.retrain.release.targets.folder import Folder
from retuned.retrain.release.targets.mlflow import Mlflow
from retuned.retrain.release.targets.sglang import Sglang
from retuned.retrain.release.targets.target import Target
from retuned.retrain.release.targets.vllm import Vllm, holds_other
from retuned.retrain.release.targets.webhook import Webhook, read_secret
from retuned.retrain.serving_settings import FolderTarget, MlflowTarget, ServerTarget, TargetSettings, WebhookTarget
from retuned.retrain.settings import Base, Settings
from retuned.retrain.versions import base_hash

_NAMED = 5


@dataclass(frozen=True)
class Place:
    """One replica of a target, as the configuration names it.

    Attributes:
        settings: of its target.
        replica: its address, or the folder.
        workloads: whose versions it gets.
    """

    settings: TargetSettings
    replica: str
    workloads: tuple[str, ...]

    @property
    def key(self) -> tuple[str, str]:
        """Its kind and its address."""
        return self.settings.kind, self.replica

    @property
    def is_server(self) -> bool:
        """Whether it is a replica of a model server."""
        return isinstance(self.settings, ServerTarget)


def places(settings: Settings, workloads: Sequence[str]) -> list[Place]:
    """The replicas of all targets of some workloads. Where two workloads name one of them, the settings of the first
    count."""
    found: dict[tuple[str, str], Place] = {}
    for workload in workloads:
        for named in chain.from_iterable(places_in(settings.for_workload(workload))):
            place = found.get(named.key, named)
            if workload not in place.workloads:
                place = replace(place, workloads=(*place.workloads, workload))
            found[place.key] = place
    return list(found.values())


def places_in(settings: Settings) -> list[list[Place]]:
    """The replicas of each target in the settings of one workload, of no workload yet."""
    return [[Place(target, one, ()) for one in _replicas(target, settings)] for target in settings.serving.targets]


def build(
    place: Place, settings: Settings, warehouse: Warehouse, now: Callable[[], datetime], lead: Lead = alone
) -> Target:
    """What talks to a replica. Files of tokens are read each time.

    Args:
        lead: checked before anything is changed there; links are this daemon's own.

    Raises:
        ConfigurationError: one cannot be read.
    """
    target, directory = place.settings, settings.models.directory
    match target:
        case FolderTarget():
            return Folder(directory, place.workloads)
        case ServerTarget():
            return server(target, place.replica, directory, lead)
        case WebhookTarget():
            return Webhook(target, warehouse, now, lead)
        case MlflowTarget():
            return Mlflow(target, place.workloads, lead)


def server(target: ServerTarget, url: str, directory: Path, lead: Lead = alone) -> Vllm:
    """One replica of a model server."""
    return (Vllm if target.kind == "vllm" else Sglang)(target, url, directory, lead)


def check(place: Place, settings: Settings) -> tuple[str, str]:
    """Ask one replica, of the targets in a workload's settings, for what it has and what it would take.

    A webhook is sent nothing: its secret is read.

    Returns:
        what to say of it, and what a person should look at although nothing is broken; empty: nothing.

    Raises:
        RetunedError: it does not answer, refuses, or would not load what is trained.
    """
    target = place.settings
    match target:
        case FolderTarget():
            return "gets links", ""
        case ServerTarget():
            if problems := adapters.check_settings(settings, target):
                raise ConfigurationError("; ".join(problems))
            asked = server(target, place.replica, settings.models.directory)
            found, notice = _check_server(asked, target.maximum_rank, settings.base)
            if adapters.adapts_experts(settings):
                found += "; adapters on experts need its flag --enable-mixed-moe-lora-format"
            return found, notice
        case WebhookTarget():
            read_secret(target.secret_file)
            return "gets signed requests; it is not asked", ""
        case MlflowTarget():
            models = Mlflow(target, ()).registered_models()
            return f"answers; {in_words(models, 'registered model')}", ""


def _check_server(asked: Vllm, maximum_rank: int, base: Base | None) -> tuple[str, str]:
    served = asked.base()
    asked.check_loading()
    root = str(served.get("root") or "")
    found = f"serves {served['id']}" + (f" ({root})" if root not in ("", served["id"]) else "")
    adapters = asked.listed()
    found += f", loads adapters of rank {maximum_rank} at most (maximum_rank), {in_words(adapters, 'adapter')}"
    try:
        other = isinstance(base, Path) and holds_other(root, base_hash(base))
    except RetunedError:
        other = False  # what is wrong with the base model is not the server's
    problems = [f"that is not {base}, whose versions would not be loaded there"] if other else []
    return found, "; ".join(filter(None, [*problems, asked.crowded(list(adapters))]))


def in_words(names: Iterable[str], what: str) -> str:
    """How many things are listed, and the first of them by name."""
    names = sorted(names)
    if not names:
        return f"lists no {what}"
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"lists {len(names)} {what}{'s' if len(names) > 1 else ''}: {', '.join(names[:_NAMED])}{more}"


def _replicas(target: TargetSettings, settings: Settings) -> Sequence[str]:
    match target:
        case FolderTarget():
            return (str(settings.models.directory),)
        case ServerTarget():
            return tuple(url.rstrip("/") for url in target.urls)
        case WebhookTarget() | MlflowTarget():
            return (target.url,)
