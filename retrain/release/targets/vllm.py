"""The target `vllm`: adapters by `/v1/load_lora_adapter`, under names with their version, never replaced in place."""

import logging
import math
import re
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from retuned.consumers.common.lead import Lead, alone
from retuned.consumers.errors import ConfigurationError, RetunedError
from retuned.retrain.generation.effect_probe import Probe
from retuned.retrain.generation.lora_server import LoraServer, covers_experts
from retuned.retrain.openai_api import Client, Refused
from retuned.retrain.release.deployments import Wanted
from retuned.retrain.release.targets import adapters
from retuned.retrain.release.targets.target import Unservable, WrongModel
from retuned.retrain.serving_settings import ServerTarget
from retuned.retrain.versions import Version, base_hash

log = logging.getLogger(__name__)

_SET_TOKEN = "set token_file of the target"
_NO_ADAPTER = "retuned-check"
"""A name that no version has."""


class Vllm:
    """A replica of vLLM."""

    kind, follows_aliases = "vllm", False
    start = (
        "start it so that it loads adapters: vllm serve … --enable-lora --max-lora-rank N, with "
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True in its environment"
    )

    def __init__(self, settings: ServerTarget, url: str, directory: Path, lead: Lead = alone) -> None:
        """
        Args:
            url: of this replica, one of the settings'.
            directory: `models.directory`.

        Raises:
            ConfigurationError: the token file cannot be read.
        """
        self.replica = url
        self._settings, self._directory = settings, directory
        self._client = Client(
            f"{url.rstrip('/').removesuffix('/v1')}/v1",
            f"serving.targets ({self.kind})",
            settings.bearer_token(),
            settings.timeout_seconds,
            if_away="start it, or correct urls",
            advice={401: _SET_TOKEN, 403: _SET_TOKEN},
            pauses=(),
            lead=lead,
        )
        self.server = self._server(self._client)
        self._models: list[dict[str, Any]] | None = None  # the last list, unless an adapter was loaded since
        self._adapters = set[str]()  # the last list, and adapters loaded since

    def _server(self, client: Client) -> LoraServer:
        return LoraServer(client, self._settings.work_seconds)

    def base(self) -> dict[str, Any]:
        """Returns the base model as the server lists it."""
        return self.server.base()

    def listed(self) -> dict[str, frozenset[str]]:
        self._models = self.server.models()
        self._adapters = {model["id"] for model in self._models if model.get("parent")}
        return dict.fromkeys(self._adapters, frozenset())

    def check(self, version: Version) -> None:
        adapters.check(version, self.kind, self._settings.maximum_rank)
        models = self.server.models() if self._models is None else self._models
        base = self.server.base(models)
        self._check_base(version, str(base.get("root") or ""))
        probe = Probe.from_manifest(version.manifest)
        # Only while no adapter is loaded: vLLM for CPUs (0.32) applies an adapter to requests for the base model in
        # the same batch.
        if probe is not None and not any(model.get("parent") for model in models):
            name = str(base["id"])
            other = probe.other_base(lambda prompts: self._next_tokens(name, prompts), self._tolerance)
            if other is not None:
                raise Unservable(
                    f"{version.name}: {self.replica} serves {name}, which is not the base model that it was trained on "
                    f"({other}): serve {version.base_model} there, move the workload with `retuned rebase "
                    f"{version.workload}`, or raise probe_tolerance where it is that model with quantised weights"
                )

    def check_loading(self) -> None:
        """
        Raises:
            RetunedError: the server does not load adapters at run time. The message states how to enable it.
        """
        try:
            self.server.unload(_NO_ADAPTER)
        except Refused as error:
            if _NO_ADAPTER not in str(error):  # an error about this name means that the server supports adapters
                raise RetunedError(f"{error}; {self.start}") from error

    def _check_base(self, version: Version, root: str) -> None:
        if holds_other(root, version.base_hash):
            raise Unservable(
                f"{version.name}: {self.replica} serves {root}, and it was trained on {version.base_model}: serve that "
                f"there, or move the workload with `retuned rebase {version.workload} --base {root}`"
            )

    def load(self, wanted: Wanted) -> None:
        path = self._visible(wanted.version.path)
        self._models = None
        try:
            self.server.load(wanted.name, path, fused=covers_experts(wanted.version.path))
        except Refused as error:
            if wanted.name in self.listed():
                return  # loaded by an earlier request whose response was lost
            if error.status == 404 and "adapter" not in str(error).casefold():
                raise RetunedError(f"{error}; {self.start}") from error
            raise RetunedError(
                f"{error}. It must find the files at {path} (models_directory of the target), and {self.start}"
            ) from error
        self._adapters.add(wanted.name)
        if crowded := self.crowded(self._adapters):
            log.warning("%s: %s", self.replica, crowded)

    def crowded(self, adapters: Collection[str]) -> str:
        """Returns a warning if the server has more adapters than slots, by its metrics; else an empty text.

        vLLM's metrics contain the number of slots once it has answered a request.
        """
        metrics = replace(self._client, url=self._client.url.removesuffix("/v1"))
        try:
            slots = re.search(r'max_lora="(\d+)"', str(metrics.get("metrics")))
        except RetunedError:
            return ""
        if slots is None or len(adapters) <= int(slots[1]):
            return ""
        return (
            f"{len(adapters)} adapters share {slots[1]} slots (--max-loras), so that requests wait for each other and "
            f"adapters are read again from disk; start it with --max-loras {len(adapters)} or more"
        )

    def unload(self, name: str) -> None:
        try:
            self.server.unload(name)
        except Refused:
            if name in self.listed():
                raise

    def verify(self, version: Version) -> bool | None:
        probe = Probe.from_manifest(version.manifest)
        if probe is None:
            return None
        wrong = probe.mismatch(lambda prompts: self._next_tokens(version.name, prompts), self._tolerance)
        if wrong is not None:
            raise WrongModel(f"{version.name} at {self.replica}: {wrong}")
        return True

    def _next_tokens(self, name: str, prompts: Sequence[list[int]]) -> list[dict[int, float]]:
        """Returns the likeliest tokens after each prompt (see `LoraServer.next_tokens`).

        Raises:
            WrongModel: some are no numbers, as after an overflow. They differ from nothing by more than a tolerance, so
                they would pass for those of any model.
        """
        answers = self.server.next_tokens(name, prompts)
        if any(math.isnan(logprob) for answer in answers for logprob in answer.values()):
            raise WrongModel(
                f"{name} at {self.replica}: it answers with log-probabilities that are no numbers: its weights are "
                "damaged, or overflow in the precision of the server"
            )
        return answers

    @property
    def _tolerance(self) -> float | None:
        return self._settings.probe_tolerance

    def _visible(self, path: Path) -> Path:
        """Returns a version's folder as the server sees it."""
        there = self._settings.models_directory
        if there is None:
            return path.resolve()
        try:
            return there / path.resolve().relative_to(self._directory.resolve())
        except ValueError as error:
            raise ConfigurationError(
                f"serving.targets ({self.kind}): {path} is not below models.directory ({self._directory}), so it is "
                f"not known where {self.replica} sees it; move it there, or leave models_directory out"
            ) from error


def holds_other(root: str, hash: str) -> bool:
    """Returns whether a server's folder, if it exists on this machine, contains another base model."""
    try:
        return Path(root).is_absolute() and base_hash(Path(root)) != hash
    except (RetunedError, OSError):
        return False  # there is no base model in that folder here
