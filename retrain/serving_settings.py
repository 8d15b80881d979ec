"""Settings of serving: the targets of a workload's versions, and how long versions stay loaded."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, SecretStr

from retuned.consumers.sections import HttpUrl, PositiveFloat, PositiveInt, Section, secret


def _at_least_one(urls: tuple[str, ...]) -> tuple[str, ...]:
    if not urls:
        raise ValueError("name at least one replica, for example http://host:8000/v1")
    return urls


class FolderTarget(Section):
    """Links `champion` and `previous` in the workload's folder below models.directory."""

    kind: Literal["folder"]


class ServerTarget(Section):
    """Model servers that load adapters at run time."""

    kind: Literal["vllm", "sglang"]
    urls: Annotated[tuple[HttpUrl, ...], AfterValidator(_at_least_one)] = Field(
        description="each replica by its own address, such as http://host:8000/v1: not a load balancer before several"
    )
    token: SecretStr | None = Field(None, description="bearer token for them; better by token_file")
    token_file: Path | None = Field(None, description="a file whose content is that token")
    models_directory: Path | None = Field(
        None, description="where they see models.directory, if it is elsewhere, as in a container"
    )
    maximum_rank: PositiveInt = Field(
        16, description="highest rank of an adapter that they load: their --max-lora-rank"
    )
    probe_tolerance: PositiveFloat | None = Field(
        None,
        description="nats by which log-probabilities may differ from those recorded in training, on average; null: by "
        "the precision in which they were recorded. Raise it for servers with quantised weights",
    )
    timeout_seconds: PositiveFloat = Field(5.0, description="longest wait until they list what they have")
    work_seconds: PositiveFloat = Field(
        120.0, description="longest wait until an adapter is loaded, or a token of a probe is computed"
    )

    def bearer_token(self) -> str | None:
        """Returns the servers' token.

        Raises:
            ConfigurationError: the token's file cannot be read.
        """
        return secret(self.token, self.token_file, "serving.targets: token_file")


class WebhookTarget(Section):
    """Your own service, which gets signed requests to load and unload versions."""

    kind: Literal["webhook"]
    url: HttpUrl = Field(description="where they are sent")
    secret_file: Path = Field(description="a file whose content signs them; the receiver has the same")
    timeout_seconds: PositiveFloat = Field(10.0, description="longest wait for its answer")


class MlflowTarget(Section):
    """MLflow's model registry. Needs pip install 'retuned[mlflow]'."""

    kind: Literal["mlflow"]
    url: HttpUrl = Field(description="of the tracking server, such as http://host:5000")
    token_file: Path | None = Field(None, description="a file whose content is a bearer token for it")
    timeout_seconds: PositiveFloat = Field(10.0, description="longest wait for one answer")


TargetSettings = Annotated[FolderTarget | ServerTarget | WebhookTarget | MlflowTarget, Field(discriminator="kind")]


class ServingSettings(Section):
    """The targets of versions."""

    targets: tuple[TargetSettings, ...] = Field(
        (FolderTarget(kind="folder"),),
        description="what gets the versions in service: folder (links below models.directory), vllm, sglang, webhook, "
        "mlflow, each with keys of its own (docs/reference/configuration.md)",
    )
    replica_share: Annotated[float, Field(ge=0, le=1)] = Field(
        0.5,
        description="a version comes into service, and its rollout takes the next step, once more than this share of "
        "the replicas of each target answer with it, and no fewer than answer with the version before it; 1.0: all",
    )
    keep_seconds: PositiveFloat = Field(
        86_400.0,
        description="a version without a share of the traffic stays loaded for so long, so a rollback is quick",
    )
    drain_seconds: PositiveFloat = Field(
        600.0, description="then it is unloaded, once no answer of it is younger than this"
    )

    @property
    def has_links(self) -> bool:
        """Whether links follow the aliases."""
        return any(isinstance(target, FolderTarget) for target in self.targets)
