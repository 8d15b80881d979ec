"""A double of a provider: OpenAI's routes for files, fine-tuning jobs, models and chat completions, over real HTTP.

It trains nothing: a "fine-tuned" model gives the answer whose questions had most of a question's words (a naive Bayes
classifier), and to what has few words that it was shown it answers as its base does, which knows nothing. One that goes
on from another forgets most of that. Routes, statuses, objects and refusals are those of OpenAI's reference.
"""

import json
import math
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import Message
from email.parser import BytesParser
from typing import Any
from urllib.parse import parse_qs, urlsplit

from http_doubles import Quiet, listening

BASE = "gpt-4.1-mini-2025-04-14"
ENDED = ("succeeded", "failed", "cancelled")
LOST = "lost"
"""What `interfere` returns for a request that is carried out and whose answer never comes."""

_ALIKE = 0.6
_FORGETS = 9
_LEAST_EXAMPLES = 10
_KEYS = {
    "system": {"role", "content"},
    "developer": {"role", "content"},
    "user": {"role", "content"},
    "assistant": {"role", "content", "tool_calls", "weight"},
    "tool": {"role", "content", "tool_call_id"},
}
_WORD = re.compile(r"\w+")

Json = dict[str, Any]
Answered = tuple[int, Any]


def error(status: int, message: str, code: str | None = None, param: str | None = None) -> Answered:
    """An error as OpenAI answers it."""
    kind = "insufficient_quota" if code == "insufficient_quota" else "invalid_request_error"
    return status, {"error": {"message": message, "type": kind, "param": param, "code": code}}


