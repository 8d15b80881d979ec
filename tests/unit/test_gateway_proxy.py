"""What the proxy makes of a request before a server is asked."""

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from fixtures.servers.memory_feeds import MemoryDouble
from retuned.consumers.settings import PrivacySettings
from retuned.daemon.gateway import proxy as proxy_module
from retuned.daemon.gateway.conversations import Call
from retuned.daemon.gateway.memory.feed import Feed
from retuned.daemon.gateway.memory.lookup import Memory
from retuned.daemon.gateway.metrics import Metrics
from retuned.daemon.gateway.proxy import Proxy
from retuned.daemon.gateway.routes import Routes
from retuned.daemon.gateway_settings import GatewaySettings

QUESTION = "How long do I have to return shoes?"
REQUESTS = 100


@pytest.mark.parametrize(("named", "is_drawn_anew"), [({}, True), ({"user": "u-1"}, False)])
def test_requests_that_name_nothing_are_held_out_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: dict[str, str], is_drawn_anew: bool
) -> None:
    double, body = MemoryDouble(), {"model": "support", "messages": [{"role": "user", "content": QUESTION}]}
    double.use("context", share=0.5)
    double.add(QUESTION, "60 days.")
    held_out: list[bool] = []

    async def fetch(after: int, limit: int) -> bytes:
        return json.dumps(double.answer(f"/api/v1/memory/feed?after={after}&limit={limit}")).encode()

    async def routes() -> bytes:
        return json.dumps(double.answer("/api/v1/routes")).encode()

    async def read(*_: Any) -> bytes:
        return json.dumps(body | named).encode()

    async def ask(*arguments: Any) -> str:
        (call,) = (one for one in arguments if isinstance(one, Call))
        assert call.help
        held_out.append(call.help.is_held_out)
        return "answered"

    async def steps() -> None:
        metrics = Metrics(CollectorRegistry())
        memory, known = Memory(PrivacySettings(), metrics), Routes(tmp_path, ["support"], routes)
        upstreams: Any = SimpleNamespace(incumbents=SimpleNamespace(of=lambda _: None))
        unused: Any = None
        made = Proxy(GatewaySettings(), unused, known, upstreams, unused, None, metrics, unused, memory)
        request: Any = SimpleNamespace(headers={}, path="/v1/chat/completions")
        try:
            await known.refresh()
            await Feed(tmp_path, memory, lambda: True, fetch).refresh()
            for _ in range(REQUESTS):
                await made.answer(request)
        finally:
            memory.close()

    monkeypatch.setattr(proxy_module, "read", read)
    monkeypatch.setattr(Proxy, "_ask", ask)
    asyncio.run(steps())
    assert len(held_out) == REQUESTS
    assert (20 < sum(held_out) < 80) is is_drawn_anew
    assert (len(set(held_out)) > 1) is is_drawn_anew
