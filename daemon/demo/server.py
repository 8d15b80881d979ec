"""The demo's model server: OpenAI-compatible HTTP on loopback, with the versions that serve put on while it runs.

    python -m retuned.daemon.demo.server --base FOLDER --port N [--bootstrap-servers HOST:PORT --model-events-topic T]

It stands for any production server that follows the model-events topic. It has the base model and the versions that
the traffic is split between, each under its name; the workload's name stands for its champion. One thread owns the
model: it answers the requests that wait, in one batch for each version. Answers are greedy, whatever `temperature`
says; the answer's `model` is the name that gave it.
"""

import argparse
import asyncio
import logging
import queue
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import uvicorn
from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from retuned.consumers.errors import RetunedError
from retuned.daemon.demo.model import Answer, Model, Prompt
from retuned.retrain.settings import template_variables

LARGEST_BATCH = 16
GATHER_SECONDS = 0.01
MOST_WAITING = 256
LONGEST_PROMPT = 2_048
RETRY_SECONDS = 1.0

log = logging.getLogger("retuned.demo_server")


class ModelEvent(msgspec.Struct, frozen=True):
    """What this server needs of a message on the model-events topic: which version answers a share of the traffic from
    now on, and which one the rest. Of the base model, `path` and `previous_version` are null.
    """

    event: Literal["promoted", "rolled_back", "canary", "canary_rolled_back", "completed"]
    workload: str
    model: str
    path: str | None
    previous_version: str | None = None
    share: float = 1.0


class Message(msgspec.Struct, frozen=True):
    """One message of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


class ChatRequest(msgspec.Struct, frozen=True):
    """The part of OpenAI's request that this server reads."""

    model: str
    messages: Annotated[tuple[Message, ...], msgspec.Meta(min_length=1)]
    max_tokens: Annotated[int, msgspec.Meta(ge=1, le=1_024)] | None = None
    max_completion_tokens: Annotated[int, msgspec.Meta(ge=1, le=1_024)] | None = None
    stream: bool | None = None
    n: Annotated[int, msgspec.Meta(ge=1, le=1)] | None = None
    chat_template_kwargs: dict[str, Any] = {}


@dataclass(frozen=True)
class Served:
    """An answer, and the name of the model that gave it."""

    answer: Answer
    model: str


@dataclass(frozen=True)
class Waiting:
    """A request that waits for its batch."""

    model: str
    prompt: Prompt
    limit: int
    result: "Future[Served]"


class NoSuchModel(RetunedError):
    """A request names a model that is not here."""


