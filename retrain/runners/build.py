"""Which runner the configuration asks for."""

from retuned.consumers.common.lead import Lead, alone
from retuned.retrain.runners.local import LocalRunner
from retuned.retrain.runners.ray import RayRunner
from retuned.retrain.runners.runner import Runner
from retuned.retrain.settings import Settings


def runner(settings: Settings, lead: Lead = alone) -> Runner:
    """That of a workload's trainings and evaluations, by its settings.

    Args:
        lead: checked before a job begins or ends elsewhere.
    """
    return LocalRunner(settings.train) if settings.runner.kind == "local" else RayRunner(settings.runner, lead)


def check(settings: Settings) -> str | None:
    """What `retuned check` reports of it; None of child processes on this machine.

    Raises:
        RetunedError: nothing can be done there.
    """
    return runner(settings).check()
