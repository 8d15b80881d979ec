"""Settings of making a better model: models, dataset, training, evaluation, gate."""

import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, SecretStr, model_validator

from retuned.consumers.settings import (
    HttpUrl,
    JudgeSettings,
    PositiveFloat,
    PositiveInt,
    PrivacySettings,
    RolloutSettings,
    Section,
    Share,
    WorkloadSettings,
    secret,
)
from retuned.retrain.runner_settings import RunnerSettings
from retuned.retrain.serving_settings import ServingSettings

log = logging.getLogger(__name__)

Filter = Literal["placeholder", "incomplete", "repetitive", "refusing", "off_language", "ungrounded"]
FILTERS: tuple[Filter, ...] = ("placeholder", "incomplete", "repetitive", "refusing", "off_language", "ungrounded")

SECRETS = {"train": {"api_key"}, "evaluate": {"token", "judge_key"}}
"""By section: they are kept out of the files of jobs."""
METRICS = ("auto", "facts", "exact", "label", "json", "tool_calls", "text", "judge")
_TEMPLATE_ARGUMENTS = frozenset(
    {"conversation", "messages", "tools", "documents", "chat_template", "add_generation_prompt"}
    | {"continue_final_message", "tokenize", "padding", "truncation", "max_length", "return_tensors", "return_dict"}
    | {"return_assistant_tokens_mask", "tokenizer_kwargs"}
)


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


def template_variables(values: dict[str, Any]) -> dict[str, Any]:
    """Variables of a chat template.

    Raises:
        ValueError: one has the name of what a template is given in any case, or of how it is applied.
    """
    if taken := sorted(_TEMPLATE_ARGUMENTS & values.keys()):
        raise ValueError(f"expected variables of the chat template alone, not {', '.join(taken)}")
    return values


@dataclass(frozen=True)
class ProviderModel:
    """A model whose weights a provider keeps, by the provider's name of it."""

    name: str

    def __str__(self) -> str:
        return self.name


Base = Path | ProviderModel
"""A base model: the folder that holds its weights, or a provider's model."""


class ModelsSettings(Section):
    """Where models are."""

    base: Path | None = Field(
        None,
        description="folder of the base model (transformers format); with train.engine api the provider's name of it, "
        "such as gpt-4.1-mini-2025-04-14; without it the daemon watches and never trains",
    )
    directory: Path = Field(
        Path("data/models"), description="versions and aliases are kept here, a folder for each workload"
    )
    workloads: tuple[str, ...] | None = Field(None, description="workloads to retrain; null: every one that has events")

    def retrains(self, workload: str) -> bool:
        """Whether a workload is one to retrain."""
        return self.workloads is None or workload in self.workloads


