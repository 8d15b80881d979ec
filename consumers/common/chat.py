"""Asks a language model over HTTP, by the chat completions API of OpenAI, vLLM, Ollama and others."""

import http.client
import json
import queue
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from retuned.consumers.errors import Cancelled, ConfigurationError
from retuned.consumers.sections import JudgeSettings

Item = TypeVar("Item")
Verdict = TypeVar("Verdict")

_AT_ONCE = 4
_GIVE_UP = 8


class ChatFailed(Exception):
    """There is no answer; the text is short, so that failures can be counted by it."""


@dataclass(frozen=True)
class Reply:
    """A judge's reply.

    Attributes:
        tokens: the tokens of question and answer, as counted by the server; 0: unknown.
        logprobs: for each token of the answer, in the form of chat completions; empty: not requested or not supported.
    """

    text: str
    tokens: int
    logprobs: Sequence[dict[str, Any]] = ()


def ask(messages: list[dict[str, str]], settings: JudgeSettings) -> str:
    """Returns the judge's answer to a conversation; see `reply`."""
    return reply(messages, settings).text


def reply(messages: list[dict[str, str]], settings: JudgeSettings, **more: Any) -> Reply:
    """Returns the judge's reply to a conversation, at temperature 0.

    Args:
        more: further keys of the request, such as `response_format`.

    Raises:
        ChatFailed: the server is away or too slow, refuses the request, or returns something else.
    """
    body = {"model": settings.judge_model, "messages": messages, "temperature": 0, "max_tokens": 512} | more
    try:
        request = urllib.request.Request(
            f"{str(settings.judge_url).rstrip('/')}/chat/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        if key := settings.key():
            request.add_unredirected_header("Authorization", f"Bearer {key}")  # never sent to another server
        with urllib.request.urlopen(request, timeout=settings.judge_timeout_seconds) as response:
            answered = json.load(response)
            content = answered["choices"][0]["message"]["content"]
            logprobs = (answered["choices"][0].get("logprobs") or {}).get("content") or []
    except urllib.error.HTTPError as error:
        error.close()  # an open body keeps the connection open
        raise ChatFailed(f"status {error.code}") from error
    except TimeoutError as error:
        raise ChatFailed("timeout") from error
    except urllib.error.URLError as error:
        late = isinstance(error.reason, TimeoutError)
        raise ChatFailed("timeout" if late else f"no connection: {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        raise ChatFailed(f"connection lost: {error or type(error).__name__}") from error
    except ConfigurationError as error:
        raise ChatFailed(str(error)) from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ChatFailed("not an answer of the chat completions") from error
    if not isinstance(content, str):
        raise ChatFailed("not an answer of the chat completions")
    tokens = (answered.get("usage") or {}).get("total_tokens")
    return Reply(content, tokens if isinstance(tokens, int) else 0, logprobs)


def ask_all(
    items: Sequence[Item], judge: Callable[[Item], Verdict], stop: threading.Event, seconds: float | None = None
) -> tuple[list[tuple[Item, Verdict]], dict[str, int]]:
    """Judges items, several at once; returns the verdicts, and the number of failures by reason.

    It gives up after several consecutive failures or after `seconds`, so that an unavailable judge does not block the
    caller.

    Args:
        judge: returns the verdict on an item; raises ChatFailed.

    Raises:
        Cancelled: `stop` was set.
    """
    todo: queue.SimpleQueue[Item] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[Item, list[Verdict], str]] = queue.SimpleQueue()
    for item in items:
        todo.put(item)
    over = threading.Event()

    def work() -> None:
        while not over.is_set():
            try:
                item = todo.get_nowait()
            except queue.Empty:
                return
            try:
                done.put((item, [judge(item)], ""))
            except ChatFailed as error:
                done.put((item, [], str(error)))

    verdicts: list[tuple[Item, Verdict]] = []
    failures, in_a_row, left = Counter[str](), 0, len(items)
    deadline = None if seconds is None else time.monotonic() + seconds
    # Daemon threads: a hanging request must not keep the process alive.
    for number in range(min(_AT_ONCE, len(items))):
        threading.Thread(target=work, name=f"judge-{number}", daemon=True).start()
    try:
        while left:
            if stop.is_set():
                raise Cancelled("judge: stopped before it was done")
            if in_a_row == _GIVE_UP or (deadline is not None and time.monotonic() > deadline):
                failures["given up" if in_a_row == _GIVE_UP else "out of time"] += left
                break
            try:
                item, judged, reason = done.get(timeout=0.1)
            except queue.Empty:
                continue
            left -= 1
            verdicts += [(item, verdict) for verdict in judged]
            in_a_row = 0 if judged else in_a_row + 1
            if not judged:
                failures[reason] += 1
    finally:
        over.set()
    return verdicts, dict(failures)
