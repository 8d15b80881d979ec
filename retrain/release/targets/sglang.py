"""The target `sglang`: like vLLM, with adapter routes without `/v1`, and its own route for log-probabilities."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from retuned.retrain.generation.lora_server import TOP, LoraServer
from retuned.retrain.openai_api import Client
from retuned.retrain.release.targets.vllm import Vllm


class SglangServer(LoraServer):
    """A client of SGLang. An adapter's name is `BASE:NAME` in OpenAI's routes, and NAME elsewhere."""

    def __init__(self, client: Client, work_seconds: float) -> None:
        super().__init__(client, work_seconds)
        self._working = replace(client, url=client.url.removesuffix("/v1"), timeout_seconds=work_seconds)

    def next_tokens(self, model: str, prompts: Sequence[list[int]]) -> list[dict[int, float]]:
        body: dict[str, Any] = {
            "input_ids": list(prompts),
            "sampling_params": {"max_new_tokens": 1, "temperature": 0.0},
            "return_logprob": True,
            "top_logprobs_num": TOP,
        }
        if "@" in model:  # not the base model
            body["lora_path"] = model
        answers, _ = self._working.request("generate", body)
        with self.client.expected("generate"):
            firsts = [answer["meta_info"]["output_top_logprobs"][0] for answer in answers]
            return [{int(token): float(logprob) for logprob, token, *_ in first} for first in firsts]


class Sglang(Vllm):
    """A replica of SGLang."""

    kind = "sglang"
    start = (
        "start it so that it loads adapters: python -m sglang.launch_server … --enable-lora --max-lora-rank N "
        "--lora-target-modules all"
    )

    def _server(self, client: Client) -> LoraServer:
        return SglangServer(client, self._settings.work_seconds)
