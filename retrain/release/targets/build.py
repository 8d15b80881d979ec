"""Creates the targets of a configuration. Workloads share targets with the same address."""

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
from retuned.retrain.settings import Settings
from retuned.retrain.versions import base_hash

_NAMED = 5


@dataclass(frozen=True)
class Place:
    """A replica of a target in the configuration.

    Attributes:
        settings: the settings of its target.
        replica: its address or folder.
        workloads: the workloads whose versions it gets.
    """

    settings: TargetSettings
    replica: str
    workloads: tuple[str, ...]

    @property
    def key(self) -> tuple[str, str]:
        """Its kind and address."""
        return self.settings.kind, self.replica

    @property
    def is_server(self) -> bool:
        """Whether it is a replica of a model server."""
        return isinstance(self.settings, ServerTarget)


def places(settings: Settings, workloads: Sequence[str]) -> list[Place]:
    """Returns the replicas of all targets of some workloads. The first workload's settings of a replica apply."""
    known: dict[tuple[str, str], Place] = {}
    for workload in workloads:
        for configured in chain.from_iterable(places_in(settings.for_workload(workload))):
            place = known.get(configured.key, configured)
            if workload not in place.workloads:
                place = replace(place, workloads=(*place.workloads, workload))
            known[place.key] = place
    return list(known.values())


def places_in(settings: Settings) -> list[list[Place]]:
    """Returns the replicas of each target in the settings of one workload, without their workloads."""
    return [[Place(target, one, ()) for one in _replicas(target, settings)] for target in settings.serving.targets]


def build(
    place: Place, settings: Settings, warehouse: Warehouse, now: Callable[[], datetime], lead: Lead = alone
) -> Target:
    """Returns the client of a replica. Reads token files each time.

    Args:
        lead: checked before changes, except of links, which belong to this daemon.

    Raises:
        ConfigurationError: a token file cannot be read.
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
    """Returns the client of a model server's replica."""
    return (Vllm if target.kind == "vllm" else Sglang)(target, url, directory, lead)


def check(place: Place, settings: Settings) -> tuple[str, str]:
    """Checks a replica. Of a webhook only the secret is checked; nothing is sent.

    Returns:
        a description, and a notice for a person, which may be empty.

    Raises:
        RetunedError: the replica does not answer, refuses, or does not support the configured adapters.
    """
    target = place.settings
    match target:
        case FolderTarget():
            return "gets links", ""
        case ServerTarget():
            if problems := adapters.check_settings(settings, target):
                raise ConfigurationError("; ".join(problems))
            client = server(target, place.replica, settings.models.directory)
            text, notice = _check_server(client, target.maximum_rank, settings.base)
            if adapters.adapts_experts(settings):
                text += "; adapters on experts need its flag --enable-mixed-moe-lora-format"
            return text, notice
        case WebhookTarget():
            read_secret(target.secret_file)
            return "gets signed requests; not checked", ""
        case MlflowTarget():
            models = Mlflow(target, ()).registered_models()
            return f"answers; {in_words(models, 'registered model')}", ""


def _check_server(client: Vllm, maximum_rank: int, base: Path | None) -> tuple[str, str]:
    served = client.base()
    client.check_loading()
    root = str(served.get("root") or "")
    text = f"serves {served['id']}" + (f" ({root})" if root not in ("", served["id"]) else "")
    adapters = client.listed()
    text += f", loads adapters of rank {maximum_rank} at most (maximum_rank), {in_words(adapters, 'adapter')}"
    try:
        other = isinstance(base, Path) and holds_other(root, base_hash(base))
    except RetunedError:
        other = False  # a problem of the base model is not one of the server
    problems = [f"that is not {base}, whose versions would not be loaded there"] if other else []
    return text, "; ".join(filter(None, [*problems, client.crowded(list(adapters))]))


def in_words(names: Iterable[str], what: str) -> str:
    """Describes a list by its length and its first names."""
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
