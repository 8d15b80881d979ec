"""Settings of retraining: models, dataset, evaluation, metric, gate and labels."""

import logging
import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, SecretStr, model_validator

from retuned.consumers.sections import (
    HttpUrl,
    JudgeSettings,
    PositiveFloat,
    PositiveInt,
    Section,
    Share,
    WorkloadSettings,
    secret,
)
from retuned.consumers.settings import AuditSettings, PrivacySettings, RolloutSettings
from retuned.retrain.incumbent_settings import CascadeSettings as CascadeSettings
from retuned.retrain.incumbent_settings import IncumbentSettings as IncumbentSettings
from retuned.retrain.memory.settings import MemorySettings
from retuned.retrain.runner_settings import RunnerSettings
from retuned.retrain.serving_settings import ServingSettings
from retuned.retrain.train_settings import TrainSettings as TrainSettings
from retuned.retrain.train_settings import template_variables as template_variables

log = logging.getLogger(__name__)

Filter = Literal["placeholder", "incomplete", "repetitive", "refusing", "off_language", "ungrounded"]
FILTERS: tuple[Filter, ...] = ("placeholder", "incomplete", "repetitive", "refusing", "off_language", "ungrounded")

SECRETS = {"evaluate": {"token", "judge_key"}}
"""Secret settings by section. They are not written to the files of jobs."""
METRICS = ("auto", "facts", "exact", "label", "json", "tool_calls", "code", "text", "judge")


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"expected a regular expression ({error})") from error
    return text


def _metric_name(name: str) -> str:
    if name not in METRICS and not re.fullmatch(r"[\w.]+:\w+", name):
        raise ValueError(f"expected one of {', '.join(METRICS)}, or package.module:function, not {name}")
    return name


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
    allowed_licences: tuple[str, ...] | None = Field(
        None,
        description="licences that a base model may have, by Hugging Face's names, for example [apache-2.0, mit]; a "
        "base model with another one, or with none that can be found, is refused; null: any",
    )

    def retrains(self, workload: str) -> bool:
        """Returns whether a workload is retrained."""
        return self.workloads is None or workload in self.workloads