class Worker:
    """The thread that owns the model."""

    def __init__(self, model: Model, workload: str) -> None:
        self._model, self._workload = model, workload
        self._waiting: queue.Queue[Waiting] = queue.Queue(MOST_WAITING)
        self._events: queue.SimpleQueue[ModelEvent] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._base = f"{workload}@base"
        self._announced: dict[str, Path | None] = {self._base: None}
        self.adapters: dict[str, Path | None] = {self._base: None}
        """What may be asked for, by name, the base model first."""
        self.champion = self._base
        self.refused: str | None = None
        """Why the latest change was not made as a whole; null when it was."""

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """Finish the batch in hand and end; safe to repeat."""
        self._stop.set()
        self._thread.join()

    def change(self, event: ModelEvent) -> None:
        """Serve other versions from the next batch on. Of changes that wait, the last one is made."""
        self._events.put(event)

    def submit(self, model: str, prompt: Prompt, limit: int) -> "Future[Served]":
        """Queue a request. The answer is a NoSuchModel where that model is not here when its turn comes.

        Raises:
            queue.Full: too many wait already.
        """
        waiting = Waiting(model, prompt, limit, Future())
        self._waiting.put_nowait(waiting)
        return waiting.result

    def _run(self) -> None:
        while not self._stop.is_set():
            latest = None
            while not self._events.empty():
                latest = self._events.get()
                self._announced[latest.model] = None if latest.path is None else Path(latest.path)
            if latest is not None:
                self._change(latest)
            batch = self._gather()
            for model in dict.fromkeys(waiting.model for waiting in batch):
                self._serve(model, [waiting for waiting in batch if waiting.model == model])

    def _change(self, event: ModelEvent) -> None:
        """Put on what the event names, and let go of the rest; what cannot be put on is left out."""
        began = time.perf_counter()
        rest = f"{self._workload}@{event.previous_version or 'base'}" if event.share < 1 else event.model
        champion = rest if event.event == "canary" else event.model
        adapters: dict[str, Path | None] = {self._base: None}
        self.refused = None
        for name in dict.fromkeys((champion, event.model, rest)):
            try:
                if name not in self._announced:
                    raise RetunedError(f"no event has named the folder of {name}")
                self._model.adapt(self._announced[name])
                adapters[name] = self._announced[name]
            except Exception as error:
                self.refused = str(error) if isinstance(error, RetunedError) else f"{type(error).__name__}: {error}"
                log.exception("%s of %s: %s is not served", event.event, event.model, name)
        if champion not in adapters:
            champion = self.champion
            adapters[champion] = self.adapters[champion]
        self.adapters, self.champion = adapters, champion
        self._model.keep([adapter for adapter in adapters.values() if adapter is not None])
        log.info("%s: %s are served (%.2f s)", event.event, ", ".join(adapters), time.perf_counter() - began)

    def _gather(self) -> list[Waiting]:
        """The requests of the next batch; none when none came for a moment."""
        batch: list[Waiting] = []
        wait = 0.1
        while len(batch) < LARGEST_BATCH:
            try:
                waiting = self._waiting.get(timeout=wait)
            except queue.Empty:
                break
            if waiting.result.set_running_or_notify_cancel():  # false: the client has gone
                batch.append(waiting)
            wait = GATHER_SECONDS
        return batch

    def _serve(self, model: str, batch: list[Waiting]) -> None:
        name = self.champion if model == self._workload else model
        try:
            if name not in self.adapters:
                raise NoSuchModel(f"The model `{model}` does not exist.")
            self._model.adapt(self.adapters[name])
            answers = self._model.answer([one.prompt for one in batch], [one.limit for one in batch])
        except Exception as error:
            if not isinstance(error, NoSuchModel):
                log.exception("a batch of %d failed", len(batch))
            for one in batch:
                one.result.set_exception(error)
            return
        for one, answer in zip(batch, answers, strict=True):
            one.result.set_result(Served(answer, name))


def app(model: Model, worker: Worker) -> Starlette:
    """The HTTP side."""
    decoder = msgspec.json.Decoder(ChatRequest)

    async def completions(request: Request) -> Response:
        try:
            wanted = decoder.decode(await request.body())
            variables = template_variables(wanted.chat_template_kwargs)
        except (msgspec.DecodeError, ValueError) as error:
            return _error(400, str(error))
        if wanted.stream:
            return _error(400, "this server does not stream; leave `stream` out")
        limit = wanted.max_completion_tokens or wanted.max_tokens or 128
        messages = [msgspec.to_builtins(message) for message in wanted.messages]
        prompt = model.prompt(messages, variables)
        if len(prompt.ids) > LONGEST_PROMPT:
            return _error(400, f"the conversation has {len(prompt.ids)} tokens, the most is {LONGEST_PROMPT}")
        try:
            waiting = worker.submit(wanted.model, prompt, limit)
        except queue.Full:
            return _error(429, "too many requests wait; try again in a moment", {"Retry-After": "1"})
        try:
            served = await asyncio.wrap_future(waiting)
        except NoSuchModel as error:
            return _error(404, str(error))
        except Exception as error:
            log.exception("a request failed")
            return _error(500, f"the model failed: {type(error).__name__}")
        answer = served.answer
        return JSONResponse(
            {
                "id": f"chatcmpl-{uuid.uuid4().hex}",
                "object": "chat.completion",
                "created": int(time.time()),
                "model": served.model,
                "choices": [
                    {
                        "index": 0,
                        "message": {"role": "assistant", "content": answer.text},
                        "finish_reason": "stop" if answer.ended else "length",
                    }
                ],
                "usage": {
                    "prompt_tokens": len(prompt.ids),
                    "completion_tokens": answer.tokens,
                    "total_tokens": len(prompt.ids) + answer.tokens,
                },
            }
        )

    async def models(_: Request) -> Response:
        base, *versions = worker.adapters
        parents = {base: None} | dict.fromkeys(versions, base)
        listed = [
            {"id": name, "object": "model", "created": 0, "owned_by": "retuned", "parent": parent}
            for name, parent in parents.items()
        ]
        return JSONResponse({"object": "list", "data": listed})

    async def healthz(_: Request) -> Response:
        return JSONResponse({"status": "ok", "model": worker.champion, "refused": worker.refused})

    return Starlette(
        routes=[
            Route("/v1/chat/completions", completions, methods=["POST"]),
            Route("/v1/models", models),
            Route("/healthz", healthz),
        ]
    )


