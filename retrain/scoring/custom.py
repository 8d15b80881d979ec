"""A metric of one's own: `metric.name: package.module:function`."""

from collections.abc import Callable, Mapping
from importlib import import_module
from inspect import signature
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from retuned.consumers.child import child_main
from retuned.consumers.common.process import Emit, run_child
from retuned.consumers.errors import ChildFailed, ConfigurationError
from retuned.retrain.scoring.exact import Exact
from retuned.retrain.scoring.score import Metric, Score

IMPORT_SECONDS = 120.0


class Custom(Metric):
    """The metric: a function of (answer, approved answer, example's columns).

    It returns a number from 0 to 1, or None to abstain; or a pair of these and a text for people. Two answers say the
    same when they are equal.

    Args:
        name: the function, as `package.module:function`; the module is imported, also in the daemon's process.
    """

    meaning = "as a function of the operator computes it"

    def __init__(self, name: str) -> None:
        self.name = name
        module, _, function = name.partition(":")
        try:
            self._function: Callable[[str, str, Mapping[str, Any]], Any] = getattr(import_module(module), function)
        except Exception as error:  # whatever a module does as it is imported
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
        self._exact = Exact()

    def score(self, answer: str, approved: str, example: Mapping[str, Any]) -> Score:
        """What the function returns.

        Raises:
            ConfigurationError: it is no such value, or the function failed.
        """
        try:
            found = self._function(answer, approved, example)
        except Exception as error:
            raise ConfigurationError(
                f"metric.name: {self.name} failed on an answer of {len(answer)} characters to row "
                f"{example.get('row_id', 'unknown')} ({type(error).__name__}: {error})"
            ) from error
        value, detail = found if isinstance(found, tuple) and len(found) == 2 else (found, "")
        if value is not None and not (isinstance(value, (int, float)) and 0 <= value <= 1):
            raise ConfigurationError(
                f"metric.name: {self.name} returned {found!r}; expected a number from 0 to 1, None, or a pair of it "
                "and a text"
            )
        return Score(None if value is None else float(value), str(detail))

    def same(self, one: str, other: str) -> bool:
        """Equal, as plain text."""
        return self._exact.same(one, other)


def check(name: str) -> None:
    """Import the function in a process of its own, which may load what it needs: the daemon stays small.

    Raises:
        ConfigurationError: it cannot be imported, or not be called.
    """
    with TemporaryDirectory(prefix="retuned-metric-") as folder:
        try:
            tried = run_child(
                "retuned.retrain.scoring.custom",
                {"name": name},
                Path(folder),
                timeout_seconds=IMPORT_SECONDS,
                environment={"PYTHONSAFEPATH": "1"},  # else a module in the working directory would be found
            )
        except ChildFailed as error:
            raise ConfigurationError(f"metric.name: {name} cannot be imported ({error})") from error
    if tried["problem"]:
        raise ConfigurationError(tried["problem"])


def _work(job: dict[str, Any], _: Emit) -> dict[str, Any]:
    """The child's side."""
    try:
        Custom(job["name"])
    except ConfigurationError as error:
        return {"problem": str(error)}
    return {"problem": None}


if __name__ == "__main__":
    child_main(_work)