class DatasetSettings(Section):
    """The selection of training data."""

    removed: ClassVar = {"validation_share": "as all prompts that are not held out are learned"}

    minimum_rows: PositiveInt = Field(40, description="the minimum number of new rows in a dataset")
    maximum_rows: PositiveInt = Field(20_000, description="the maximum number of rows; the newest are used")
    accepted_answers: bool = Field(
        True, description="learn from answers that people called helpful, beside corrections"
    )
    learn_from_incumbent: bool = Field(
        False,
        description="true: also from those that the incumbent gave; first check whether its provider's terms allow "
        "training on its outputs",
    )
    replay_share: Share = Field(
        0.5, description="share of a training set that repeats older examples, so that they are not forgotten"
    )
    holdout_share: Share = Field(0.25, description="share of prompts that are never trained on")
    near_duplicate_similarity: Share = Field(
        0.8,
        description="prompts at least this alike (Jaccard similarity of character 5-grams) are related: they stand on "
        "one side of a split",
    )
    quarantine: bool = Field(
        True,
        description="set aside what independent accounts or experts contradict; false: the newest statement counts; "
        "`retuned export quarantine` lists it",
    )
    harmless_instructions: tuple[Annotated[str, AfterValidator(_pattern)], ...] = Field(
        (),
        description="regular expressions of parts of the system prompt that change from request to request and make no "
        "difference to the answer, such as 'Today is .*': questions that differ only in these are the same question",
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
    traffic_rows: Annotated[int, Field(ge=0)] = Field(
        100,
        description="recent answers that nobody rated, on which candidate and champion are compared; in ten times as "
        "many conversations the gate counts how often each question is asked",
    )
    review: Literal["none", "required"] = Field(
        "none",
        description="required: a dataset waits until a person approves it, by `retuned approve`, in the console or "
        "with POST /api/v1/approvals/{id}, before it is trained; at most rollout.approve_within_seconds",
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
    maximum_examples: PositiveInt | None = Field(
        None,
        description="most holdout rows that are generated, drawn at random, and most regression rows; null: 200, and "
        "of the holdout as many as the gate needs beside an incumbent, up to 5,000; small topics, tools and fields get "
        "up to 16 rows each for the guard of slices, at most as many rows again, and labels six each",
    )
    timeout_seconds: PositiveFloat = Field(
        2 * 3_600.0, description="an evaluation that takes longer is ended and counted as failed"
    )
    general_examples: Annotated[int, Field(ge=0)] = Field(
        45,
        description="most prompts that have nothing to do with the workload; 0: none, and no effect probe of versions",
    )
    judge_examples: PositiveInt = Field(
        50, description="most pairs of answers to unrated traffic that are shown to it, each twice"
    )

    def bearer_token(self) -> str | None:
        """Returns the token of the server at `url`.

        Raises:
            ConfigurationError: the token's file cannot be read.
        """
        return secret(self.token, self.token_file, "evaluate.token_file")

    @model_validator(mode="after")
    def _address_of_the_server(self) -> Self:
        if self.engine == "server" and self.url is None:
            raise ValueError("engine is server: name it with url, for example http://host:8000/v1")
        return self


class MetricSettings(Section):
    """The metric that compares an answer with the approved one, 0 to 1."""

    name: Annotated[str, AfterValidator(_metric_name)] = Field(
        "auto",
        description=f"{', '.join(METRICS[1:])}, or your own function as package.module:function; {METRICS[0]}: the one "
        "that fits the approved answers, which is kept with the dataset",
    )
    labels: tuple[str, ...] | None = Field(
        None, description="label: all labels, as they are written; null: those of the approved answers"
    )
    json_schema: Path | None = Field(
        None,
        description="json: file with the JSON Schema that an answer must fit to be valid; null: the keys that all "
        "approved answers have, and no key that none has",
    )
    criteria: str | None = Field(
        None, description="judge: what must agree beside what a customer learns, in words; null: nothing else"
    )
    exam_bar: Share = Field(
        0.9,
        description="share of the exam's pairs, of those that it judges, on which a metric must agree with people to "
        "decide what is promoted; below it informs. See retuned score --exam",
    )
    embedding_model: Path | None = Field(
        None,
        description="text: folder of a sentence-transformers model whose likeness counts half; needs pip install "
        "'retuned[embeddings]'; null: ROUGE-L alone",
    )


Guard = Literal["hallucination", "refusal", "regression", "slices", "latency", "traffic", "general"]


class GateSettings(Section):
    """The conditions for a promotion."""

    minimum_examples: PositiveInt = Field(20, description="with fewer holdout rows the candidate is refused")
    minimum_gain: Share = Field(
        0.0,
        description="the lower end of the interval of candidate minus champion must be above this; where none serves, "
        "both of candidate minus base model and of candidate minus what production answered",
    )
    expected_gain: Share = Field(
        0.2, description="a refusal states how many examples detect a gain of this size in nine of ten cases"
    )
    confidence: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.95,
        description="that nothing is promoted that is no better, over all tries against one champion; the first try's "
        "interval has this level, and each further one is wider",
    )
    holdout_tries: PositiveInt = Field(
        20, description="after so many decisions on one holdout, the questions that are held out are drawn anew"
    )
    fold_rows: Annotated[int, Field(ge=0)] = Field(
        200,
        description="where the holdout alone is too little evidence and no more rows than this are new to be learned, "
        "they are judged too, by four models that each learn without a quarter of them: four more trainings; 0: never",
    )
    require_measured: tuple[Guard, ...] = Field(
        ("regression",),
        description="these guards refuse a candidate, too, where there are examples and they could not be measured, as "
        "with a judge that does not answer; a guard without any examples refuses nothing",
    )
    maximum_hallucination_rise: Share = Field(
        0.02, description="the hallucination rate may rise by so much, beyond what chance explains"
    )
    maximum_refusal_rise: Share = Field(
        0.02,
        description="the share of questions left unanswered may rise by so much, beyond what chance explains",
    )
    maximum_invalid_rise: Share = Field(
        0.0,
        description="the share of answers that programs cannot read (JSON that does not fit the schema, calls of "
        "unknown tools) may rise by so much, on holdout and regression set together; where these have 100 such answers "
        "or more, beyond what chance explains",
    )
    maximum_regression_drop: Share = Field(
        0.05, description="the score on the regression set may fall by so much, beyond what chance explains"
    )
    maximum_traffic_drop: Share = Field(
        0.1,
        description="of recent traffic that nobody rated, the candidate may by the judge lose so much more than it "
        "wins against the champion; without a judge it may answer so much more of that traffic differently than of the "
        "holdout; beyond what chance explains",
    )
    maximum_general_drop: Share = Field(
        0.3,
        description="of prompts that have nothing to do with the workload, the candidate may answer so many fewer "
        "right than the base model, beyond what chance explains; 1: it may lose all of that",
    )
    maximum_slice_drop: Share = Field(
        0.1,
        description="the score on any slice (topic, language, turns, context; label, field, tool) may fall by so much, "
        "beyond what chance explains",
    )
    maximum_latency_ratio: PositiveFloat = Field(
        1.25, description="median time of a generated token of the candidate over the champion's"
    )
    maximum_length_ratio: Annotated[float, Field(ge=1)] = Field(
        1.5,
        description="the median answer may be longer or shorter than the approved one by this factor, or as far off as "
        "the champion's",
    )

    @model_validator(mode="before")
    @classmethod
    def _without_resamples(cls, values: Any) -> Any:
        """Ignores a key of version 0.1, the number of bootstrap samples."""
        if isinstance(values, dict) and "resamples" in values:
            log.warning("gate.resamples is not used any more, the interval is computed without drawing; remove the key")
            return {name: value for name, value in values.items() if name != "resamples"}
        return values


class ForgetSettings(Section):
    """What follows for versions that learned erased rows."""

    weights: Literal["retrain", "base_until_retrained"] = Field(
        "retrain",
        description="retrain: such a version serves until a retraining without these rows is no worse, and is then "
        "deleted; base_until_retrained: until then, the newest version before it without such rows serves, or else the "
        "base model",
    )
    within_days: PositiveFloat = Field(
        30.0, description="a version that learned erased rows and still exists after this time raises an alert"
    )


class LabelsSettings(Section):
    """Label requests to experts, for the answers whose label would teach most."""

    per_day: Annotated[int, Field(ge=0)] = Field(
        20, description="most requests for a workload within 24 hours; 0: nothing is asked"
    )
    opinions: Annotated[int, Field(ge=1, le=5)] = Field(
        1,
        description="so many experts must give the same answer in the console or over HTTP before it counts as "
        "feedback; where they differ, one more decides",
    )
    file: Path | None = Field(
        None, description="the open requests are kept in this file too, JSON Lines; null: in none"
    )


class Settings(WorkloadSettings):
    """All settings of this package."""

    models: ModelsSettings = Field(default_factory=lambda: ModelsSettings())
    dataset: DatasetSettings = Field(default_factory=lambda: DatasetSettings())
    train: TrainSettings = Field(default_factory=lambda: TrainSettings())
    evaluate: EvaluateSettings = Field(default_factory=lambda: EvaluateSettings())
    runner: RunnerSettings = Field(default_factory=lambda: RunnerSettings())
    incumbent: IncumbentSettings = Field(default_factory=lambda: IncumbentSettings())
    cascade: CascadeSettings = Field(default_factory=lambda: CascadeSettings())
    metric: MetricSettings = Field(default_factory=lambda: MetricSettings())
    gate: GateSettings = Field(default_factory=lambda: GateSettings())
    forget: ForgetSettings = Field(default_factory=lambda: ForgetSettings())
    labels: LabelsSettings = Field(default_factory=lambda: LabelsSettings())
    memory: MemorySettings = Field(default_factory=lambda: MemorySettings())
    serving: ServingSettings = Field(default_factory=lambda: ServingSettings())
    rollout: RolloutSettings = Field(default_factory=lambda: RolloutSettings())
    privacy: PrivacySettings = Field(default_factory=lambda: PrivacySettings())
    audit: AuditSettings = Field(default_factory=lambda: AuditSettings())

    @property
    def base(self) -> Path | None:
        """The folder of the base model, if set."""
        return self.models.base

    def with_base(self, base: Path) -> Self:
        """Returns these settings with another base model."""
        return self.model_copy(update={"models": self.models.model_copy(update={"base": base})})
