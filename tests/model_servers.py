"""Doubles of vLLM and of SGLang: their routes and their statuses, over a tiny model in this process that really
generates. And vLLM itself, where RETUNED_VLLM names its command, for example /opt/vllm/bin/vllm.

What the double of SGLang does stands in its documentation (docs.sglang.io, "LoRA Serving") and in its issues and source
(sgl-project/sglang 7446, 11570): no SGLang was at hand."""

import fcntl
import json
import os
import signal
import socket
import subprocess
import tempfile
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from brokers import until
from http_doubles import Quiet, listening
from peft import PeftModel

from retuned.retrain.settings import EvaluateSettings
from retuned.retrain.training import adapter as lora
from retuned.retrain.training.base_model import load_model, load_tokenizer

VLLM = os.environ.get("RETUNED_VLLM")
needs_vllm = pytest.mark.skipif(VLLM is None, reason="RETUNED_VLLM names no vLLM: make .venv-vllm")
with_vllm = (needs_vllm, pytest.mark.timeout(900))
"""Marks of a parameter that starts one, which waits until that of another file has ended."""

Answered = tuple[int, Any]
LORA_ROUTES = ("/v1/load_lora_adapter", "/v1/unload_lora_adapter")


@dataclass
class VllmDouble:
    """Loads adapters and completes token ids.

    Attributes:
        loaded: name of an adapter to the folder that it came from.
        history: `+name` and `-name` as adapters came and went.
        asked: bodies of completions.
        token: what requests must bear; None: nothing.
        loads: it was started so that adapters can be loaded.
        sees_files: the folder of the adapters is mounted.
        slots: for adapters, as its metrics have them; None: they do not yet.
        uses_adapters: False: it answers with the base model, whatever is asked for.
        interfere: gets the number of a completion; what it returns is answered in its place.
        at_once: the most completions that were open at one time.
    """

    base: Path
    url: str = ""
    loaded: dict[str, str] = field(default_factory=dict)
    history: list[str] = field(default_factory=list)
    asked: list[dict[str, Any]] = field(default_factory=list)
    token: str | None = None
    loads: bool = True
    sees_files: bool = True
    slots: int | None = None
    uses_adapters: bool = True
    interfere: Callable[[int], Answered | None] = lambda _: None
    at_once: int = 0
    _open: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._model, self._tokenizer = load_model(self.base, torch.float32), load_tokenizer(self.base)

    def settings(self, **more: Any) -> EvaluateSettings:
        return EvaluateSettings(**{"engine": "server", "url": self.url, "max_new_tokens": 8} | more)

    def answer(self, path: str, body: dict[str, Any] | None, token: str | None) -> Answered:
        if self.token is not None and token != f"Bearer {self.token}":
            return 401, {"error": "Unauthorized"}
        if path in LORA_ROUTES and not self.loads:
            return 404, {"detail": "Not Found"}
        if path == "/v1/models":
            base = {"id": "base", "root": str(self.base), "parent": None}
            adapters = [{"id": name, "root": root, "parent": "base"} for name, root in self.loaded.items()]
            return 200, {"object": "list", "data": [base, *adapters]}
        if path == "/metrics":
            lines = (
                [f'vllm:lora_requests_info{{max_lora="{self.slots}",running_lora_adapters=""}} 1.0']
                if self.slots
                else []
            )
            return 200, "\n".join(lines)
        assert body is not None
        if path == "/v1/load_lora_adapter":
            return self._load(body["lora_name"], body["lora_path"])
        if path == "/v1/unload_lora_adapter":
            if body["lora_name"] not in self.loaded:
                message = f"The lora adapter '{body['lora_name']}' cannot be found."
                return 404, {"error": {"message": message, "code": 404}}
            del self.loaded[body["lora_name"]]
            self.history.append(f"-{body['lora_name']}")
            return 200, f"Success: LoRA adapter '{body['lora_name']}' removed successfully."
        assert path == "/v1/completions"
        if isinstance(body["prompt"], str):
            body = body | {"prompt": self._tokenizer(body["prompt"])["input_ids"]}
        with self._lock:
            self._open += 1
            self.at_once = max(self.at_once, self._open)
            self.asked.append(body)
            number = len(self.asked)
        try:
            return self.interfere(number) or self._complete(body)
        finally:
            with self._lock:
                self._open -= 1

    def _load(self, name: str, path: str) -> Answered:
        if name in self.loaded:
            return 400, {"error": {"message": f"The lora adapter '{name}' has already been loaded.", "code": 400}}
        if not self.sees_files or not (Path(path) / "adapter_config.json").is_file():
            return 404, {"error": {"message": f"Loading lora {name} failed: No adapter found for {path}", "code": 404}}
        with self._lock:
            self._model = lora.load_adapter(self._model, Path(path), name=_plain(name))
        self.loaded[name] = path
        self.history.append(f"+{name}")
        return 200, f"Success: LoRA adapter '{name}' added successfully."

    def _complete(self, body: dict[str, Any]) -> Answered:
        if not isinstance(body["prompt"][0], list):
            return self._complete_one(body)
        choices = []
        for index, prompt in enumerate(body["prompt"]):
            status, answer = self._complete_one(body | {"prompt": prompt})
            if status != 200:
                return status, answer
            choices.append(answer["choices"][0] | {"index": index})
        return 200, {"choices": choices[::-1], "usage": {"completion_tokens": len(choices)}}  # in no order

    @torch.inference_mode()
    def _complete_one(self, body: dict[str, Any]) -> Answered:
        name, prompt = body["model"], body["prompt"]
        if name != "base" and name not in self.loaded:
            return 404, {"error": {"message": f"The model `{name}` does not exist.", "code": 404}}
        ids = torch.tensor([prompt])
        with self._lock:
            found = self._as(name, lambda model: model.generate(
                input_ids=ids, max_new_tokens=body["max_tokens"], do_sample=False, pad_token_id=0,
            ))  # fmt: skip
            logits = self._as(name, lambda model: model(input_ids=ids).logits)
        answer = found[0, len(prompt) :].tolist()
        choice: dict[str, Any] = {"text": self._tokenizer.decode(answer, skip_special_tokens=True)}
        if "logprobs" in body:
            assert body["return_tokens_as_token_ids"]
            top = torch.log_softmax(logits[0, -1].float(), dim=-1).topk(body["logprobs"])
            pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
            choice["logprobs"] = {"top_logprobs": [{f"token_id:{token}": logprob for token, logprob in pairs}]}
        if "prompt_logprobs" in body:
            told = torch.log_softmax(logits[0].float(), dim=-1)
            choice["prompt_logprobs"] = [None] + [
                {str(token): {"logprob": float(told[place, token]), "rank": 1}}
                for place, token in enumerate(prompt[1:])
            ]
        return 200, {"model": name, "choices": [choice], "usage": {"completion_tokens": len(answer)}}

    def _as(self, name: str, use: Callable[[Any], Any]) -> Any:
        if not isinstance(self._model, PeftModel):
            return use(self._model)
        if name == "base" or not self.uses_adapters:
            with self._model.disable_adapter():
                return use(self._model)
        self._model.set_adapter(_plain(name), inference_mode=True)
        return use(self._model)


