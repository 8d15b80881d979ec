"""The targets of a configuration, each once, however many workloads name it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from retuned.consumers.errors import RetunedError
from retuned.consumers.warehouse.connection import Warehouse
from retuned.retrain.release.targets.folder import Folder
from retuned.retrain.release.targets.mlflow import Mlflow
from retuned.retrain.release.targets.sglang import Sglang
from retuned.retrain.release.targets.target import Target
from retuned.retrain.release.targets.vllm import Vllm
from retuned.retrain.release.targets.webhook import Webhook, read_secret
from retuned.retrain.serving_settings import FolderTarget, MlflowTarget, ServerTarget, TargetSettings, WebhookTarget
from retuned.retrain.settings import Settings


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
        for target in settings.for_workload(workload).serving.targets:
            for replica in _replicas(target, settings):
                place = found.get((target.kind, replica), Place(target, replica, ()))
                if workload not in place.workloads:
                    place = Place(place.settings, replica, (*place.workloads, workload))
                found[place.key] = place
    return list(found.values())


def build(place: Place, settings: Settings, warehouse: Warehouse, now: Callable[[], datetime]) -> Target:
    """What talks to a replica. Files of tokens are read each time.

    Raises:
        ConfigurationError: one cannot be read.
    """
    target, directory = place.settings, settings.models.directory
    match target:
        case FolderTarget():
            return Folder(directory, place.workloads)
        case ServerTarget():
            return server(target, place.replica, directory)
        case WebhookTarget():
            return Webhook(target, warehouse, now)
        case MlflowTarget():
            return Mlflow(target, place.workloads)


def server(target: ServerTarget, url: str, directory: Path) -> Vllm:
    """One replica of a model server."""
    return (Vllm if target.kind == "vllm" else Sglang)(target, url, directory)


def check(settings: Settings) -> str:
    """Ask each replica of a workload's targets; returns what to say of them.

    A webhook is sent nothing: its secret is read.

    Raises:
        RetunedError: of all that do not answer, or refuse.
    """
    found, wrong = [], []
    for target in settings.serving.targets:
        for replica in _replicas(target, settings):
            try:
                found.append(_checked(Place(target, replica, ()), settings))
            except RetunedError as error:
                wrong.append(str(error))
    if wrong:
        raise RetunedError("; ".join(wrong))
    return "; ".join(found) or "none: nothing is told what to serve"


def _checked(place: Place, settings: Settings) -> str:
    match place.settings:
        case FolderTarget():
            return f"links below {place.replica}"
        case ServerTarget() as target:
            base = server(target, place.replica, settings.models.directory).base()
            return f"{place.replica} ({target.kind}) serves {base['id']}"
        case WebhookTarget() as target:
            read_secret(target.secret_file)
            return f"{place.replica} gets signed requests"
        case MlflowTarget() as target:
            Mlflow(target, ()).reach()
            return f"{place.replica} (mlflow) answers"


def _replicas(target: TargetSettings, settings: Settings) -> Sequence[str]:
    match target:
        case FolderTarget():
            return (str(settings.models.directory),)
        case ServerTarget():
            return tuple(url.rstrip("/") for url in target.urls)
        case WebhookTarget() | MlflowTarget():
            return (target.url,)
