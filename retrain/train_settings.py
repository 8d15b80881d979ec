"""Settings of training."""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, field_validator

from retuned.consumers.sections import HttpUrl, PositiveFloat, PositiveInt, Section, Share

_TEMPLATE_ARGUMENTS = frozenset(
    {"conversation", "messages", "tools", "documents", "chat_template", "add_generation_prompt"}
    | {"continue_final_message", "tokenize", "padding", "truncation", "max_length", "return_tensors", "return_dict"}
    | {"return_assistant_tokens_mask", "tokenizer_kwargs"}
)


def template_variables(values: dict[str, Any]) -> dict[str, Any]:
    """Checks the variables of a chat template.

    Raises:
        ValueError: a variable has the name of an argument that retuned passes to the template.
    """
    if taken := sorted(_TEMPLATE_ARGUMENTS & values.keys()):
        raise ValueError(f"expected variables of the chat template only, not {', '.join(taken)}")
    return values


class TrainSettings(Section):
    """Training. A training that continues from a champion keeps its rank, alpha, modules, DoRA and rsLoRA."""

    engine: Literal["auto", "packed", "trl"] = Field(
        "auto",
        description="packed: this package's training loop, for adapters on a CPU. trl: TRL's trainers with accelerate, "
        "for GPUs, preferences, all weights and several processes; pip install 'retuned[trl]'. auto: packed where it "
        "can train, for model types that it computes faster or where TRL is missing; else trl",
    )
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
    epochs: PositiveInt = Field(5, description="passes over the training rows")
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
    gpu_memory_bytes: PositiveInt | None = Field(
        None,
        description="most of each GPU that training and evaluation take; they wait until so much is free. null: what "
        "train.gpu_servers leave, or all that is free",
    )
    gpu_wait_seconds: PositiveFloat = Field(
        600.0, description="longest wait for that much memory of a GPU; then the run fails"
    )
    gpu_servers: tuple[HttpUrl, ...] = Field(
        (),
        description="vLLM servers on the GPUs that train, at most one on each: a training that would keep them from "
        "starting again is refused. With runner.kind local",
    )
    gpu_servers_sleep: bool = Field(
        False,
        description="train.gpu_servers sleep while training and evaluation run, and answer nobody meanwhile; they need "
        "--enable-sleep-mode, and VLLM_SERVER_DEV_MODE=1 in their environment",
    )

    removed: ClassVar = {"patience": "as all train.epochs are trained"}

    @field_validator("engine", mode="before")
    @classmethod
    def _without_api(cls, given: Any) -> Any:
        if given == "api":
            raise ValueError("api is gone: models are trained on your own machines; expected auto, packed or trl")
        return given

    def for_model(self, parameters: int) -> "TrainSettings":
        """Returns these settings with a learning rate for a base model with so many parameters, if none is set.

        It decreases with the square root of the size, from the best rate at 135 million parameters. That is within 40%
        of the rates that Dettmers et al. 2023 (QLoRA, table 9) found from 7 to 65 billion. Adapters take larger rates
        than all weights: Schulman et al. 2025 (LoRA without regret).
        """
        rate = (1e-4 if self.method == "full" else 2e-3) * min(1.0, 135e6 / parameters) ** 0.5
        return self.model_copy(update={"learning_rate": self.learning_rate or rate})

    @property
    def encoding(self) -> dict[str, Any]:
        """The arguments of `batches.encode`, the same in training and evaluation."""
        return {
            "max_length": self.max_length,
            "context": self.context,
            "keep_reasoning": self.reasoning == "include",
            "template_variables": self.chat_template_kwargs,
        }
