"""Custom metrics: `metric.name: package.module:function`."""

from collections.abc import Callable, Mapping
from hashlib import sha256
from importlib import import_module
from inspect import getsourcefile, signature, unwrap
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from retuned.consumers.child import child_main
from retuned.consumers.common.process import Emit, run_child
from retuned.consumers.errors import ChildFailed, ConfigurationError
from retuned.retrain.scoring.score import Metric, Score

IMPORT_SECONDS = 120.0


class Custom(Metric):
    """The metric: a function of (answer, approved answer, example's columns).

    The function returns a number from 0 to 1 or None to abstain, or a pair of that and a text for people. Two answers
    have the same meaning if they are equal.

    Args:
        name: the function as `package.module:function`. The module is imported, also in the daemon's process.
    """

    meaning = "computed by a custom function"
    right = 0.5

    def __init__(self, name: str) -> None:
        self.name = name
        module, _, function = name.partition(":")
        try:
            self._function: Callable[[str, str, Mapping[str, Any]], Any] = getattr(import_module(module), function)
        except Exception as error:  # the module may raise anything on import
            raise ConfigurationError(
                f"metric.name: {name} cannot be imported ({type(error).__name__}: {error}); install its package where "
                "retuned is installed, or name its folder in PYTHONPATH"
            ) from error
        try:
            signature(self._function).bind("", "", {})
        except (TypeError, ValueError) as error:
            raise ConfigurationError(
                f"metric.name: {name} cannot be called with answer, approved answer and example ({error})"
            ) from error

    @property
    def version(self) -> str:
        """Changes with the file of the function; files that it imports are not looked at."""
        file = getsourcefile(unwrap(self._function)) if callable(self._function) else None
        source = Path(file).read_bytes() if file else b""
        return f"{super().version} {sha256(source).hexdigest()}"

    def score(self, answer: str, approved: str, example: Mapping[str, Any]) -> Score:
        """Returns the function's score.

        Raises:
            ConfigurationError: the function failed or returned something else.
        """
        try:
            result = self._function(answer, approved, example)
        except Exception as error:
            raise ConfigurationError(
                f"metric.name: {self.name} failed on an answer of {len(answer)} characters to row "
                f"{example.get('row_id', 'unknown')} ({type(error).__name__}: {error})"
            ) from error
        value, detail = result if isinstance(result, tuple) and len(result) == 2 else (result, "")
        if value is not None and not (isinstance(value, (int, float)) and 0 <= value <= 1):
            raise ConfigurationError(
                f"metric.name: {self.name} returned {result!r}; expected a number from 0 to 1, None, or a pair of it "
                "and a text"
            )
        return Score(None if value is None else float(value), str(detail))


def check(name: str) -> None:
    """Imports the function in a child process, so that its dependencies take no memory in the daemon.

    Raises:
        ConfigurationError: the function cannot be imported or called.
    """
    with TemporaryDirectory(prefix="retuned-metric-") as folder:
        try:
            result = run_child(
                "retuned.retrain.scoring.custom",
                {"name": name},
                Path(folder),
                timeout_seconds=IMPORT_SECONDS,
                environment={"PYTHONSAFEPATH": "1"},  # do not import modules from the working directory
            )
        except ChildFailed as error:
            raise ConfigurationError(f"metric.name: {name} cannot be imported ({error})") from error
    if result["problem"]:
        raise ConfigurationError(result["problem"])


def _work(job: dict[str, Any], _: Emit) -> dict[str, Any]:
    """Runs in the child."""
    try:
        Custom(job["name"])
    except ConfigurationError as error:
        return {"problem": str(error)}
    return {"problem": None}


if __name__ == "__main__":
    child_main(_work)
