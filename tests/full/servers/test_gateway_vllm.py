"""The gateway before a real vLLM, where RETUNED_VLLM names its command: an adapter that is loaded, or is not yet."""

from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from anthropic import Anthropic
from peft import LoraConfig, get_peft_model

from fixtures.daemon.doors import FakeDaemon, Place
from fixtures.daemon.gateways import gateway, published
from fixtures.kafka.brokers import Broker, until
from fixtures.models.tiny import tiny_llama
from fixtures.servers.models import needs_vllm, vllm
from retuned.daemon.http_settings import HttpSettings
from retuned.retrain.training.base_model import load_model

CHAMPION = {"arm": "champion", "model": "support@1", "name": "support@1", "share": 1.0}
ROUTES = {
    "workloads": {
        "support": {"experiment": None, "arms": [CHAMPION], "base": {"model": "support@base", "name": None}},
    }
}
ASKED: Any = {"messages": [{"role": "user", "content": "how long?"}], "max_tokens": 8, "temperature": 0}


def adapter(base: Path, folder: Path) -> Path:
    """Strong enough to change what the base model answers."""
    torch.manual_seed(1)
    config = LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    get_peft_model(load_model(base, torch.float32), config).save_pretrained(folder)
    return folder


@needs_vllm
@pytest.mark.timeout(900)
def test_answers_and_streams_of_the_champion_and_of_the_base_model_until_it_is_loaded(
    tansu: Broker, tmp_path: Path
) -> None:
    base = tiny_llama(tmp_path / "base", hidden=256)  # vLLM computes heads of 64 dimensions on a CPU, no smaller ones
    daemon = FakeDaemon()
    daemon.routed = ROUTES
    place = Place(HttpSettings(port=0), daemon)
    try:
        with vllm(base, "float32") as url:
            own = {"upstreams": [{"url": url}], "timeout_seconds": 120.0}
            with gateway(tmp_path, tansu, http={"port": place.port}, gateway=own) as made:
                until(lambda: made.metric("daemon_up"))
                before = made.client().chat.completions.with_raw_response.create(model="support", **ASKED)
                assert before.headers["X-Retuned-Model"] == "support@base"
                assert "X-Retuned-Fallback" in before.headers
                loading = {"lora_name": "support@1", "lora_path": str(adapter(base, tmp_path / "adapter"))}
                httpx.post(f"{url}/load_lora_adapter", json=loading, timeout=60).raise_for_status()
                until(lambda: made.chat(model="support@1").status_code == 200)
                after = made.client().chat.completions.with_raw_response.create(model="support", **ASKED)
                assert after.headers["X-Retuned-Model"] == after.parse().model == "support@1"
                assert "X-Retuned-Fallback" not in after.headers
                with made.client().chat.completions.with_streaming_response.create(
                    model="support", stream=True, **ASKED
                ) as streamed:
                    text = "".join(chunk.choices[0].delta.content or "" for chunk in streamed.parse())
                assert text == after.parse().choices[0].message.content
                with Anthropic(base_url=made.url, api_key="none", max_retries=0) as messages:
                    greedy = {key: ASKED[key] for key in ("messages", "max_tokens")} | {
                        "extra_body": {"temperature": 0}
                    }
                    said = messages.messages.with_raw_response.create(model="support", **greedy)
                assert said.headers["X-Retuned-Model"] == said.parse().model == "support@1"
                assert said.parse().content[0].text == text
                ids = [one.headers["X-Retuned-Interaction"] for one in (before, after, streamed, said)]
                events = {one["id"]: one for one in published(tansu, made.topics["interactions"], *ids)}
                assert [events[id]["model"] for id in ids] == ["support@base", *["support@1"] * 3]
                assert events[ids[2]]["response"] == events[ids[3]]["response"] == text
                assert events[ids[3]]["output_tokens"] == 8
    finally:
        place.server.stop()
