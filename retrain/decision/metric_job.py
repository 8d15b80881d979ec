"""The workload's metric in a child process: what the child's job holds, and the metric made from it."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from retuned.retrain import versions
from retuned.retrain.scoring.metric import Metric, restored
from retuned.retrain.settings import SECRETS, EvaluateSettings, MetricSettings, Settings

_JUDGE_KEY = "RETUNED_EVALUATE_JUDGE_KEY"
"""Environment variable of the child that holds the judge's token. The job is a file, so the token is not part of it."""

_VERDICTS = "judged.jsonl"
"""File in the workload's folder: verdicts of the metric `judge` that were paid for."""


def metric_job(metric: Mapping[str, Any] | None, workload: str, settings: Settings) -> dict[str, Any]:
    """Returns the part of a child's job from which `metric_in_child` makes the metric.

    Args:
        metric: `Chosen.as_dict()`; None for a version from before version 0.2.0.
    """
    folder = versions.workload_folder(settings.models.directory, workload).resolve()
    return {
        "metric": metric,
        "metric_settings": settings.metric.model_dump(mode="json"),
        "settings": settings.evaluate.model_dump(mode="json", exclude=SECRETS["evaluate"]),
        "objective": settings.objective,
        "judged": str(folder / _VERDICTS),
    }


def judge_key(settings: EvaluateSettings) -> dict[str, str]:
    """Returns the child's environment variables that carry the judge's token, if there is a judge with a token."""
    key = settings.key() if settings.judge_url is not None else None
    return {} if key is None else {_JUDGE_KEY: key}


def settings_in_child(job: Mapping[str, Any]) -> EvaluateSettings:
    """Returns the evaluation settings of a job, with the judge's token from the environment."""
    settings = EvaluateSettings.model_validate(job["settings"])
    key = os.environ.get(_JUDGE_KEY)
    return settings.model_copy(update={"judge_key": SecretStr(key)}) if key else settings


def metric_in_child(job: Mapping[str, Any]) -> Metric:
    """Returns the metric of a job that `metric_job` made."""
    settings = Settings(
        objective=job["objective"],
        metric=MetricSettings.model_validate(job["metric_settings"]),
        evaluate=settings_in_child(job),
    )
    return restored(settings, job["metric"], [], Path(job["judged"])).metric
