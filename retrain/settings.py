"""Settings of making a better model: models, dataset, training, evaluation, gate."""

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, SecretStr, model_validator

from retuned.consumers.settings import HttpUrl, JudgeSettings, PositiveFloat, PositiveInt, Section, Share, secret

Filter = Literal["incomplete", "repetitive", "refusing", "off_language", "ungrounded"]
FILTERS: tuple[Filter, ...] = ("incomplete", "repetitive", "refusing", "off_language", "ungrounded")


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"expected a regular expression ({error})") from error
    return text


class ModelsSettings(Section):
    """Where models are."""

    base: Path | None = Field(
        None,
        description="folder of the base model (transformers format); without it the daemon watches and never trains",
    )
    directory: Path = Field(
        Path("data/models"), description="versions and aliases are kept here, a folder for each workload"
    )
    workloads: tuple[str, ...] | None = Field(None, description="workloads to retrain; null: every one that has events")


class DatasetSettings(Section):
    """What is learned from."""

    minimum_rows: PositiveInt = Field(50, description="with fewer rows no dataset is made")
    maximum_rows: PositiveInt = Field(20_000, description="the newest so many are used")
    accepted_answers: bool = Field(
        True, description="learn from answers that people called helpful, beside corrections"
    )
    replay_share: Share = Field(
        0.5, description="share of a training set that repeats older examples, so that they are not forgotten"
    )
    holdout_share: Share = Field(0.25, description="share of prompts that are never trained on")
    validation_share: Share = Field(0.1, description="share of prompts that decide when training stops")
    near_duplicate_similarity: Share = Field(
        0.8, description="prompts at least this alike (Jaccard similarity of character 5-grams) are one prompt"
    )
    quarantine: bool = Field(
        True,
        description="set aside what independent accounts or experts contradict, bursts and collusion; "
        "`retuned export quarantine` lists it",
    )
    filters: tuple[Filter, ...] = Field(FILTERS, description="answers of these kinds are not learned from")
    maximum_user_share: Share = Field(
        0.1, description="most that one account may give of the new rows; never less than twice an even share"
    )
    maximum_source_shares: dict[str, Share] = Field(
        {"judge": 0.25, "app": 0.25},
        description="most that a source may give of the new rows (user, expert, judge, app, demonstration, accepted); "
        "never less than an even share",
    )
    topics: PositiveInt = Field(12, description="most topics that questions are sorted into")
    maximum_topic_share: Share = Field(
        0.3, description="most that one topic may have of the new rows to train on; never less than twice an even share"
    )
    replace: dict[Annotated[str, AfterValidator(_pattern)], str] = Field(
        {}, description="regular expressions and what to write instead in what is learned: terms, names, spellings"
    )
    date_format: str | None = Field(
        None, description="how dates such as 2026-11-24 are written in what is learned, for example '%d.%m.%Y'"
    )


class TrainSettings(Section):
    """Training. One that goes on from a champion keeps its rank, alpha, modules, DoRA and rsLoRA."""

    method: Literal["lora", "qlora", "full"] = Field(
        "lora",
        description="qlora: the base model in 4 bits while training, but not where it is judged or served; needs "
        "pip install 'retuned[qlora]'. full: all weights but embeddings and head, no adapter (a version is as large as "
        "the base model; vLLM and the demo do not serve it)",
    )
    rank: PositiveInt = Field(16, description="rank of the adapter")
    alpha: PositiveFloat = Field(32.0, description="LoRA's alpha")
    target_modules: tuple[str, ...] | None = Field(
        None, description="modules that get an adapter; null: the linear layers of attention and MLP"
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="share of an adapter's inputs that is dropped in a step")
    use_dora: bool = Field(
        False, description="DoRA: magnitudes beside the adapter (slower; vLLM and the demo do not serve it)"
    )
    use_rslora: bool = Field(False, description="rsLoRA: scale by alpha / sqrt(rank) in place of alpha / rank")
    preference: Literal["none", "dpo", "kto"] = Field(
        "none",
        description="learn also that corrections are better than what they replaced (dpo), or what people called "
        "helpful and not (kto)",
    )
    preference_weight: PositiveFloat = Field(0.1, description="of the preference loss beside that of the completions")
    preference_beta: PositiveFloat = Field(0.1, description="how closely preferences hold to where training began")
    context: bool = Field(
        True, description="put retrieved passages before the last question, where the conversation does not hold them"
    )
    learning_rate: PositiveFloat | None = Field(
        None, description="peak learning rate; null: 2e-3 for adapters, 1e-4 for all weights"
    )
    batch_size: PositiveInt = Field(8, description="examples in a step")
    epochs: PositiveInt = Field(5, description="most passes over the training rows")
    patience: PositiveInt = Field(2, description="stop after so many epochs without a better validation loss")
    warmup_share: Share = Field(0.1, description="share of the steps over which the learning rate rises")
    max_length: PositiveInt = Field(1_024, description="longer examples lose the start of their prompt")
    checkpoint_steps: PositiveInt = Field(20, description="a resumable checkpoint is written every so many steps")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="of the frozen base model; auto: whichever is faster on this machine"
    )
    processes: PositiveInt | None = Field(
        None, description="processes that share each step's examples, one for each GPU; null: as many as there are GPUs"
    )
    threads: PositiveInt | None = Field(None, description="CPU threads of a process; null: as torch chooses")
    seed: int = Field(0, description="of shuffling and initialisation")
    timeout_seconds: PositiveFloat = Field(
        6 * 3_600.0, description="a training that takes longer is ended and counted as failed"
    )
    attempts: PositiveInt = Field(
        3, description="a run in which the daemon was killed so often is given up as failed; a stop does not count"
    )
    memory_bytes: Annotated[int, Field(ge=0)] | None = Field(
        None,
        description="a run waits until so much memory is free; null: what the weights and the optimizer take at least, "
        "by an estimate; 0: it never waits",
    )

    @property
    def peak_learning_rate(self) -> float:
        """The one that was set, or the method's own."""
        return self.learning_rate or (1e-4 if self.method == "full" else 2e-3)


