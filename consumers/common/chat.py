"""Ask a language model over HTTP, by the chat completions that OpenAI's API, vLLM, Ollama and others offer."""

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
from typing import TypeVar

from retuned.consumers.errors import Cancelled, ConfigurationError
from retuned.consumers.settings import JudgeSettings

Item = TypeVar("Item")
Verdict = TypeVar("Verdict")

_AT_ONCE = 4
_GIVE_UP = 8


class ChatFailed(Exception):
    """There is no answer; the text is short, for a count of its kind."""


@dataclass(frozen=True)
class Reply:
    """What a judge answered. `tokens`: of question and answer, as its server counts them; 0 where it does not."""

    text: str
    tokens: int


def ask(messages: list[dict[str, str]], settings: JudgeSettings) -> str:
    """What the judge answers to a conversation; see `reply`."""
    return reply(messages, settings).text


def reply(messages: list[dict[str, str]], settings: JudgeSettings) -> Reply:
    """What the judge answers to a conversation, at temperature 0.

    Raises:
        ChatFailed: it is away, too slow, refuses, or answers something else.
    """
    body = {"model": settings.judge_model, "messages": messages, "temperature": 0, "max_tokens": 512}
    try:
        request = urllib.request.Request(
            f"{str(settings.judge_url).rstrip('/')}/chat/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        if key := settings.key():
            request.add_unredirected_header("Authorization", f"Bearer {key}")  # another server has no business with it
        with urllib.request.urlopen(request, timeout=settings.judge_timeout_seconds) as response:
            answered = json.load(response)
            content = answered["choices"][0]["message"]["content"]
    except urllib.error.HTTPError as error:
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
    except (ValueError, LookupError, TypeError) as error:
        raise ChatFailed("not an answer of the chat completions") from error
    if not isinstance(content, str):
        raise ChatFailed("not an answer of the chat completions")
    tokens = (answered.get("usage") or {}).get("total_tokens")
    return Reply(content, tokens if isinstance(tokens, int) else 0)


def ask_all(
    items: Sequence[Item], judge: Callable[[Item], Verdict], stop: threading.Event, seconds: float | None = None
) -> tuple[list[tuple[Item, Verdict]], dict[str, int]]:
    """Have items judged, several at once; returns the verdicts, and why there are none for others, with their number.

    After several failures in a row, or after so many seconds, nothing more is asked: a judge that is away must not hold
    up what waits for it.

    Args:
        judge: raises ChatFailed where there is no verdict.

    Raises:
        Cancelled: stop was set.
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
    # A request that hangs must not keep the process from ending.
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
                item, verdict, why = done.get(timeout=0.1)
            except queue.Empty:
                continue
            left -= 1
            verdicts += [(item, one) for one in verdict]
            in_a_row = 0 if verdict else in_a_row + 1
            if not verdict:
                failures[why] += 1
    finally:
        over.set()
    return verdicts, dict(failures)
