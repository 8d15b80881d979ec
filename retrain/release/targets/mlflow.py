"""The target `mlflow`: MLflow's model registry, with a registered model for each workload.

Its versions contain the adapter, its card and its metrics. Its aliases `champion`, `challenger` and `previous` follow
retuned's. It uses MLflow's client (mlflow-skinny), which supports its authentication and artifact stores.
"""

import hashlib
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from retuned.consumers.common.lead import Lead, alone
from retuned.consumers.errors import ConfigurationError, RetunedError
from retuned.consumers.sections import secret
from retuned.retrain.release import card
from retuned.retrain.release.deployments import Wanted
from retuned.retrain.serving_settings import MlflowTarget
from retuned.retrain.versions import Version

if TYPE_CHECKING:
    from mlflow import MlflowClient

_ALIASES = {"champion": "champion", "canary": "challenger", "previous": "previous"}
_VERSION, _SERVED = "retuned.version", "retuned.served"
_PASSWORD: tuple[str, ...] = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
"""MLflow would use these instead of a token."""
_one_client = threading.Lock()
"""The client's token and timeout are environment variables, so only one client is used at a time."""


class Mlflow:
    """A registry."""

    kind, follows_aliases = "mlflow", True

    def __init__(self, settings: MlflowTarget, workloads: Sequence[str], lead: Lead = alone) -> None:
        """
        Raises:
            ConfigurationError: mlflow-skinny is not installed, or the token file cannot be read.
        """
        self.replica = settings.url
        self._settings, self._workloads, self._lead = settings, workloads, lead
        self._token = secret(None, settings.token_file, "serving.targets (mlflow): token_file")
        try:
            import mlflow  # noqa: F401
        except ImportError as error:
            raise ConfigurationError("serving.targets (mlflow): needs pip install 'retuned[mlflow]'") from error

    def registered_models(self) -> list[str]:
        """Returns the names of registered models, of the first page.

        Raises:
            RetunedError: the server does not answer.
        """
        with self._client() as client:
            return [model.name for model in client.search_registered_models()]

    def listed(self) -> dict[str, frozenset[str]]:
        names = {alias: own for own, alias in _ALIASES.items()}
        served: dict[str, frozenset[str]] = {}
        with self._client() as client:
            for workload in self._workloads:
                for version in client.search_model_versions(f"name='{_registered(workload)}'"):
                    if version.tags.get(_SERVED) == "true":
                        # On some servers a search does not return aliases.
                        known = client.get_model_version(version.name, version.version)
                        aliases = frozenset(names[alias] for alias in known.aliases if alias in names)
                        served[f"{workload}@{version.tags[_VERSION]}"] = aliases
        return served

    def check(self, version: Version) -> None:
        """Does nothing: every version can be registered."""

    def load(self, wanted: Wanted) -> None:
        version, name = wanted.version, _registered(wanted.version.workload)
        with self._client() as client:
            self._lead()
            number = _number(client, version) or _register(client, version)
            client.set_model_version_tag(name, number, _SERVED, "true")
            has = set(client.get_model_version(name, number).aliases)
            for own, alias in _ALIASES.items():
                if own in wanted.aliases:
                    client.set_registered_model_alias(name, alias, number)
                elif alias in has:
                    client.delete_registered_model_alias(name, alias)

    def unload(self, name: str) -> None:
        """Removes the aliases of a version, which stays in the registry."""
        workload, _, version = name.rpartition("@")
        with self._client() as client:
            self._lead()
            for registered in client.search_model_versions(f"name='{_registered(workload)}'"):
                if registered.tags.get(_VERSION) != version:
                    continue
                for alias in client.get_model_version(registered.name, registered.version).aliases:
                    if alias in _ALIASES.values():
                        client.delete_registered_model_alias(registered.name, alias)
                client.set_model_version_tag(registered.name, registered.version, _SERVED, "false")

    def verify(self, version: Version) -> None:
        """Returns None: a registry does not serve models."""

    @contextmanager
    def _client(self) -> "Iterator[MlflowClient]":
        """
        Raises:
            RetunedError: the server refuses or does not answer.
        """
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        own: dict[str, str | None] = {
            "MLFLOW_HTTP_REQUEST_TIMEOUT": str(int(self._settings.timeout_seconds) or 1),
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        }
        if self._token:
            own |= dict.fromkeys(_PASSWORD) | {"MLFLOW_TRACKING_TOKEN": self._token}
        with _one_client, _environment(own):
            try:
                yield MlflowClient(self._settings.url, self._settings.url)
            except (MlflowException, OSError) as error:
                raise RetunedError(
                    f"serving.targets (mlflow): {self._settings.url}: {str(error).splitlines()[0]}; start it, or "
                    "correct url or token_file"
                ) from error


@contextmanager
def _environment(own: Mapping[str, str | None]) -> Iterator[None]:
    """Sets environment variables (None unsets one), and restores them afterwards.

    So the token of one registry is not sent to another.
    """
    before = {name: os.environ.get(name) for name in own}
    try:
        _set(own)
        yield
    finally:
        _set(before)


def _set(variables: Mapping[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _registered(workload: str) -> str:
    """Returns the name of a workload's registered model. MLflow allows no slashes or colons, nor quotes in a search. A
    name with one of these gets the beginning of its hash, because another workload may have the name that is left."""
    name = workload.translate(str.maketrans("/:'\"", "----"))
    return name if name == workload else f"{name}-{hashlib.sha256(workload.encode()).hexdigest()[:8]}"


def _number(client: "MlflowClient", version: Version) -> str | None:
    """Returns the number of a version in MLflow, if it is registered."""
    known = client.search_model_versions(f"name='{_registered(version.workload)}'")
    return next((str(one.version) for one in known if one.tags.get(_VERSION) == version.version), None)


def _register(client: "MlflowClient", version: Version) -> str:
    """Creates a run with the version's metrics and files, and a version of the registered model from it.

    A run that an earlier attempt left is used again.
    """
    from mlflow.exceptions import MlflowException

    name = _registered(version.workload)
    try:
        client.create_registered_model(name, tags={"retuned.workload": version.workload})
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    experiment = client.get_experiment_by_name("retuned")
    id = experiment.experiment_id if experiment else client.create_experiment("retuned")
    tags = {_VERSION: version.version, "retuned.workload": version.workload, "retuned.run": version.run_id}
    left = client.search_runs([id], f"tags.`{_VERSION}` = '{version.version}'")
    own = (one for one in left if one.data.tags.get("retuned.workload") == version.workload)
    run = (next(own, None) or client.create_run(id, run_name=version.name, tags=tags)).info.run_id
    metrics: dict[str, Any] = version.manifest.get("metrics", {})
    for metric, value in metrics.items():
        if isinstance(value, int | float):
            client.log_metric(run, metric, float(value))
    client.log_artifacts(run, str(version.path), "adapter")
    client.set_terminated(run)
    text = version.path / card.NAME
    source = f"{client.get_run(run).info.artifact_uri}/adapter"
    created = client.create_model_version(
        name,
        source,
        run,
        tags=tags | {"retuned.base_model": version.base_model},
        description=card.without_header(text.read_text(encoding="utf-8")) if text.is_file() else None,
    )
    return str(created.version)