@dataclass
class SglangDouble(VllmDouble):
    """Its routes for adapters have no `/v1` and answer with JSON; log-probabilities come by `/generate`."""

    def answer(self, path: str, body: dict[str, Any] | None, token: str | None) -> Answered:
        if self.token is not None and token != f"Bearer {self.token}":
            return 401, {"error": "Unauthorized"}
        if path in ("/load_lora_adapter", "/unload_lora_adapter"):
            assert body is not None
            if not self.loads:
                return 400, self._outcome("LoRA is not enabled. Please set `--enable-lora` to enable LoRA.")
            return self._sglang_load(body) if path == "/load_lora_adapter" else self._sglang_unload(body["lora_name"])
        if path == "/generate":
            assert body is not None
            name = body.get("lora_path", "base")
            if name != "base" and name not in self.loaded:
                return 400, {
                    "error": {"message": f"The following requested LoRA adapters are not loaded: {{'{name}'}}"}
                }
            asked = {"model": name, "max_tokens": 1, "logprobs": body["top_logprobs_num"]}
            answers = []
            for prompt in body["input_ids"]:
                _, answer = self._complete(asked | {"prompt": prompt, "return_tokens_as_token_ids": True})
                (told,) = answer["choices"][0]["logprobs"]["top_logprobs"]
                triples = [[logprob, int(token.removeprefix("token_id:")), None] for token, logprob in told.items()]
                answers.append({"text": "", "meta_info": {"output_top_logprobs": [triples]}})
            return 200, answers
        if path in LORA_ROUTES:
            return 404, {"detail": "Not Found"}
        return super().answer(path, body, token)

    def _sglang_load(self, body: dict[str, Any]) -> Answered:
        name = body["lora_name"]
        if name in self.loaded:
            return 400, self._outcome(f"Failed to load LoRA adapter '{name}': LoRA with name {name} already exists.")
        status, _ = self._load(name, body["lora_path"])
        return (
            (200, self._outcome(None)) if status == 200 else (400, self._outcome(f"{body['lora_path']}: no such file"))
        )

    def _sglang_unload(self, name: str) -> Answered:
        if name not in self.loaded:
            return 400, self._outcome(f"LoRA with name {name} does not exist. Loaded LoRAs: {set(self.loaded)}")
        del self.loaded[name]
        self.history.append(f"-{name}")
        return 200, self._outcome(None)

    def _outcome(self, error: str | None) -> dict[str, Any]:
        return {"success": error is None, "error_message": error or "", "loaded_adapters": dict(self.loaded)}


