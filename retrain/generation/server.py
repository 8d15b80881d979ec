"""Generates answers on an OpenAI-compatible server that loads adapters, such as vLLM.

The server must have the base model of `models.base`. Requests contain token ids by retuned's chat template, so that the
prompt is the same as in training. Adapters are loaded under names with their version and the evaluation, are never
replaced in place, and are unloaded afterwards. Other models of the server are not changed.
"""

import json
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

from retuned.consumers.errors import RetunedError
from retuned.retrain.generation.engine import Answer, Row, paced, prompts
from retuned.retrain.generation.kept import Kept, KeptAnswers
from retuned.retrain.generation.lora_server import LoraServer
from retuned.retrain.openai_api import Client, Refused
from retuned.retrain.settings import EvaluateSettings

if TYPE_CHECKING:
    from retuned.retrain.kernels.packing import Encoded

log = logging.getLogger(__name__)

_PAUSES = (1.0, 2.0, 4.0)
"""Seconds before a failed request is retried."""
_SET_TOKEN = "set evaluate.token or evaluate.token_file"
_SAME_LOSS = 1e-3
_TIMED = 16
"""The number of rows that each model answers even if they are cached, to measure its current time per token."""


class Server:
    """The server of `evaluate.url`."""

    def __init__(self, settings: EvaluateSettings, token: str | None) -> None:
        assert settings.url is not None  # the settings require it
        self.url = settings.url.rstrip("/")
        self._client = Client(
            self.url,
            "evaluate.url",
            token,
            settings.request_timeout_seconds,
            if_away="start the server, or raise evaluate.request_timeout_seconds",
            advice={401: _SET_TOKEN, 403: _SET_TOKEN},
            pauses=_PAUSES,
        )
        self._server = LoraServer(self._client)

    def base(self) -> str:
        """Returns the server's name of its base model.

        Raises:
            RetunedError: the server lists no base model, or several.
        """
        return str(self._server.base()["id"])

    def next_tokens(self, model: str, prompts: Sequence[list[int]]) -> list[dict[int, float]]:
        """Returns the likeliest tokens after each prompt, with their log-probabilities in nats."""
        return self._server.next_tokens(model, prompts)

    @contextmanager
    def loaded(self, adapters: Mapping[str, Path], fused: Collection[str] = ()) -> Iterator[None]:
        """Loads adapters by name, and unloads them afterwards, also after an error.

        Args:
            fused: the names of adapters that cover fused experts.

        Raises:
            RetunedError: an adapter cannot be loaded. The message states what to do.
        """
        tried: list[str] = []
        try:
            for name, path in adapters.items():
                tried.append(name)
                self._load(name, path, fused=name in fused)
            yield
        finally:
            for name in tried:
                self._unload(name)

    def complete(self, model: str, prompt: list[int], limit: int) -> tuple[str, int, float]:
        """Returns the greedy answer to token ids: its text, the number of tokens, and the seconds that it took."""
        body = {"model": model, "prompt": prompt, "max_tokens": limit, "temperature": 0.0}
        answer, seconds = self._client.request("completions", body)
        with self._client.expected("completions"):
            text: str = answer["choices"][0]["text"]
            return text, int(answer["usage"]["completion_tokens"]), seconds

    def loss(self, model: str, prompt: list[int], completion: list[int]) -> float | None:
        """Returns the loss of a completion, nats per token; None if the server returns no prompt log-probabilities."""
        body = {"model": model, "prompt": prompt + completion, "max_tokens": 1, "temperature": 0.0}
        answer, _ = self._client.request("completions", {**body, "prompt_logprobs": 0})
        with self._client.expected("completions"):
            logprobs = answer["choices"][0].get("prompt_logprobs")
            if not logprobs:
                return None
            places = zip(logprobs[len(prompt) :], completion, strict=True)
            return -fmean(place[str(token)]["logprob"] for place, token in places)

    def _load(self, name: str, path: Path, *, fused: bool) -> None:
        if name in self._names():  # left by a killed evaluation, which this one resumes
            return
        try:
            self._server.load(name, path, fused=fused)
        except Refused as error:
            if name in self._names():
                return
            raise RetunedError(
                f"{error}. It must be started so that it loads adapters (vLLM: --enable-lora, --max-lora-rank of at "
                "least train.rank, and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True in its environment), and find the files "
                f"at {path} (evaluate.models_directory)"
            ) from error

    def _unload(self, name: str) -> None:
        try:
            if name in self._names():
                self._server.unload(name)
        except RetunedError as error:
            log.warning("%s stays on the server: %s", name, error)

    def _names(self) -> set[str]:
        return {model["id"] for model in self._server.models()}


