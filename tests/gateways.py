"""The gateway as a process, the model servers behind it, and what it publishes."""

import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import yaml
from brokers import Broker, free_port, until
from http_doubles import Quiet
from kafka import KafkaConsumer, TopicPartition
from openai import OpenAI

Answer = Callable[["_Handler", dict[str, Any]], None]
KEY = "the-key-that-signs-feedback-in-tests"
NOBODY = "127.0.0.1:1"
"""Where no broker listens."""
WORDS = ("Within", " 30", " days.")


class _Handler(Quiet):
    protocol_version = "HTTP/1.1"
    server: "_Server"

    def setup(self) -> None:
        super().setup()
        self.server.double.connections.append(self.connection)

    def do_GET(self) -> None:
        double = self.server.double
        listed = [{"id": name, "parent": None if name == "base" else "base"} for name in double.models]
        self.json(200, {"object": "list", "data": listed}, Connection="close")  # requests have connections of their own

    def do_POST(self) -> None:
        double = self.server.double
        body = self.rfile.read(int(self.headers["Content-Length"]))
        asked = json.loads(body)
        double.requests.append((self.path, dict(self.headers), body))
        if asked["model"] not in double.models:  # as vLLM says it
            message = f"The model `{asked['model']}` does not exist."
            self.json(404, {"error": {"message": message, "type": "NotFoundError", "param": "model", "code": 404}})
            return
        double.answer(self, asked)

    def json(self, status: int, content: Any, **headers: str) -> None:
        body = json.dumps(content, indent=1).encode()  # with line breaks, as some servers write it
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def begin_stream(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def piece(self, content: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(content), content))
        self.wfile.flush()

    def chunk(self, model: str, delta: dict[str, Any], finish_reason: str | None = None, **more: Any) -> None:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
        found = {"id": "c1", "object": "chat.completion.chunk", "created": 1_790_000_000, "model": model}
        self.piece(b"data: " + json.dumps(found | {"choices": [choice]} | more).encode() + b"\n\n")

    def end_stream(self) -> None:
        self.piece(b"data: [DONE]\n\n")
        self.wfile.write(b"0\r\n\r\n")


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    double: "ModelServer"


class _Server6(_Server):
    address_family = socket.AF_INET6