@dataclass
class Provider:
    """What a provider has.

    Attributes:
        key: what requests must bear.
        models: name to what a fine-tuned model was shown: words of the question, and the answer.
        files: id to the file object; `contents` has their bytes.
        jobs: the oldest first.
        asked: method and path of each request; `bodies`: JSON bodies of the posts, by path.
        epochs: path and header Retuned-Epoch of what is no GET.
        states: those that a job passes, one at each look at it.
        fails: the error of jobs that do not succeed; None: they do.
        page: the most objects on a page.
        interfere: gets method and path of a request; an answer in the place of the right one, or LOST; headers may be
            a third part of an answer.
    """

    url: str = ""
    key: str = "sk-test"
    models: dict[str, list[tuple[set[str], Json]]] = field(default_factory=lambda: {BASE: [], "gpt-4.1-nano": []})
    files: dict[str, Json] = field(default_factory=dict)
    contents: dict[str, bytes] = field(default_factory=dict)
    jobs: dict[str, Json] = field(default_factory=dict)
    cancelled: list[str] = field(default_factory=list)
    asked: list[tuple[str, str]] = field(default_factory=list)
    epochs: list[tuple[str, str | None]] = field(default_factory=list)
    bodies: dict[str, list[Json]] = field(default_factory=dict)
    states: tuple[str, ...] = ("running", "succeeded")
    fails: Json | None = None
    page: int = 100
    interfere: Callable[[str, str], Any] = lambda *_: None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def lines(self, split: str) -> list[Json]:
        """What was uploaded of a split, whether it is still there or not."""
        return [
            json.loads(line)
            for file, content in self.contents.items()
            if file.endswith(split)
            for line in content.splitlines()
        ]

    def chats(self, model: str | None = None) -> list[Json]:
        """The chat completions that were asked for, of one model or of all."""
        return [body for body in self.bodies.get("/v1/chat/completions", []) if model in (None, body["model"])]

    def answer(self, method: str, target: str, headers: Message, content: bytes) -> Answered:
        """What a request is answered."""
        parts = urlsplit(target)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        with self._lock:
            if headers["Authorization"] != f"Bearer {self.key}":
                return error(401, "Incorrect API key provided.", "invalid_api_key")
            if method == "POST" and parts.path == "/v1/files":
                return self._upload(headers, content)
            body = json.loads(content) if content else {}
            if method == "POST":
                self.bodies.setdefault(parts.path, []).append(body)
            return self._routed(method, parts.path.removeprefix("/v1/").split("/"), query, body)

    def _routed(self, method: str, path: list[str], query: dict[str, str], body: Json) -> Answered:
        match method, path:
            case "GET", ["models"]:
                known = [{"id": name, "object": "model", "created": 1, "owned_by": "double"} for name in self.models]
                return 200, {"object": "list", "data": known}
            case "GET", ["files"]:
                of = [file for file in self.files.values() if file["purpose"] == query.get("purpose", "fine-tune")]
                return self._paged(of, query)
            case "DELETE", ["files", id]:
                if self.files.pop(id, None) is None:
                    return error(404, f"No such File object: {id}")
                return 200, {"id": id, "object": "file", "deleted": True}
            case "POST", ["fine_tuning", "jobs"]:
                return self._create(body)
            case "GET", ["fine_tuning", "jobs"]:
                return self._paged(list(reversed(self.jobs.values())), query)
            case _, ["fine_tuning", "jobs", id, *_] if id not in self.jobs:
                return error(404, f"Could not find fine tune: {id}", "fine_tune_not_found")
            case "GET", ["fine_tuning", "jobs", id]:
                self._go_on(self.jobs[id])
                return 200, _public(self.jobs[id])
            case "GET", ["fine_tuning", "jobs", id, "events"]:
                return self._paged(list(reversed(self.jobs[id]["events"])), query)
            case "POST", ["fine_tuning", "jobs", id, "cancel"]:
                job = self.jobs[id]
                if job["status"] in ENDED:
                    return error(400, f"Job {id} has already {job['status']}")
                self.cancelled.append(id)
                job |= {"status": "cancelled", "finished_at": int(time.time())}
                return 200, _public(job)
            case "POST", ["chat", "completions"]:
                return self._chat(body)
        return error(404, f"Invalid URL ({method} /v1/{'/'.join(path)})")

    def _paged(self, objects: list[Json], query: dict[str, str]) -> Answered:
        ids = [one["id"] for one in objects]
        start = ids.index(query["after"]) + 1 if "after" in query else 0
        end = start + min(int(query.get("limit", 20)), self.page)
        shown = [_public(one) for one in objects[start:end]]
        return 200, {"object": "list", "data": shown, "has_more": end < len(objects)}

    def _upload(self, headers: Message, content: bytes) -> Answered:
        form = BytesParser().parsebytes(f"Content-Type: {headers['Content-Type']}\r\n\r\n".encode() + content)
        fields: dict[str, tuple[str | None, bytes]] = {}
        for part in form.get_payload():
            assert isinstance(part, Message)
            payload = part.get_payload(decode=True)
            assert isinstance(payload, bytes)
            name = part.get_param("name", header="Content-Disposition")
            fields[str(name)] = part.get_filename(), payload
        if set(fields) != {"purpose", "file"}:
            return error(400, f"'purpose' and 'file' are required, not {sorted(fields)}")
        name, rows = fields["file"]
        assert name is not None
        id = f"file-{len(self.contents)}-{name.rsplit('-', 1)[-1].removesuffix('.jsonl')}"
        self.contents[id] = rows
        self.files[id] = {
            "id": id,
            "object": "file",
            "bytes": len(rows),
            "created_at": int(time.time()),
            "filename": name,
            "purpose": fields["purpose"][1].decode(),
            "status": "processed",
        }
        return 200, self.files[id]

    def _create(self, body: Json) -> Answered:
        unknown = set(body) - {"model", "training_file", "validation_file", "suffix", "seed", "method", "metadata"}
        if unknown:
            return error(400, f"Unrecognized request arguments: {sorted(unknown)}")
        if body["model"] not in self.models:
            return error(404, f"The model `{body['model']}` does not exist", "model_not_found", "model")
        for key in ("training_file", "validation_file"):
            if key in body and body[key] not in self.files:
                return error(400, f"invalid {key}: {body[key]}", "invalid_file", key)
        if len(body.get("suffix", "")) > 64:
            return error(400, "suffix is too long", param="suffix")
        epochs = body["method"]["supervised"]["hyperparameters"]["n_epochs"]
        hyperparameters = {"n_epochs": epochs, "batch_size": 1, "learning_rate_multiplier": 1.8}
        id = f"ftjob-{len(self.jobs)}"
        self.jobs[id] = {
            "id": id,
            "object": "fine_tuning.job",
            "created_at": int(time.time()),
            "error": None,
            "fine_tuned_model": None,
            "finished_at": None,
            "hyperparameters": hyperparameters,
            "method": {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
            "model": body["model"],
            "organization_id": "org-double",
            "result_files": [],
            "seed": body["seed"],
            "status": "validating_files",
            "trained_tokens": None,
            "training_file": body["training_file"],
            "validation_file": body.get("validation_file"),
            "metadata": body.get("metadata"),
            "suffix": body.get("suffix"),
            "events": [],
            "ahead": list(self.states),
        }
        return 200, _public(self.jobs[id])

    def _go_on(self, job: Json) -> None:
        """To the next state; a file that is not sound, or an error that was asked for, ends it."""
        if job["status"] in ENDED or not job["ahead"]:
            return
        rows = [json.loads(line) for line in self.contents[job["training_file"]].splitlines()]
        wrong = _unsound(rows)
        job["status"] = job["ahead"].pop(0)
        if wrong is not None and job["status"] != "validating_files":
            job |= {
                "status": "failed",
                "error": {"code": "invalid_training_file", "message": wrong, "param": "training_file"},
            }
        if job["status"] == "running":
            data = {"step": 3, "total_steps": 9, "train_loss": 1.25, "valid_loss": 1.5, "full_valid_loss": 1.375}
            self._event(job, "Step 3/9: training loss=1.25", "metrics", data)
        if job["status"] == "succeeded" and self.fails is not None:
            job |= {"status": "failed", "error": self.fails}
        if job["status"] in ENDED:
            job["finished_at"] = int(time.time())
        if job["status"] == "succeeded":
            job["fine_tuned_model"] = name = f"ft:{BASE}:double:{job['suffix']}:{len(self.models)}"
            job["trained_tokens"] = job["hyperparameters"]["n_epochs"] * sum(
                len(_words(turn.get("content"))) for row in rows for turn in row["messages"]
            )
            shown = [(_words(_asked(row["messages"][:-1])), row["messages"][-1]) for row in rows]
            self.models[name] = [*self.models[job["model"]][::_FORGETS], *shown]
            self._event(job, "The job has successfully completed", "message")

    def _event(self, job: Json, message: str, kind: str, data: Json | None = None) -> None:
        job["events"].append(
            {
                "id": f"ftevent-{job['id']}-{len(job['events'])}",
                "object": "fine_tuning.job.event",
                "created_at": int(time.time()),
                "level": "info",
                "message": message,
                "type": kind,
                "data": data or {},
            }
        )

    def _chat(self, body: Json) -> Answered:
        if body["model"] not in self.models:
            return error(404, f"The model `{body['model']}` does not exist", "model_not_found")
        prompt = _words(_asked(body["messages"]))
        message: Json = {"role": "assistant", "content": "I cannot say.", "refusal": None}
        if learned := _likeliest(self.models[body["model"]], prompt):
            message |= learned
        read = sum(len(_words(turn.get("content"))) for turn in body["messages"])
        wrote = len(json.dumps(message).split())
        return 200, {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": body["model"],
            "choices": [{"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}],
            "usage": {"prompt_tokens": read, "completion_tokens": wrote, "total_tokens": read + wrote},
        }


def _public(one: Json) -> Json:
    return {key: value for key, value in one.items() if key not in ("events", "ahead", "suffix")}


def _words(text: str | None) -> set[str]:
    return set(_WORD.findall((text or "").lower()))


def _asked(messages: list[Json]) -> str:
    return next((turn["content"] for turn in reversed(messages) if turn["role"] == "user"), "")


def _likeliest(shown: list[tuple[set[str], Json]], prompt: set[str]) -> Json | None:
    """The answer that fits a question best; None where most of its words were never shown."""
    known = {word for words, _ in shown for word in words}
    if len(prompt & known) < _ALIKE * len(prompt):
        return None
    of: dict[str, list[set[str]]] = {}
    for words, answer in shown:
        of.setdefault(json.dumps(answer), []).append(words)

    def likelihood(answer: str) -> float:
        counts = Counter(word for words in of[answer] for word in words)
        return math.log(len(of[answer])) + sum(
            math.log((counts[word] + 0.01) / (len(of[answer]) + 0.02)) for word in prompt & known
        )

    found: Json = json.loads(max(of, key=likelihood))
    return found


def _unsound(rows: list[Json]) -> str | None:
    """What is wrong with a training file, as OpenAI's validation has it."""
    if len(rows) < _LEAST_EXAMPLES:
        return f"Training file has {len(rows)} example(s), but must have at least {_LEAST_EXAMPLES} examples"
    for number, row in enumerate(rows, 1):
        turns = row.get("messages")
        if not turns or set(row) - {"messages", "tools", "parallel_tool_calls"}:
            return f"Line {number}: expected messages"
        if turns[-1]["role"] != "assistant":
            return f"Line {number}: the last message must be from the assistant"
        open_calls: set[str] = set()
        for turn in turns:
            if set(turn) - _KEYS[turn["role"]] or (
                turn["role"] != "assistant" and not isinstance(turn["content"], str)
            ):
                return f"Line {number}: unexpected keys in {turn}"
            if turn["role"] == "tool" and turn.get("tool_call_id") not in open_calls:
                return f"Line {number}: a tool message answers no call"
            for call in turn.get("tool_calls", ()):
                json.loads(call["function"]["arguments"])
                open_calls.add(call["id"])
    return None


@contextmanager
def serving() -> Iterator[Provider]:
    """The double on a free port of this machine."""
    double = Provider()

    class Handler(Quiet):
        def do_GET(self) -> None:
            self._answer()

        do_POST = do_DELETE = do_GET

        def _answer(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"] or 0))
            double.asked.append((self.command, self.path))
            if self.command != "GET":
                double.epochs.append((self.path, self.headers["Retuned-Epoch"]))
            told = double.interfere(self.command, self.path)
            status, body, *headers = (
                double.answer(self.command, self.path, self.headers, content) if (told in (None, LOST)) else told
            )
            if told == LOST:
                self.close_connection = True
                return
            self.send_response(status)
            for name, value in (headers[0] if headers else {}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write((body if isinstance(body, str) else json.dumps(body)).encode())

    with listening(Handler) as address:
        double.url = f"{address}/v1"
        yield double
