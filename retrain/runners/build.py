"""Which runner the configuration asks for."""

from retuned.retrain.runners.local import LocalRunner
from retuned.retrain.runners.ray import RayRunner
from retuned.retrain.runners.runner import Runner
from retuned.retrain.settings import Settings


def runner(settings: Settings) -> Runner:
    """That of a workload's trainings and evaluations, by its settings."""
    return LocalRunner(settings.train) if settings.runner.kind == "local" else RayRunner(settings.runner)


def check(settings: Settings) -> str | None:
    """What `retuned check` reports of it; None of child processes on this machine.

    Raises:
        RetunedError: nothing can be done there.
    """
    return runner(settings).check()
