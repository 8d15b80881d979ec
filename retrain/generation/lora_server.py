"""A client of model servers that load adapters at run time, by vLLM's routes."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from retuned.consumers.errors import RetunedError
from retuned.retrain.openai_api import Client

TOP = 20
"""The number of log-probabilities per token in a request: vLLM's default maximum."""


class LoraServer:
    """vLLM, or another server with its routes."""

    def __init__(self, client: Client, work_seconds: float | None = None) -> None:
        """
        Args:
            client: its URL ends with `/v1`.
            work_seconds: the timeout of requests that compute or load; None uses the client's.
        """
        self.client = client
        self._working = client if work_seconds is None else replace(client, timeout_seconds=work_seconds)

    def models(self) -> list[dict[str, Any]]:
        """Returns the server's models: `id` is the name, `parent` an adapter's base model, and `root` the folder.

        Raises:
            Refused, NoAnswer: see `Client.request`.
        """
        answer = self.client.get("models")
        with self.client.expected("models"):
            models: list[dict[str, Any]] = answer["data"]
            for model in models:
                model["id"].partition("@")
            return models

    def base(self, models: Sequence[dict[str, Any]] | None = None) -> dict[str, Any]:
        """Returns the base model as the server lists it.

        Args:
            models: the server's models; None requests them.

        Raises:
            RetunedError: the server lists no base model, or several.
        """
        models = self.models() if models is None else models
        bases = {model.get("root") or model["id"]: model for model in models if not model.get("parent")}
        if len(bases) != 1:
            names = ", ".join(sorted(model["id"] for model in bases.values()))
            raise RetunedError(
                f"{self.client.key}: {self.client.url} lists {len(bases)} base models ({names}); expected one, that of "
                "the adapters"
            )
        return next(iter(bases.values()))

    def load(self, name: str, path: Path, *, fused: bool = False) -> None:
        """Loads an adapter under a new name.

        Args:
            path: its folder, as the server sees it.
            fused: it covers fused experts (see `covers_experts`).

        Raises:
            Refused: the server does not load it.
        """
        body = {"lora_name": name, "lora_path": str(path)}
        # Specific to vLLM: with --enable-mixed-moe-lora-format (0.32) this determines how the file is read.
        self._working.request("load_lora_adapter", body | ({"is_3d_lora_weight": True} if fused else {}), repeat=False)

    def unload(self, name: str) -> None:
        """Unloads an adapter.

        Raises:
            Refused: the server has no adapter of that name.
        """
        self._working.request("unload_lora_adapter", {"lora_name": name}, repeat=False)

    def next_tokens(self, model: str, prompts: Sequence[list[int]]) -> list[dict[int, float]]:
        """Returns the likeliest tokens after each prompt, with log-probabilities in nats, by one request.

        Args:
            model: the name of an adapter or of the base model.
            prompts: token ids.
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
    """Returns whether an adapter covers parameters with a matrix for each expert."""
    try:
        config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False  # loading reports the problem
    return bool(config.get("target_parameters"))


def _by_id(logprobs: Mapping[str, float]) -> dict[int, float]:
    return {int(token.removeprefix("token_id:")): float(logprob) for token, logprob in logprobs.items()}