def answered(handler: _Handler, asked: dict[str, Any]) -> None:
    """An answer as a whole or as a stream, as it was asked for."""
    model = asked["model"]
    if handler.path.endswith("/embeddings"):
        handler.json(200, {"object": "list", "model": model, "data": [{"index": 0, "embedding": [0.25, -1.5]}]})
    elif asked.get("stream"):
        handler.begin_stream()
        for word in WORDS:
            handler.chunk(model, {"content": word})
        handler.chunk(model, {}, "stop")
        handler.end_stream()
    else:
        message = {"role": "assistant", "content": f"{''.join(WORDS)} ({model})"}
        usage = {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        completion = {"id": "c1", "object": "chat.completion", "created": 1_790_000_000, "model": model}
        handler.json(200, completion | {"choices": [choice], "usage": usage})


class ModelServer:
    """A double of a model server with OpenAI's API.

    Attributes:
        models: that it lists and serves; `base` is the one without a parent.
        answer: what it does with a request.
        requests: path, headers and body of each.
    """

    def __init__(self, *models: str, port: int = 0, host: str = "127.0.0.1") -> None:
        self.models, self.answer = list(models), answered
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.connections: list[socket.socket] = []
        kind = _Server6 if ":" in host else _Server
        self._server = kind((host, port), _Handler)
        self._server.double = self
        self.port = int(self._server.server_address[1])
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{self.port}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def asked(self) -> list[str]:
        """The models that were asked for."""
        return [json.loads(body)["model"] for *_, body in self.requests]

    def close(self) -> None:
        """Safe to repeat."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        for connection in self.connections:
            with suppress(OSError):  # it has ended
                connection.shutdown(socket.SHUT_RDWR)


@contextmanager
def model_server(*models: str, port: int = 0, host: str = "127.0.0.1") -> Iterator[ModelServer]:
    """A double, ended whatever happens."""
    double = ModelServer(*models, port=port, host=host)
    try:
        yield double
    finally:
        double.close()


class Gateway:
    """`retuned gateway` in a process of its own."""

    def __init__(
        self, folder: Path, broker: str, upstreams: list[str], *, files: int | None = None, **sections: dict[str, Any]
    ) -> None:
        """`files`: that it may have open at most."""
        self.folder, self.log, self.files = folder, folder / "gateway.log", files
        self.port = sections.get("gateway", {}).get("port") or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.buffer = folder / "buffer"
        self.topics = {kind: f"{folder.name}.{kind}" for kind in ("interactions", "feedback")}
        own = {
            "port": self.port,
            "upstreams": [{"url": url} for url in upstreams],
            "buffer": str(self.buffer),
            "poll_seconds": 0.2,
            **sections.pop("gateway", {}),
        }
        kafka = {f"{kind}_topic": topic for kind, topic in self.topics.items()} | sections.pop("kafka", {})
        settings = {"kafka": {"bootstrap_servers": broker, **kafka}, "http": {"port": 1}, **sections, "gateway": own}
        self.config = folder / "gateway.yaml"
        self.config.write_text(yaml.safe_dump(settings))
        self.process: subprocess.Popen[bytes] | None = None

    def launch(self) -> None:
        with self.log.open("ab") as log:
            command = [sys.executable, "-m", "retuned.daemon.cli.main", "gateway", "--config", str(self.config)]
            if self.files:
                command = ["sh", "-c", f'ulimit -n {self.files}; exec "$@"', "sh", *command]
            self.process = subprocess.Popen(command, stdout=log, stderr=log)

    def start(self) -> None:
        self.launch()
        until(lambda: self.runs() and self.answers("/healthz"), 60)

    def stop(self, how: signal.Signals = signal.SIGTERM, seconds: float = 30) -> int:
        assert self.process is not None
        self.process.send_signal(how)
        return self.process.wait(seconds)

    def runs(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log.read_text(errors="replace")[-3_000:]
        return True

    def end(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def answers(self, path: str) -> bool:
        with suppress(httpx.HTTPError):
            return httpx.get(self.url + path, timeout=10).status_code == 200
        return False

    def post(self, path: str, content: Any, **headers: str) -> httpx.Response:
        return httpx.post(self.url + path, json=content, headers=headers, timeout=120)

    def chat(self, question: str = "How long?", model: str = "support", **headers: str) -> httpx.Response:
        messages = [{"role": "user", "content": question}]
        return self.post("/v1/chat/completions", {"model": model, "messages": messages}, **headers)

    def client(self, key: str = "sk-nobody-knows-this", **options: Any) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=120, **options)

    def metric(self, name: str, **labels: str) -> float | None:
        """The value of a series, without the prefix."""
        for line in httpx.get(f"{self.url}/metrics", timeout=10).text.splitlines():
            named = re.match(rf"retuned_gateway_{name}[{{ ]", line)
            if named and all(f'{key}="{value}"' in line for key, value in labels.items()):
                return float(line.rsplit(" ", 1)[1])
        return None

    def waiting(self) -> int:
        """Files in the buffer that have not been published."""
        return len(list(self.buffer.glob("*.records")))


@contextmanager
def gateway(
    folder: Path, broker: Broker | str, *upstreams: ModelServer, files: int | None = None, **sections: Any
) -> Iterator[Gateway]:
    """A gateway that answers, ended whatever happens."""
    servers = broker if isinstance(broker, str) else broker.bootstrap_servers
    made = Gateway(folder, servers, [one.url for one in upstreams], files=files, **sections)
    made.start()
    try:
        yield made
    finally:
        made.end()


def published(broker: Broker, topic: str, *ids: str, key: str = "id", least: int = 1) -> list[dict[str, Any]]:
    """The messages of a topic, once there are so many, and some whose `key` is each of these."""
    consumer = KafkaConsumer(bootstrap_servers=broker.bootstrap_servers, group_id=None, enable_auto_commit=False)
    found: list[dict[str, Any]] = []
    try:
        until(lambda: consumer.partitions_for_topic(topic), 60)
        partitions = [TopicPartition(topic, number) for number in consumer.partitions_for_topic(topic)]
        consumer.assign(partitions)
        consumer.seek_to_beginning(*partitions)

        def enough() -> bool:
            for records in consumer.poll(timeout_ms=200).values():
                found.extend(json.loads(record.value) for record in records)
            return len(found) >= least and {*ids} <= {one[key] for one in found}

        until(enough, 60)
    finally:
        consumer.close()
    return found


def break_off(handler: _Handler) -> None:
    """End the connection as a server does that is killed."""
    handler.close_connection = True
    handler.connection.shutdown(socket.SHUT_RDWR)


def route(
    workload: str, *arms: tuple[str, str, float], experiment: str | None = None, shadow: float = 0.0
) -> dict[str, Any]:
    found = [
        {"arm": arm, "model": f"{workload}@{version}", "name": f"{workload}@{version}", "share": share}
        for arm, version, share in arms
    ]
    base = {"model": f"{workload}@base", "name": None}
    return {"experiment": experiment, "arms": found, "base": base, "shadow": shadow}


def read(stream: Any, got: list[str]) -> None:
    """Take the texts of a stream to its end."""
    got.extend(chunk.choices[0].delta.content or "" for chunk in stream)


@contextmanager
def no_more_files() -> Iterator[None]:
    """Open as many as may be opened."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
        with suppress(OSError):
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        yield
    finally:
        for handle in taken:
            os.close(handle)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