class EvaluateSettings(JudgeSettings):
    """How models are compared on the holdout."""

    engine: Literal["transformers", "server"] = Field(
        "transformers",
        description="what generates the answers; transformers: a child process, with the base model in its memory; "
        "server: the server at evaluate.url, which has the base model",
    )
    url: HttpUrl | None = Field(
        None,
        description="of engine server: an OpenAI-compatible server that loads adapters, such as vLLM: "
        "http://host:8000/v1; one server, not several behind one address",
    )
    token: SecretStr | None = Field(
        None, description="bearer token for it; set it by RETUNED__EVALUATE__TOKEN or token_file"
    )
    token_file: Path | None = Field(None, description="a file whose content is that token")
    models_directory: Path | None = Field(
        None, description="where that server sees models.directory, if it is elsewhere, as in a container"
    )
    request_timeout_seconds: PositiveFloat = Field(120.0, description="longest wait for one answer of that server")
    prompt_logprobs: bool = Field(
        False,
        description="ask that server for log-probabilities of approved answers too, for their loss; some versions of "
        "vLLM end at such a request when adapters are loaded, 0.32 on CPUs among them",
    )
    max_new_tokens: PositiveInt = Field(128, description="longest answer generated")
    batch_size: PositiveInt = Field(
        16, description="prompts generated at once, the same for each model; of a server, requests at once"
    )
    maximum_examples: PositiveInt = Field(
        200, description="most holdout rows that are generated, and most regression rows"
    )
    timeout_seconds: PositiveFloat = Field(
        2 * 3_600.0, description="an evaluation that takes longer is ended and counted as failed"
    )
    judge_examples: PositiveInt = Field(50, description="most pairs of answers that are shown to it, each twice")

    def bearer_token(self) -> str | None:
        """What the server at `url` asks for.

        Raises:
            ConfigurationError: its file cannot be read.
        """
        return secret(self.token, self.token_file, "evaluate.token_file")

    @model_validator(mode="after")
    def _address_of_the_server(self) -> Self:
        if self.engine == "server" and self.url is None:
            raise ValueError("engine is server: name it with url, for example http://host:8000/v1")
        return self


class GateSettings(Section):
    """What a candidate must show."""

    minimum_examples: PositiveInt = Field(20, description="with fewer holdout rows the answer is no")
    minimum_gain: Share = Field(
        0.0,
        description="the lower end of the interval of candidate minus champion must be above this; where none serves, "
        "both of candidate minus base model and of candidate minus what production answered",
    )
    expected_gain: Share = Field(
        0.2, description="a refusal says how many examples find a gain of this size in nine of ten cases"
    )
    confidence: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.95,
        description="that nothing is promoted that is no better, over all tries on one holdout; the first try's "
        "bootstrap interval has this level, and each further try halves what is left of the error",
    )
    resamples: PositiveInt = Field(10_000, description="of the bootstrap")
    holdout_tries: PositiveInt = Field(
        4, description="after so many decisions on one holdout, the questions that are held out are drawn anew"
    )
    maximum_hallucination_rise: Share = Field(
        0.02, description="the hallucination rate may rise by so much, beyond what chance explains"
    )
    maximum_refusal_rise: Share = Field(
        0.02,
        description="the share of questions left unanswered may rise by so much, beyond what chance explains",
    )
    maximum_regression_drop: Share = Field(
        0.05, description="the score on the regression set may fall by so much, beyond what chance explains"
    )
    maximum_slice_drop: Share = Field(
        0.1,
        description="the score on any slice (topic, language, turns, context) may fall by so much, beyond what chance "
        "explains",
    )
    maximum_latency_ratio: PositiveFloat = Field(
        1.25, description="median time of a generated token of the candidate over the champion's"
    )
    maximum_length_ratio: Annotated[float, Field(ge=1)] = Field(
        1.5,
        description="the median answer may be longer or shorter than the approved one by this factor, or as far off as "
        "the champion's",
    )


class LabelsSettings(Section):
    """Which answers experts are asked to judge: those whose label would teach most."""

    per_day: Annotated[int, Field(ge=0)] = Field(
        20, description="most requests for a workload within 24 hours; 0: nothing is asked"
    )
    file: Path | None = Field(
        None, description="the open requests are kept in this file too, JSON Lines; null: in none"
    )


class Settings(Section):
    """All settings of this package."""

    models: ModelsSettings = Field(default_factory=lambda: ModelsSettings())
    dataset: DatasetSettings = Field(default_factory=lambda: DatasetSettings())
    train: TrainSettings = Field(default_factory=lambda: TrainSettings())
    evaluate: EvaluateSettings = Field(default_factory=lambda: EvaluateSettings())
    gate: GateSettings = Field(default_factory=lambda: GateSettings())
    labels: LabelsSettings = Field(default_factory=lambda: LabelsSettings())

    def with_base(self, base: Path) -> Self:
        """The same with another base model."""
        return self.model_copy(update={"models": self.models.model_copy(update={"base": base})})
