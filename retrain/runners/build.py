"""Creates the configured runner."""

from retuned.consumers.common.lead import Lead, alone
from retuned.retrain.runners.local import LocalRunner
from retuned.retrain.runners.ray import RayRunner
from retuned.retrain.runners.runner import Runner
from retuned.retrain.settings import Settings


def runner(settings: Settings, lead: Lead = alone) -> Runner:
    """Returns the runner of a workload's trainings and evaluations.

    Args:
        lead: checked before a job is started or stopped elsewhere.
    """
    return LocalRunner(settings.train) if settings.runner.kind == "local" else RayRunner(settings.runner, lead)


def check(settings: Settings) -> str | None:
    """Returns the runner's description for `retuned check`; None for the local runner.

    Raises:
        RetunedError: the runner is not usable.
    """
    return runner(settings).check()
