"""The requests to a model server that loads adapters at run time: vLLM's routes."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from retuned.consumers.errors import RetunedError
from retuned.retrain.openai_api import Client

TOP = 20
"""Likeliest tokens whose log-probabilities are asked for: the most that vLLM gives unless it is told otherwise."""


class LoraServer:
    """vLLM, or what has its routes."""

    def __init__(self, client: Client, work_seconds: float | None = None) -> None:
        """
        Args:
            client: its URL ends with `/v1`.
            work_seconds: longest wait for what the server has to compute, or load; None: that of the client.
        """
        self.client = client
        self._working = client if work_seconds is None else replace(client, timeout_seconds=work_seconds)

    def models(self) -> list[dict[str, Any]]:
        """What the server lists: `id` is the name, `parent` of an adapter the name of its base model, and `root` the
        folder that it came from.

        Raises:
            Refused, NoAnswer: see `Client.request`.
        """
        answer = self.client.get("models")
        with self.client.expected("models"):
            found: list[dict[str, Any]] = answer["data"]
            for model in found:
                model["id"].partition("@")
            return found

    def base(self, models: Sequence[dict[str, Any]] | None = None) -> dict[str, Any]:
        """The base model, as the server lists it.

        Args:
            models: what it listed; None: it is asked.

        Raises:
            RetunedError: it lists none, or several that differ.
        """
        models = self.models() if models is None else models
        found = {model.get("root") or model["id"]: model for model in models if not model.get("parent")}
        if len(found) != 1:
            names = ", ".join(sorted(model["id"] for model in found.values()))
            raise RetunedError(
                f"{self.client.key}: {self.client.url} lists {len(found)} base models ({names}); expected one, of "
                "which the adapters are"
            )
        return next(iter(found.values()))

    def load(self, name: str, path: Path, *, fused: bool = False) -> None:
        """Load an adapter under a name that is not loaded.

        Args:
            path: of its folder, as the server sees it.
            fused: whether it covers fused experts (see `covers_experts`).

        Raises:
            Refused: it does not load it.
        """
        body = {"lora_name": name, "lora_path": str(path)}
        # Only vLLM knows this key; with --enable-mixed-moe-lora-format (0.32) it decides how the file is read.
        self._working.request("load_lora_adapter", body | ({"is_3d_lora_weight": True} if fused else {}), repeat=False)

    def unload(self, name: str) -> None:
        """Unload an adapter.

        Raises:
            Refused: it has none of that name.
        """
        self._working.request("unload_lora_adapter", {"lora_name": name}, repeat=False)

    def next_tokens(self, model: str, prompts: Sequence[list[int]]) -> list[dict[int, float]]:
        """The likeliest tokens after each prompt of token ids, with their log-probabilities in nats: in one request.

        Args:
            model: name of an adapter, or of the base model.
        """
        body = {
            "model": model,
            "prompt": list(prompts),
            "max_tokens": 1,
            "temperature": 0.0,
            "logprobs": TOP,
            "return_tokens_as_token_ids": True,
        }
        answer, _ = self._working.request("completions", body)
        with self.client.expected("completions"):
            choices = sorted(answer["choices"], key=lambda choice: choice["index"])
            return [_by_id(choice["logprobs"]["top_logprobs"][0]) for _, choice in zip(prompts, choices, strict=True)]


def covers_experts(adapter: Path) -> bool:
    """Whether an adapter covers parameters that hold a matrix for each expert."""
    try:
        config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False  # whoever loads it reports what is wrong
    return bool(config.get("target_parameters"))


def _by_id(told: Mapping[str, float]) -> dict[int, float]:
    return {int(token.removeprefix("token_id:")): float(logprob) for token, logprob in told.items()}