class DatasetSettings(Section):
    """What is learned from."""

    minimum_rows: PositiveInt = Field(40, description="with fewer rows no dataset is made")
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
    traffic_rows: Annotated[int, Field(ge=0)] = Field(
        100,
        description="recent answers that nobody rated, on which candidate and champion are compared",
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

    engine: Literal["auto", "packed", "trl", "api"] = Field(
        "auto",
        description="packed: this package's training loop. trl: TRL's SFTTrainer, which shards and saves memory on "
        "GPUs; needs pip install 'retuned[trl]'. auto: packed on a CPU for the model types that it computes faster, "
        "for preferences, and where TRL is not installed; else trl. api: the fine-tuning API of a provider at "
        "train.api_url, to which the dataset is sent; the provider answers in evaluations, too",
    )
    api_url: HttpUrl | None = Field(
        None,
        description="of engine api: a provider that has OpenAI's routes for files, fine-tuning jobs and chat "
        "completions, for example https://api.openai.com/v1",
    )
    api_key: SecretStr | None = Field(
        None, description="bearer token for it; set it by RETUNED__TRAIN__API_KEY or api_key_file"
    )
    api_key_file: Path | None = Field(None, description="a file whose content is that token")
    api_timeout_seconds: PositiveFloat = Field(120.0, description="longest wait for one answer of the provider")
    method: Literal["lora", "qlora", "full"] = Field(
        "lora",
        description="qlora: the base model in 4 bits while training and where it is judged; needs "
        "pip install 'retuned[qlora]'. full: all weights but embeddings and head, no adapter (a version is as large as "
        "the base model; vLLM and the demo do not serve it)",
    )
    rank: Annotated[int, Field(gt=0, le=512)] = Field(
        16, description="rank of the adapter; 512 is the highest that vLLM serves"
    )
    alpha: PositiveFloat = Field(32.0, description="LoRA's alpha")
    target_modules: tuple[str, ...] | None = Field(
        None,
        description="modules that get an adapter; null: all linear layers and experts of the language model, not those "
        "of vision and audio towers",
    )
    dropout: float = Field(
        0.0, ge=0, lt=1, description="share of an adapter's inputs that is dropped in a step; 0 for experts"
    )
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
    chat_template_kwargs: Annotated[dict[str, Any], AfterValidator(template_variables)] = Field(
        {},
        description="variables of the base model's chat template, for example {enable_thinking: false}, in training "
        "and evaluation alike; what serves the model must set the same",
    )
    reasoning: Literal["exclude", "include"] = Field(
        "exclude",
        description="what stands in <think> before an answer. exclude: it is not learned, and its block stands empty "
        "in the prompt of each model. include: it is learned with the answer, and each model may think first, within "
        "evaluate.max_new_tokens",
    )
    learning_rate: PositiveFloat | None = Field(
        None,
        description="peak learning rate; null: by method and size of the base model, for adapters 2e-3 up to 135 "
        "million parameters, 2.6e-4 at 8 billion, 8.8e-5 at 70 billion; for all weights a twentieth",
    )
    batch_size: PositiveInt = Field(8, description="examples in a step")
    epochs: PositiveInt = Field(5, description="most passes over the training rows")
    patience: PositiveInt = Field(2, description="stop after so many epochs without a better validation loss")
    warmup_share: Share = Field(0.1, description="share of the steps over which the learning rate rises")
    max_length: PositiveInt = Field(
        1_024,
        description="tokens; longer examples lose their oldest turns, then their last passages, and are left out when "
        "that is not enough",
    )
    maximum_too_long_share: Share = Field(
        0.2, description="with a larger share of rows that do not fit train.max_length even so, nothing is trained"
    )
    checkpoint_steps: PositiveInt | None = Field(
        None,
        description="a resumable checkpoint is written every so many steps; null: once a minute, or less often where "
        "that took more than 2% of the time",
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="of the frozen base model; auto: whichever is faster on this machine"
    )
    devices: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
        None,
        description="GPUs of this machine that training and evaluation may use, by the numbers of nvidia-smi; []: "
        "none. null: all that the daemon sees, also those that serve. With runner.kind ray, runner.resources counts",
    )
    processes: PositiveInt | None = Field(
        None, description="processes that share each step's examples, one for each GPU; null: as many as there are GPUs"
    )
    accelerate_file: Path | None = Field(
        None,
        description="accelerate's configuration with FSDP version 2, which shards a base model that no GPU holds over "
        "several; trl alone reads it. deploy/fsdp2.yaml is one",
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

    def bearer_token(self) -> str | None:
        """What the provider at `api_url` asks for.

        Raises:
            ConfigurationError: its file cannot be read.
        """
        return secret(self.api_key, self.api_key_file, "train.api_key_file")

    @model_validator(mode="after")
    def _what_an_api_can_do(self) -> Self:
        if self.engine != "api":
            return self
        if self.api_url is None:
            raise ValueError("engine is api: name the provider with api_url, for example https://api.openai.com/v1")
        if self.preference != "none":
            raise ValueError(f"engine is api: it does not learn preference {self.preference}; set that to none")
        if self.reasoning == "include":
            raise ValueError("engine is api: a provider learns no reasoning; set reasoning to exclude")
        return self

    def for_model(self, parameters: int) -> "TrainSettings":
        """These settings with the learning rate that fits a base model of so many parameters, if none is set.

        It falls with the square root of the size, from what served best at 135 million parameters. That is within 40%
        of the rates that Dettmers et al. 2023 (QLoRA, table 9) found from 7 to 65 billion. Larger updates of small
        adapters than of all weights: Schulman et al. 2025 (LoRA without regret).
        """
        rate = (1e-4 if self.method == "full" else 2e-3) * min(1.0, 135e6 / parameters) ** 0.5
        return self.model_copy(update={"learning_rate": self.learning_rate or rate})

    @property
    def encoding(self) -> dict[str, Any]:
        """How rows become tokens, in training and evaluation alike: arguments of `batches.encode`."""
        return {
            "max_length": self.max_length,
            "context": self.context,
            "keep_reasoning": self.reasoning == "include",
            "template_variables": self.chat_template_kwargs,
        }


class EvaluateSettings(JudgeSettings):
    """How models are compared on the holdout."""

    engine: Literal["transformers", "server"] = Field(
        "transformers",
        description="what generates the answers; transformers: a child process, with the base model in its memory; "
        "server: the server at evaluate.url, which has the base model. With train.engine api it is the provider",
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
    general_examples: Annotated[int, Field(ge=0)] = Field(
        45,
        description="most prompts that have nothing to do with the workload; 0: none, and no effect probe of versions",
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


class MetricSettings(Section):
    """How good an answer is by the approved one, 0 to 1."""

    name: Annotated[str, AfterValidator(_metric_name)] = Field(
        "auto",
        description="facts, exact, label, json, tool_calls, text, judge, or a function of one's own as "
        "package.module:function; auto: the one that fits the approved answers, which is kept with the dataset",
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
        None, description="judge: what makes an answer good, in words; evaluate.judge_url is asked, and decides then"
    )
    embedding_model: Path | None = Field(
        None,
        description="text: folder of a sentence-transformers model whose likeness counts half; needs pip install "
        "'retuned[embeddings]'; null: ROUGE-L alone",
    )

    @model_validator(mode="after")
    def _criteria_of_the_judge(self) -> Self:
        if self.name == "judge" and not self.criteria:
            raise ValueError("name is judge: say in criteria what makes an answer good")
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
        description="that nothing is promoted that is no better, over all tries against one champion; the first try's "
        "bootstrap interval has this level, and each further one is wider",
    )
    holdout_tries: PositiveInt = Field(
        20, description="after so many decisions on one holdout, the questions that are held out are drawn anew"
    )
    fold_rows: Annotated[int, Field(ge=0)] = Field(
        200,
        description="where the holdout alone is too little evidence and no more rows than this are new to be learned, "
        "they are judged too, by four models that each learn without a quarter of them: four more trainings; 0: never. "
        "A provider (train.engine api) would be paid for each, and is never asked",
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
        """A key of version 0.1: the bootstrap drew so many samples."""
        if isinstance(values, dict) and "resamples" in values:
            log.warning("gate.resamples is not used any more, the interval is computed without drawing; remove the key")
            return {name: value for name, value in values.items() if name != "resamples"}
        return values


class LabelsSettings(Section):
    """Which answers experts are asked to judge: those whose label would teach most."""

    per_day: Annotated[int, Field(ge=0)] = Field(
        20, description="most requests for a workload within 24 hours; 0: nothing is asked"
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
    metric: MetricSettings = Field(default_factory=lambda: MetricSettings())
    gate: GateSettings = Field(default_factory=lambda: GateSettings())
    labels: LabelsSettings = Field(default_factory=lambda: LabelsSettings())
    serving: ServingSettings = Field(default_factory=lambda: ServingSettings())
    rollout: RolloutSettings = Field(default_factory=lambda: RolloutSettings())
    privacy: PrivacySettings = Field(default_factory=lambda: PrivacySettings())

    @property
    def base(self) -> Base | None:
        """The base model; None: none is set."""
        return None if self.models.base is None else self.base_named(str(self.models.base))

    def base_named(self, name: str) -> Base:
        """A base model by its folder, or by the provider's name where a provider trains."""
        return ProviderModel(name) if self.train.engine == "api" else Path(name)

    def with_base(self, base: Base) -> Self:
        """The same with another base model."""
        return self.model_copy(update={"models": self.models.model_copy(update={"base": Path(str(base))})})
