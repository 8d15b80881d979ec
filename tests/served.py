"""A workload with two versions of a tiny base model, registered with their effect probes, and what may serve them."""

import hashlib
import hmac
import json
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from http_doubles import Quiet, listening
from models import tiny_llama
from peft import LoraConfig, get_peft_model

from retuned.consumers.common.lead import Lead, alone
from retuned.consumers.kafka.memory import MemoryPublisher
from retuned.consumers.warehouse.connection import Warehouse
from retuned.retrain.generation import effect_probe
from retuned.retrain.generation.kept import KeptAnswers
from retuned.retrain.generation.transformers import TransformersEngine
from retuned.retrain.release import registry
from retuned.retrain.release.reconciler import Reconciler
from retuned.retrain.release.rollout import Rollout
from retuned.retrain.serving_settings import ServingSettings
from retuned.retrain.settings import EvaluateSettings, ModelsSettings, Settings, TrainSettings
from retuned.retrain.training.base_model import load_model
from retuned.retrain.versions import Version, find

NOW = datetime(2026, 4, 1, 12)
WORKLOAD = "support.refunds"


@dataclass
class Adapters:
    """Trained once for many tests: a base model, and an older and a newer adapter for it with their probes."""

    folder: Path
    probes: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # vLLM computes heads of 64 dimensions on a CPU, no smaller ones.
        self.base = tiny_llama(self.folder / "base", hidden=256)
        for seed, name in enumerate(("old", "new"), 1):
            torch.manual_seed(seed)
            config = LoraConfig(
                r=4,
                lora_alpha=16,
                target_modules=["q_proj", "v_proj", "down_proj"],
                init_lora_weights=False,
                task_type="CAUSAL_LM",
            )
            get_peft_model(load_model(self.base, torch.float32), config).save_pretrained(self.folder / name)
        old, new = self.folder / "old", self.folder / "new"
        self.probes["old"] = self._probe({"base": None, "candidate": old}, {"version": "candidate", "base": "base"})
        self.probes["new"] = self._probe(
            {"base": None, "champion": old, "candidate": new},
            {"version": "candidate", "base": "base", "champion": "champion"},
        )

    def _probe(self, adapters: dict[str, Path | None], names: dict[str, str]) -> Any:
        encoding = TrainSettings(max_length=256).encoding
        engine = TransformersEngine(
            self.base, adapters, EvaluateSettings(), dtype="float32", encoding=encoding, kept=KeptAnswers()
        )
        return effect_probe.record(engine.next_tokens(effect_probe.rows(), list(names.values())), names, "float32")


class Served:
    """A workload in a warehouse with both versions, and targets that are to have them.

    Attributes:
        now: what the clock says.
        lead: see `common.lead`.
    """

    def __init__(self, folder: Path, warehouse: Warehouse, adapters: Adapters, *targets: dict[str, Any], **keys: Any):
        self.folder, self.warehouse, self.adapters = folder, warehouse, adapters
        self.now = NOW
        self.lead: Lead = alone
        self.settings = Settings(
            models=ModelsSettings(base=adapters.base, directory=folder / "models"),
            serving=ServingSettings.model_validate({"targets": targets} | keys),
        )
        self.old, self.new = (self._register(name) for name in ("old", "new"))
        self.begin()

    def begin(self) -> None:
        """As a daemon that starts."""
        self.reconciler = Reconciler(self.warehouse, self.settings, lambda: self.now, lead=self.lead)
        self.rollout = Rollout(self.warehouse, self.settings, MemoryPublisher(), "events")
        registry.reconcile(self.warehouse, self.settings)

    def promote(self, version: Version | None) -> None:
        self.rollout.promote(WORKLOAD, version.version if version else "base", "operator", "a test", self.now)

    def states(self) -> dict[str, str]:
        """What is known of each version, on the only replica."""
        (replica,) = self.reconciler.replicas(WORKLOAD)
        return {name: model.state for name, model in replica.models.items()}

    def detail(self, version: Version) -> str:
        """Why it is in the state that it is in, on the only replica."""
        (replica,) = self.reconciler.replicas(WORKLOAD)
        return replica.models[version.name].detail

    def _register(self, name: str) -> Version:
        version = registry.register(
            self.warehouse,
            self.settings.models.directory,
            WORKLOAD,
            self.adapters.folder / name,
            base_model=self.adapters.base,
            parent_version=None,
            dataset_version="d1",
            run_id="r1",
            details={
                "effect_probe": self.adapters.probes[name],
                "metrics": {"holdout_score_candidate": 0.91},
                "cost": {"train_seconds": 60.0},
            },
            now=NOW,
        )
        found = find(self.warehouse, WORKLOAD, version.version)
        assert found is not None
        return found


@dataclass
class Receiver:
    """A service that loads what a webhook says.

    Attributes:
        status: of its answers.
        arrived: gets the headers of each request.
        got: headers and body of each request.
        models: what it has, with the aliases of each.
    """

    secret: bytes
    url: str = ""
    status: int = 204
    arrived: Callable[[dict[str, str]], None] = lambda _: None
    got: list[tuple[dict[str, str], dict[str, Any]]] = field(default_factory=list)
    models: dict[str, set[str]] = field(default_factory=dict)

    def take(self, headers: dict[str, str], body: bytes) -> int:
        signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
        expected = "v1," + b64encode(hmac.digest(self.secret, signed, hashlib.sha256)).decode()
        if not hmac.compare_digest(expected, headers["webhook-signature"]):
            return 401
        message = json.loads(body)
        self.arrived(headers)
        self.got.append((headers, message))
        if self.status < 300:
            if message["action"] == "load":
                self.models[message["model"]] = set(message["aliases"])
            else:
                self.models.pop(message["model"], None)
        return self.status


@contextmanager
def receiving(secret: bytes) -> Iterator[Receiver]:
    """The receiver on a free port."""
    receiver = Receiver(secret)

    class Handler(Quiet):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            self.send_response(receiver.take(headers, body))
            self.end_headers()

    with listening(Handler) as address:
        receiver.url = f"{address}/models"
        yield receiver
