"""The target `sglang`: like vLLM, with adapter routes without `/v1`, and its own route for log-probabilities."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from retuned.retrain.generation.lora_server import TOP, LoraServer
from retuned.retrain.openai_api import Client, Refused
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
        try:
            answers, _ = self._working.request("generate", body)
        except Refused as error:
            if model in str(error) and "not loaded" in str(error):
                raise Refused(str(error), 404) from error  # as OpenAI's routes answer; SGLang's own has 400
            raise
        with self.client.expected("generate"):
            firsts = [answer["meta_info"]["output_top_logprobs"][0] for answer in answers]
            return [{int(token): _number(logprob) for logprob, token, *_ in first} for first in firsts]


def _number(logprob: float | None) -> float:
    """Returns a log-probability. What is no number becomes null on the way: JSON has no other form for it."""
    return math.nan if logprob is None else float(logprob)


class Sglang(Vllm):
    """A replica of SGLang."""

    kind = "sglang"
    start = (
        "start it so that it loads adapters: python -m sglang.launch_server … --enable-lora --max-lora-rank N "
        "--lora-target-modules all"
    )

    def _server(self, client: Client) -> LoraServer:
        return SglangServer(client, self._settings.work_seconds)
