"""The models of an evaluation: prepares them, and chooses the engine.

If champion and candidate have different base models, these are loaded one after the other.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from retuned.consumers.errors import RetunedError
from retuned.retrain import versions
from retuned.retrain.generation.engine import Engine
from retuned.retrain.generation.kept import KeptAnswers
from retuned.retrain.generation.lora_server import covers_experts
from retuned.retrain.generation.server import Server, ServerEngine, visible
from retuned.retrain.settings import EvaluateSettings, Settings

KEPT = "answers.jsonl"
"""File in the folder of the workload: answers of earlier evaluations (see `kept`)."""
_TOKEN = "RETUNED_EVALUATE_TOKEN"
"""Environment variable of the child: the server's token."""


@dataclass(frozen=True)
class Group:
    """Models with the same base model.

    Attributes:
        base: the folder of the base model.
        models: names and the folders of their adapters; None for the base model itself.
    """

    base: Path
    models: dict[str, Path | None]


def secrets(settings: Settings) -> dict[str, str]:
    """Returns the environment variables with which a child may call the server."""
    return {_TOKEN: settings.evaluate.bearer_token() or ""}


@contextmanager
def ready(groups: Sequence[Group], workload: str, settings: Settings, folder: Path) -> Iterator[list[dict[str, Any]]]:
    """Yields the groups for the child. With a server, the adapters are loaded there meanwhile, under unique names."""
    if settings.evaluate.engine == "transformers":
        yield [
            {
                "base": str(group.base),
                "models": {name: path and str(path) for name, path in group.models.items()},
                "weights": _weights(group),
            }
            for group in groups
        ]
        return
    if len(groups) > 1:
        raise RetunedError(
            "evaluate.engine server: the champion and the candidate have different base models, and a server has one; "
            "set evaluate.engine to transformers to compare them"
        )
    (group,) = groups
    evaluation = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:8]
    names: dict[str, str | None] = {}
    paths: dict[str, Path] = {}
    fused = set[str]()
    for model, path in group.models.items():
        if path is None:
            names[model] = None
            continue
        names[model] = name = f"{workload}@{versions.content_hash(path)}-evaluation-{evaluation}"
        paths[name] = visible(path, settings.models.directory, settings.evaluate)
        if covers_experts(path):
            fused.add(name)
    with Server(settings.evaluate, settings.evaluate.bearer_token()).loaded(paths, fused):
        yield [{"base": str(group.base), "models": names, "weights": _weights(group)}]


def _weights(group: Group) -> dict[str, str]:
    """Returns an identifier of each model's weights."""
    base = versions.base_hash(group.base)
    return {
        name: base if path is None else f"{base}+{versions.content_hash(path)}" for name, path in group.models.items()
    }


def engine(group: Mapping[str, Any], job: Mapping[str, Any], settings: EvaluateSettings) -> Engine:
    """Returns the engine for a group of `ready`, in the child: models in its process, or on the server.

    Args:
        job: the job of the evaluation.
    """
    base = Path(group["base"])
    scope = [settings.engine, settings.url, job["dtype"], job["quantized"], version("retuned"), version("transformers")]
    kept = KeptAnswers(Path(job["kept"]), group["weights"], json.dumps(scope))
    if settings.engine == "server":
        from retuned.retrain.training.base_model import load_tokenizer

        server = Server(settings, os.environ.get(_TOKEN))
        return ServerEngine(server, load_tokenizer(base), group["models"], settings, job["encoding"], kept)
    import torch

    from retuned.retrain.generation.transformers import TransformersEngine

    if job["threads"]:
        torch.set_num_threads(job["threads"])
    paths = {name: path and Path(path) for name, path in group["models"].items()}
    return TransformersEngine(
        base, paths, settings, dtype=job["dtype"], quantized=job["quantized"], encoding=job["encoding"], kept=kept
    )
