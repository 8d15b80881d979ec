"""Answers of models that a provider serves, by OpenAI's chat completions: where `train.engine` is api.

A provider gets messages, not token ids, and cuts what is too long for its model by itself. Each answer is paid for: it
is kept in a file as it comes, so that an evaluation that is taken up again asks for no answer twice.
"""

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retuned.consumers.common import reasoning, tool_calls
from retuned.retrain.data import chat
from retuned.retrain.generation.engine import Answer, Row, paced
from retuned.retrain.openai_api import Client, Refused
from retuned.retrain.settings import EvaluateSettings

ANSWERS = "answers.jsonl"
_TOO_LONG = "context_length_exceeded"


@dataclass(frozen=True)
class Used:
    """Tokens of an evaluation, as the provider counts them."""

    input: int = 0
    output: int = 0


def used(folder: Path) -> Used | None:
    """What the evaluation in a folder has used so far; None: nothing was asked there."""
    answers = list(_kept(folder / ANSWERS).values())
    if not answers:
        return None
    return Used(sum(one["input_tokens"] for one in answers), sum(one["output_tokens"] for one in answers))


class ProviderEngine:
    """Models at the provider. Their seconds are the provider's: they hold its queue and the way there."""

    def __init__(
        self,
        client: Client,
        models: Mapping[str, str],
        bare: Sequence[str],
        settings: EvaluateSettings,
        context: bool,
        file: Path,
    ) -> None:
        """Nothing is asked yet.

        Args:
            models: name of a model to the provider's name of it.
            bare: those of them that are the bare base model.
            context: of `TrainSettings`.
            file: where answers are kept.
        """
        self._client, self._names, self._bare = client, dict(models), set(bare)
        self._settings, self._context, self._file = settings, context, file
        self._known = _kept(file)
        self._lock = threading.Lock()

    def answers(self, rows: Sequence[Row], models: Sequence[str]) -> Iterator[tuple[Row, dict[str, Answer]]]:
        with ThreadPoolExecutor(self._settings.batch_size, "evaluate") as pool:
            try:
                for row, found in zip(rows, pool.map(lambda row: self._answers(row, models), rows), strict=True):
                    if found is not None:
                        last = found[models[-1]]
                        bare = {name: one for name, one in found.items() if name in self._bare}
                        yield row, {**found, **paced(bare, last)}
            finally:
                pool.shutdown(cancel_futures=True)

    def next_tokens(
        self,
        rows: Sequence[Row],  # noqa: ARG002
        models: Sequence[str],  # noqa: ARG002
    ) -> Iterator[tuple[list[int], dict[str, Mapping[int, float]]]]:
        return iter(())  # a provider takes no token ids

    def close(self) -> None:
        """Nothing is held."""

    def _answers(self, row: Row, models: Sequence[str]) -> dict[str, Answer] | None:
        """None: the row is longer than a model reads."""
        try:
            return {model: self._answer(row, self._names[model]) for model in models}
        except Refused as error:
            if error.code == _TOO_LONG:
                return None
            raise

    def _answer(self, row: Row, model: str) -> Answer:
        body = {
            "model": model,
            **chat.request(row, self._context),
            # Deprecated in favour of max_completion_tokens by OpenAI, and the name that all providers know.
            "max_tokens": self._settings.max_new_tokens,
            "temperature": 0,
        }
        key = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
        known = self._known.get(key) or self._asked(key, body)
        return Answer(known["text"], known["output_tokens"], known["seconds"], loss=None)

    def _asked(self, key: str, body: dict[str, Any]) -> dict[str, Any]:
        answer, seconds = self._client.request("chat/completions", body)
        with self._client.expected("chat/completions"):
            message, usage = answer["choices"][0]["message"], answer["usage"]
            _, words = reasoning.split(message.get("content") or "")
            made = {
                "key": key,
                "text": tool_calls.written(words, message.get("tool_calls") or ()),
                "seconds": seconds,
                "input_tokens": int(usage["prompt_tokens"]),
                "output_tokens": int(usage["completion_tokens"]),
            }
        with self._lock, self._file.open("a", encoding="utf-8") as file:
            file.write("\n" + json.dumps(made))  # after a line that a killed process left half written, too
            self._known[key] = made
        return made


def _kept(file: Path) -> dict[str, dict[str, Any]]:
    """Answers by their key; a line that was being written when the process ended is none."""
    found = {}
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
        try:
            one = json.loads(line)
        except ValueError:
            continue
        found[one["key"]] = one
    return found
