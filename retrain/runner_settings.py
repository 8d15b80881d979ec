"""Settings of the runner: where models are trained and evaluated."""

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, SecretStr, model_validator

from retuned.consumers.sections import HttpUrl, PositiveFloat, PositiveInt, Section, secret

MOST_AT_A_TIME = 64
"""The maximum number of concurrent runs. Each has a thread of the daemon."""


class RunnerSettings(Section):
    """Where models are trained and evaluated."""

    kind: Literal["local", "ray"] = Field(
        "local",
        description="local: a child process of the daemon. ray: a job of the Ray cluster at runner.url, whose nodes "
        "see models.directory and models.base under the same paths",
    )
    url: HttpUrl | None = Field(
        None, description="of kind ray: the cluster's dashboard, which has its Jobs API, such as http://ray-head:8265"
    )
    token: SecretStr | None = Field(
        None, description="bearer token for it; set it by RETUNED__RUNNER__TOKEN or token_file"
    )
    token_file: Path | None = Field(None, description="a file whose content is that token")
    resources: dict[str, PositiveFloat] = Field(
        {"CPU": 1.0},
        description="of kind ray: what a training or an evaluation takes of the cluster, by Ray's names, for example "
        "{CPU: 8, GPU: 1, memory: 64000000000}; it waits until a node has so much free. At least one: what asks for "
        "nothing Ray runs on its head node",
    )
    runtime_env: dict[str, Any] = Field(
        {},
        description="of kind ray: Ray's runtime_env of the jobs, for example {image_uri: registry/retuned:1.0.0}; "
        "{}: the environment of the nodes",
    )
    python: str = Field(
        "python", min_length=1, description="of kind ray: the Python in that environment that has retuned installed"
    )
    at_a_time: int = Field(
        4,
        ge=1,
        le=MOST_AT_A_TIME,
        description="of kind ray: so many workloads train at a time on the cluster at runner.url, one run of each; the "
        "next one in line waits. Of kind local it is one, whatever stands here",
    )
    attempts: PositiveInt = Field(
        5,
        description="of kind ray: a training or an evaluation goes on from its checkpoint when its node is lost; after "
        "so many lost attempts it is given up as failed",
    )

    @property
    def limit(self) -> int:
        """The maximum number of concurrent runs at this runner's place."""
        return self.at_a_time if self.kind == "ray" else 1

    @property
    def place(self) -> str:
        """A description of the place of runs. The limit applies to each place."""
        return f"Ray at {self.url}" if self.kind == "ray" else "this machine"

    def bearer_token(self) -> str | None:
        """Returns the cluster's token.

        Raises:
            ConfigurationError: the token's file cannot be read.
        """
        return secret(self.token, self.token_file, "runner.token_file")

    @model_validator(mode="after")
    def _address_of_the_cluster(self) -> Self:
        if self.kind == "ray" and self.url is None:
            raise ValueError("kind is ray: name the cluster with url, for example http://ray-head:8265")
        if self.kind == "ray" and not self.resources:
            raise ValueError(
                "resources: Ray runs jobs without resources on its head node; set what a job takes, such as {CPU: 1}"
            )
        env_vars = self.runtime_env.get("env_vars", {})
        if not isinstance(env_vars, dict) or not all(isinstance(value, str) for value in env_vars.values()):
            raise ValueError("runtime_env.env_vars: expected names and values, all of them text, as Ray does")
        return self
