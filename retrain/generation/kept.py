"""Caches answers of earlier evaluations, so that no model generates the same answer twice.

Decoding is greedy, so the same version gives the same answer to the same prompt. Each run asks base model and champion
the general, the regression and most of the holdout questions again, and a promoted candidate is the champion of the
next run.
"""

import hashlib
import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retuned.consumers.common.durable import replace_text

if TYPE_CHECKING:
    from retuned.retrain.kernels.packing import Encoded

MOST = 20_000
"""The maximum number of cached answers per workload, least recently used first out. Answers of 1 KB make 20 MB."""


@dataclass(frozen=True)
class Kept:
    """An answer without its time, which depends on the machine and its load.

    Attributes:
        tokens: the number of tokens, including the end token.
        limit: the maximum number of tokens when it was generated.
        loss: the loss of the approved answer, nats per token; None if unknown.
    """

    text: str
    tokens: int
    limit: int
    loss: float | None

    def holds(self, limit: int) -> bool:
        """Returns whether the model gives this answer under another limit, too: it ended before both limits."""
        return limit == self.limit or self.tokens < min(limit, self.limit)


class KeptAnswers:
    """Cached answers by model, prompt and approved answer. Thread-safe.

    Args:
        file: the file of the cache; None caches in memory.
        models: an identifier of each model's weights, by name.
        scope: everything else that determines what is generated, such as the dtype of the weights.
    """

    def __init__(self, file: Path | None = None, models: Mapping[str, str] | None = None, scope: str = "") -> None:
        self._file, self._models, self._scope = file, models or {}, scope
        self._lock = threading.Lock()
        self._known = _read(file)

    def find(self, model: str, row: Mapping[str, Any], encoded: "Encoded", limit: int) -> Kept | None:
        """Returns the model's cached answer to a row, if there is one."""
        key = self._key(model, row, encoded)
        with self._lock:
            answer = self._known.get(key)
            if answer is None or not answer.holds(limit):
                return None
            self._known[key] = self._known.pop(key)  # move to the end, as recently used
            return answer

    def keep(self, model: str, row: Mapping[str, Any], encoded: "Encoded", answer: Kept) -> None:
        """Caches an answer, and appends it to the file, so that a killed evaluation can resume."""
        key = self._key(model, row, encoded)
        with self._lock:
            self._known.pop(key, None)
            self._known[key] = answer
            if self._file is not None:
                self._file.parent.mkdir(parents=True, exist_ok=True)
                with self._file.open("a", encoding="utf-8") as file:
                    file.write(_line(key, answer))

    def close(self) -> None:
        """Rewrites the file with the MOST recently used answers."""
        if self._file is not None and self._known:
            latest = list(self._known.items())[-MOST:]
            replace_text(self._file, "".join(_line(key, answer) for key, answer in latest))

    def _key(self, model: str, row: Mapping[str, Any], encoded: "Encoded") -> str:
        """The tools of a row determine how the text is parsed, so they are part of the key."""
        parts = [self._scope, self._models.get(model, model), encoded.prompt, encoded.completion, row.get("tools")]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _line(key: str, answer: Kept) -> str:
    return json.dumps([key, answer.text, answer.tokens, answer.limit, answer.loss], ensure_ascii=False) + "\n"


def _read(file: Path | None) -> dict[str, Kept]:
    """Reads the answers in a file. Skips lines that a crash cut off."""
    answers: dict[str, Kept] = {}
    if file is None or not file.is_file():
        return answers
    with file.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                key, text, tokens, limit, loss = json.loads(line)
            except ValueError:
                continue
            answers.pop(key, None)
            answers[key] = Kept(text, tokens, limit, loss)
    return answers
