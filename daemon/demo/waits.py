"""How long the demo waits, and what it is waiting for."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from retuned.consumers.errors import RetunedError

FIRST_SECONDS = 1_800.0
"""For what this machine has not done before."""

LEAST_SECONDS = 420.0
TRIES = 6
"""A step may take so many times what steps like it took: an adapter that the gate refuses is trained anew."""

_ENDED = {"failed": "failed", "refused": "was refused"}


class Waits:
    """Waits for steps, each for as long as this machine has shown that it may take.

    Args:
        check: raises when a part has died, which ends a wait at once; a limit only ends one in which nothing happens.
        tell: gets what is waited for and the most seconds, as a wait begins.
        setback: the latest reason why a step must be tried again, for the error; empty when there is none.
    """

    def __init__(
        self,
        check: Callable[[], None],
        tell: Callable[[str, float], None],
        setback: Callable[[], str] = str,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.took: dict[str, float] = {}
        self._check, self._tell, self._setback = check, tell, setback
        self._clock, self._sleep = clock, sleep

    def until(self, happened: Callable[[], Any], what: str, *, like: Sequence[str] = (), name: str = "") -> Any:
        """What `happened` returns, once it is true.

        Args:
            what: what is waited for, as it is shown.
            like: earlier steps that this one repeats; the limit grows with what they took.
            name: later waits may be like this one.

        Raises:
            RetunedError: it did not come within the limit; the text says what, and why the last try failed.
        """
        limit = max(LEAST_SECONDS, TRIES * sum(self.took[step] for step in like)) if like else FIRST_SECONDS
        self._tell(what, limit)
        began = self._clock()
        while not (result := happened()):
            self._check()
            if self._clock() - began > limit:
                setback = self._setback()
                raise RetunedError(
                    f"demo: waited {limit:.0f} s for {what}" + (f"; {setback}" if setback else "; nothing failed")
                )
            self._sleep(0.5)
        if name:
            self.took[name] = self._clock() - began
        return result


def setbacks(workload: dict[str, Any]) -> list[tuple[str, str]]:
    """What must be tried again, oldest first, from the status of a workload: an id and a sentence.

    The gate's refusals, with what a gain it would take, and runs that ended without a decision.
    """
    found = [
        (decision["created_at"], decision["created_at"], f"the gate refused an adapter: {decision['reasons'][-1]}")
        for decision in workload.get("decisions", [])
        if decision["kind"] == "gate" and not decision["outcome"]
    ]
    found += [
        (run["started_at"], run["id"], f"a retraining {_ENDED[run['state']]}: {run['error']}")
        for run in workload.get("runs", [])
        if run["state"] in _ENDED
    ]
    return [(id, text) for _, id, text in sorted(found)]