def follow(
    bootstrap_servers: str, topic: str, workload: str, change: Callable[[ModelEvent], None], stop: threading.Event
) -> None:
    """Read the model-events topic from its start until stopped, and hand on the workload's events.

    Events of a workload have one key and so one partition: they come in order. A broker that does not answer is asked
    again; reading goes on where it was.
    """
    positions: dict[TopicPartition, int] = {}
    while not stop.is_set():
        consumer = None
        try:
            consumer = KafkaConsumer(
                bootstrap_servers=bootstrap_servers, group_id=None, enable_auto_commit=False, bootstrap_timeout_ms=3_000
            )
            _read(consumer, topic, workload, change, stop, positions)
        except KafkaError as error:
            log.warning("model events: %s; trying again", error)
            stop.wait(RETRY_SECONDS)
        finally:
            if consumer is not None:
                consumer.close()


def _read(
    consumer: Any,
    topic: str,
    workload: str,
    change: Callable[[ModelEvent], None],
    stop: threading.Event,
    positions: dict[TopicPartition, int],
) -> None:
    while not (numbers := consumer.partitions_for_topic(topic)):
        if stop.wait(RETRY_SECONDS):
            return
    partitions = [TopicPartition(topic, number) for number in sorted(numbers)]
    consumer.assign(partitions)
    for partition in partitions:
        if partition in positions:
            consumer.seek(partition, positions[partition])
        else:
            consumer.seek_to_beginning(partition)
    decoder = msgspec.json.Decoder(ModelEvent)
    while not stop.is_set():
        for partition, records in consumer.poll(timeout_ms=200).items():
            for record in records:
                positions[partition] = record.offset + 1
                try:
                    event = decoder.decode(record.value or b"")
                except msgspec.DecodeError as error:
                    log.warning("model events: the message at %s:%d is not understood: %s", topic, record.offset, error)
                    continue
                if event.workload == workload:
                    change(event)


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    kind = {400: "invalid_request_error", 404: "invalid_request_error", 429: "rate_limit_error"}.get(
        status, "server_error"
    )
    return JSONResponse({"error": {"message": message, "type": kind}}, status_code=status, headers=headers)


class _Server(uvicorn.Server):
    """uvicorn would take the signals and end the process by them before the other threads have ended."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def main() -> None:
    """Load the model, follow the events, serve until a signal comes."""
    parser = argparse.ArgumentParser(prog="python -m retuned.daemon.demo.server", description=__doc__.split("\n")[0])
    parser.add_argument("--base", type=Path, required=True, help="folder of the base model")
    parser.add_argument("--port", type=int, required=True, help="on 127.0.0.1")
    parser.add_argument(
        "--bootstrap-servers", help="the broker of the model events; without it, the base model is served"
    )
    parser.add_argument("--model-events-topic", default="retuned.model-events")
    parser.add_argument("--workload", default="support", help="events of other workloads are passed over")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of the model")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("kafka").setLevel(logging.ERROR)
    try:
        model = Model(arguments.base, arguments.threads)
    except RetunedError as error:
        sys.exit(str(error))
    worker = Worker(model, arguments.workload)
    stop = threading.Event()
    followers = []
    if arguments.bootstrap_servers:
        source = (arguments.bootstrap_servers, arguments.model_events_topic, arguments.workload, worker.change, stop)
        followers = [threading.Thread(target=follow, args=source, name="model-events", daemon=True)]
    worker.start()
    for follower in followers:
        follower.start()
    log.info("%s in %s on http://127.0.0.1:%d", worker.champion, model.dtype, arguments.port)
    server = _Server(
        uvicorn.Config(
            app(model, worker),
            host="127.0.0.1",
            port=arguments.port,
            log_level="warning",
            timeout_graceful_shutdown=5,
        )
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, server.handle_exit)
    try:
        server.run()
    finally:
        stop.set()
        worker.stop()
        for follower in followers:
            follower.join(timeout=5)


if __name__ == "__main__":
    main()
