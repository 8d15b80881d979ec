"""From the first request to a commercial API to a model of one's own for all, and back, with faults of each part."""

import signal
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zlib import crc32

import httpx
import pytest

from fixtures.daemon.daemons import Daemon, running, settings_for
from fixtures.daemon.gateways import KEY, Gateway, ModelServer, break_off, gateway, model_server
from fixtures.feedback.traffic import registered
from fixtures.kafka.brokers import Broker, until
from retuned.consumers.kafka.memory import MemoryPublisher
from retuned.consumers.settings import RolloutSettings, WarehouseSettings
from retuned.consumers.warehouse.connection import utc_now
from retuned.consumers.warehouse.opening import open_warehouse
from retuned.daemon.cli.main import main
from retuned.retrain.release.rollout import Rollout
from retuned.retrain.settings import ModelsSettings, Settings

MODEL, BASE, OWN = "commercial-mini", "support@base", "support@v1"
ROLLOUT: dict[str, Any] = {
    **{"steps": [0.05, 0.25, 0.5, 1.0], "holdback": 0.0, "shadow": 1.0},
    **{"minimum_seconds": 1.0, "minimum_answers": 30},
}
INPUT_PRICE, OUTPUT_PRICE = 40_000.0, 160_000.0
COST = (9 * INPUT_PRICE + 1 * OUTPUT_PRICE) / 1e6
"""Of one answer of the incumbent."""
NEW, LASTING, AT_ONCE = 32, 8, 8
"""New conversations a day, conversations that last over all days, and requests in flight."""


def label(handler: Any, asked: dict[str, Any]) -> None:
    """Every model knows the label of every question."""
    choice = {"index": 0, "message": {"role": "assistant", "content": "refund"}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 10}
    completion = {"id": "c1", "object": "chat.completion", "created": 1_790_000_000, "model": asked["model"]}
    handler.json(200, completion | {"choices": [choice], "usage": usage})


def overloaded(handler: Any, _: dict[str, Any]) -> None:
    handler.json(503, {"error": {"message": "overloaded"}})


def killed(handler: Any, _: dict[str, Any]) -> None:
    break_off(handler)


FAULTS = (overloaded, killed)


class Shop:
    """An app whose requests go through the gateway. Each of them must be answered.

    Attributes:
        answers: of each conversation, the models that answered it, and whether that was a fallback.
        asked, rated: the number of requests and of votes.
    """

    def __init__(self, made: Gateway, vendor: ModelServer, own: ModelServer, daemon: Daemon) -> None:
        self.gateway, self.vendor, self.own, self.daemon = made, vendor, own, daemon
        self.answers = defaultdict[str, list[tuple[str, bool]]](list)
        self.asked = self.rated = 0
        self._client = httpx.Client(base_url=made.url, timeout=60)

    def __enter__(self) -> "Shop":
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def ask(self, conversation: str, is_rated: bool) -> str:
        """Asks a question; the customer may rate the answer. Returns the model that answered."""
        messages = [{"role": "user", "content": f"question of {conversation}"}]
        answer = self._client.post(
            "/workloads/support/v1/chat/completions",
            json={"model": MODEL, "messages": messages},
            headers={"X-Retuned-Conversation": conversation, "Authorization": "Bearer sk-of-the-app"},
        )
        assert answer.status_code == 200, answer.text
        model = answer.headers["X-Retuned-Model"]
        self.answers[conversation].append((model, "X-Retuned-Fallback" in answer.headers))
        if is_rated:
            token, is_good = answer.headers["X-Retuned-Feedback-Token"], crc32(conversation.encode()) % 20 > 0
            vote = {"token": token, "name": "helpful", "value": is_good}
            self._client.post("/v1/feedback", json=vote).raise_for_status()
        return model

    def ask_all(self, conversations: list[str], *, is_rated: bool = False) -> list[str]:
        self.asked += len(conversations)
        self.rated += len(conversations) * is_rated
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return list(pool.map(lambda one: self.ask(one, is_rated), conversations))

    def day(self, name: str) -> list[str]:
        """New conversations, and one more turn of those that last. Returns the models that answered."""
        lasting = [f"lasting-{number}" for number in range(LASTING)]
        return self.ask_all([f"{name}-{number}" for number in range(NEW)], is_rated=True) + self.ask_all(lasting)

    def in_trouble(self, name: str, *servers: ModelServer) -> None:
        """Each server fails in each way, and every request is answered, and rated."""
        for server in servers:
            for fault in FAULTS:
                server.answer = fault
                asked = [f"{name}-{server.port}-{fault.__name__}-{number}" for number in range(AT_ONCE)]
                self.ask_all(asked, is_rated=True)
                server.answer = label

    def settle(self) -> None:
        """Waits until the daemon has stored every answer and every vote, each once."""
        counts = {"interactions": self.asked, "feedback": self.rated}

        def stored() -> bool:
            found = self.daemon.status()["ingestion"]
            return {name: found[name] for name in counts} == counts

        self.daemon.until(stored, "the events")

    def spent(self) -> float:
        """What the incumbent has cost so far, once the ledger has all of it."""
        self.settle()
        expected = sum(model == BASE for one in self.answers.values() for model, _ in one) * COST

        def booked() -> bool:
            items = (self.daemon.workload()["roi"] or {"items": []})["items"]
            return sum(item["amount"] for item in items) == pytest.approx(expected)

        self.daemon.until(booked, "the costs")
        return expected

    def share(self) -> float | None:
        """The share of the conversations that the version in rollout answers; None: there is no rollout."""
        rollout = self.daemon.workload()["rollout"]
        return None if rollout is None else float(rollout["share"])