class ServerEngine:
    """Models on the server. Times are the server's, including its queue and other load."""

    def __init__(
        self,
        server: Server,
        tokenizer: Any,
        adapters: Mapping[str, str | None],
        settings: EvaluateSettings,
        encoding: Mapping[str, Any],
        kept: KeptAnswers,
    ) -> None:
        """
        Args:
            adapters: the name of each model's adapter on the server; None for the base model.
            encoding: that of `TrainSettings`.
            kept: cached answers.
        """
        self._server, self._tokenizer, self._settings = server, tokenizer, settings
        self._encoding, self._kept = encoding, kept
        self._paces: dict[str, float] = {}
        self._used = set[str]()  # adapters that changed an answer
        base = server.base()
        self._names = {name: adapter or base for name, adapter in adapters.items()}
        self._bare = {name for name, adapter in adapters.items() if adapter is None}

    def answers(self, rows: Sequence[Row], models: Sequence[str]) -> Iterator[tuple[Row, dict[str, Answer]]]:
        encoded, limit = prompts(self._tokenizer, rows, self._settings, self._encoding)
        # Separately: vLLM for CPUs (0.32) applies an adapter to requests for the base model in the same batch.
        bare = [name for name in models if name in self._bare]
        adapted = [name for name in models if name not in self._bare]
        with ThreadPoolExecutor(self._settings.batch_size, "evaluate") as pool:
            try:
                for part in (encoded[:_TIMED], encoded[_TIMED:]):
                    before = list(pool.map(lambda pair: self._answers(pair[0], pair[1], bare, limit), part))
                    after = pool.map(lambda pair: self._answers(pair[0], pair[1], adapted, limit), part)
                    timed: dict[str, list[float]] = {}
                    for (row, _), of_base, own in zip(part, before, after, strict=True):
                        for name in bare:
                            self._used |= {other for other in adapted if _differ(own[other], of_base[name])}
                        for name, answer in {**of_base, **own}.items():
                            timed.setdefault(name, []).append(answer.seconds / max(answer.tokens, 1))
                        pace = own[adapted[-1]] if adapted else None
                        yield row, {**paced(of_base, pace), **own}
                    self._paces = {name: median(paces) for name, paces in timed.items()} | self._paces
            finally:
                pool.shutdown(cancel_futures=True)
        if encoded and bare:
            self._check_adapters(len(encoded), [name for name in adapted if name not in self._used])

    def next_tokens(
        self, rows: Sequence[Row], models: Sequence[str]
    ) -> Iterator[tuple[list[int], dict[str, Mapping[int, float]]]]:
        asked = [one.prompt for _, one in prompts(self._tokenizer, rows, self._settings, self._encoding)[0]]
        tokens = {model: self._server.next_tokens(self._names[model], asked) for model in models}
        for number, prompt in enumerate(asked):
            yield prompt, {model: own[number] for model, own in tokens.items()}

    def close(self) -> None:
        """`Server.loaded` unloads the adapters."""
        self._kept.close()

    def _answers(self, row: Row, encoded: "Encoded", models: Sequence[str], limit: int) -> dict[str, Answer]:
        from retuned.retrain.training.chat_templates import answer_in

        tools, answers = json.loads(row.get("tools") or "[]"), {}
        known = {model: self._kept.find(model, row, encoded, limit) for model in models if model in self._paces}
        for model in models:
            kept = known.get(model)
            if kept is None:
                name = self._names[model]
                text, tokens, seconds = self._server.complete(name, encoded.prompt, limit)
                loss = None
                if self._settings.prompt_logprobs:
                    loss = self._server.loss(name, encoded.prompt, encoded.completion)
                kept = Kept(answer_in(self._tokenizer, text, encoded.prompt, tools), tokens, limit, loss)
                self._kept.keep(model, row, encoded, kept)
            # If some answers are cached, the requests do not have the same load, so their times are not comparable.
            if model in self._paces and any(known.values()):
                seconds = max(kept.tokens, 1) * self._paces[model]
            answers[model] = Answer(kept.text, kept.tokens, seconds, kept.loss, encoded.cut)
        return answers

    def _check_adapters(self, rows: int, ignored: Sequence[str]) -> None:
        """Checks that the server does not ignore adapters that it has loaded."""
        if ignored:
            names = ", ".join(self._names[name] for name in ignored)
            raise RetunedError(
                f"evaluate.url: {self._server.url} answers all {rows} rows with {names} as it does without: the "
                "adapter is not used, or learned nothing; see whether the server supports adapters for this base model"
            )


def visible(path: Path, directory: Path, settings: EvaluateSettings) -> Path:
    """Returns an adapter's folder as the server sees it, by `evaluate.models_directory`."""
    if settings.models_directory is None:
        return path.resolve()
    return settings.models_directory / path.resolve().relative_to(directory.resolve())


def check(settings: EvaluateSettings) -> str | None:
    """Checks the server, and returns a description; None if none is configured.

    Raises:
        RetunedError: the server does not answer, or refuses.
    """
    if settings.engine != "server":
        return None
    server = Server(settings, settings.bearer_token())
    return f"{server.base()} at {server.url} answers"


def _differ(one: Answer, other: Answer) -> bool:
    if one.text != other.text:
        return True
    return one.loss is not None and other.loss is not None and abs(one.loss - other.loss) > _SAME_LOSS