def _plain(name: str) -> str:
    return name.replace(".", "_")  # PEFT's names have no dots


@contextmanager
def serving(base: Path, kind: type[VllmDouble] = VllmDouble, port: int = 0) -> Iterator[VllmDouble]:
    """A double on a port of this machine; 0: any free one."""
    double = kind(base)

    class Handler(Quiet):
        def do_GET(self) -> None:
            self._answer(None)

        def do_POST(self) -> None:
            self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def _answer(self, body: dict[str, Any] | None) -> None:
            status, content = double.answer(self.path, body, self.headers["Authorization"])
            self.send_response(status)
            self.end_headers()
            self.wfile.write((content if isinstance(content, str) else json.dumps(content)).encode())

    with listening(Handler, port) as address:
        double.url = f"{address}/v1"
        yield double


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def vllm(base: Path, dtype: str) -> Iterator[str]:
    """A real vLLM, on CPUs, with a base model that it loads adapters for; its address."""
    with vllm_process(base, dtype, port := free_port()):
        yield f"http://127.0.0.1:{port}/v1"


@contextmanager
def vllm_process(base: Path, dtype: str, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """The same on a port; its process, which leads a group of its own.

    One at a time on a machine: files of tests run at once, and each vLLM has every core and a gigabyte.
    """
    assert VLLM is not None
    with (Path(tempfile.gettempdir()) / "retuned-tests-vllm.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield from _vllm_process(base, dtype, port)


def _vllm_process(base: Path, dtype: str, port: int) -> Iterator[subprocess.Popen[bytes]]:
    assert VLLM is not None
    environment = {
        "VLLM_TARGET_DEVICE": "cpu",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        # One thread on whatever core is free, where other tests run: by default its threads are bound to cores.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "1",
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "HF_HUB_OFFLINE": "1",
    }
    command = [VLLM, "serve", str(base), "--host", "127.0.0.1", "--port", str(port)]
    command += [
        "--enable-lora",
        "--max-lora-rank",
        "16",
        "--max-loras",
        "4",
        "--max-model-len",
        "512",
        "--enforce-eager",
    ]
    command += ["--dtype", dtype]
    server = subprocess.Popen(command, env=os.environ | environment, start_new_session=True)

    def answers() -> bool:
        assert server.poll() is None, "vLLM ended"
        try:
            return bool(urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=5).status == 200)
        except OSError:
            return False

    try:
        until(answers, 400)
        yield server
    finally:
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
        server.wait()