def register(folder: Path, settings: dict[str, Any]) -> None:
    """The gate passes a first candidate."""
    warehouse = open_warehouse(WarehouseSettings(path=Path(settings["warehouse"]["path"])))
    registered(warehouse, "v1")
    own = Settings(models=ModelsSettings(directory=folder / "models"), rollout=RolloutSettings(**ROLLOUT))
    assert (
        Rollout(warehouse, own, MemoryPublisher(), "unused").begin("support", "v1", "gate", "as good", utc_now()) == 0
    )
    warehouse.close()


@contextmanager
def around(folder: Path, broker: Broker) -> Iterator[tuple[Shop, dict[str, Any]]]:
    """A shop with an incumbent, a model server, a gateway and a daemon; and the daemon's settings."""
    with model_server(MODEL) as vendor, model_server("base", "support@v1") as own:
        vendor.answer = own.answer = label
        incumbent = {"url": vendor.url, "model": MODEL, "input_price": INPUT_PRICE, "output_price": OUTPUT_PRICE}
        sections: dict[str, Any] = {"workloads": {"support": {"incumbent": incumbent}}, "rollout": ROLLOUT}
        settings = settings_for(broker, folder, metric={"name": "label", "labels": ["refund", "delivery"]}, **sections)
        settings["schedule"]["watch_seconds"] = 0.5
        kafka = settings["kafka"]
        broker.create_topics(*(kafka[name] for name in kafka if name.endswith("_topic")))
        (folder / "keys").write_text(f"{KEY}\n")
        with running(folder, settings) as daemon:
            keys = {"feedback_keys_file": str(folder / "keys"), "daemon_url": daemon.url}
            with (
                gateway(folder, broker, own, kafka=kafka, workloads=settings["workloads"], gateway=keys) as made,
                Shop(made, vendor, own, daemon) as shop,
            ):
                yield shop, settings


@pytest.mark.full
def test_from_the_first_request_to_a_model_of_ones_own_and_back(tmp_path: Path, tansu: Broker) -> None:
    with around(tmp_path, tansu) as (shop, settings):
        daemon = shop.daemon
        assert {*shop.day("first")} == {BASE}
        assert not shop.own.requests
        assert (cost_before := shop.spent()) == (NEW + LASTING) * COST
        daemon.stop(signal.SIGKILL)
        shop.day("without a daemon")
        register(tmp_path, settings)
        daemon.start()
        shares, number = list[float](), 0
        while (share := shop.share()) is not None:
            if share not in shares:
                shares.append(share)
                shop.in_trouble(f"at {share}", *[shop.own] if share == 0 else [shop.own, shop.vendor])
            else:  # fewer answers than two steps need, so that no step passes unseen
                for _ in range(3 if 0 < share < 0.1 else 1):
                    shop.day(f"day {(number := number + 1)}")
            shop.settle()
            assert number < 200, daemon.workload()["rollout"]
        assert shares == [0.0, 0.05, 0.25, 0.5], daemon.workload()["promotions"]
        assert daemon.workload()["champion"] == "v1"
        until(lambda: {*shop.day("the last step")} == {OWN})
        before = shop.spent()
        assert {*shop.day("of one's own")} == {OWN}
        assert shop.spent() - before == 0 < cost_before
        shop.in_trouble("at 1.0", shop.own, shop.vendor)
        for name, found in shop.answers.items():  # a conversation changes to the version once, and never back
            kept = [model for model, fell_back in found if not fell_back]
            assert kept == sorted(kept), name
        fallbacks = Counter(model for one in shop.answers.values() for model, fell_back in one if fell_back)
        counted = {model: shop.gateway.metric("fallbacks_total", model_name=model) for model in (BASE, OWN)}
        assert counted == fallbacks
        assert min(fallbacks.values()) >= AT_ONCE
        assert main(["rollback", "support", "--reason", "prices fell", "--config", str(daemon.config)]) == 0
        until(lambda: {*shop.day("back")} == {BASE})
        shop.settle()
        assert daemon.status()["ingestion"]["dead_letters"] == 0
