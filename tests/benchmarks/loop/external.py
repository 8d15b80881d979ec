"""Scores a system of your own: a program that reads events and writes actions, one JSON object a line.

    python tests/benchmarks/loop/external.py change 'python tests/benchmarks/loop/example.py'
    python tests/benchmarks/loop/external.py change 'python my_system.py' --seeds 5

The lines are described in docs/evidence.md. Prints the regret against the oracle beside those of the other systems.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

from loop.world import DAYS, SCENARIOS, World
from loop.year import HOUR_COST, RIGHT_GAIN, WRONG_COST, Event, Year


class External:
    """A program that decides. Use as a context manager: it runs for one year."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __enter__(self) -> "External":
        self._process = subprocess.Popen(
            self.command, shell=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8"
        )
        money = {"right": RIGHT_GAIN, "wrong": -WRONG_COST, "hour": -HOUR_COST}
        self._send({"type": "start", "days": DAYS, "money": money})
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=60)

    def day(self, events: list[Event], year: Year) -> None:
        """Sends the day's events, then carries out actions until the program is done."""
        for event in [*events, {"type": "end"}]:
            self._send(event)
        while (action := self._read())["type"] != "done":
            self._send(year.act(action))

    def _send(self, line: Event) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(line) + "\n")
        self._process.stdin.flush()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f'{self.command!r} ended within a day: it must write {{"type": "done"}}')
        try:
            action = json.loads(line)
        except ValueError:
            action = None
        if not isinstance(action, dict) or "type" not in action:
            raise SystemExit(f"{self.command!r} wrote a line that is no action: {line[:200]!r}")
        return action


def main(arguments: Sequence[str] | None = None) -> int:
    """Plays the scenario with the program, the oracle, the baselines and ours."""
    from loop import score

    parser = argparse.ArgumentParser(description="Scores a program in the simulated year.")
    parser.add_argument("scenario", choices=SCENARIOS)
    parser.add_argument("command", help="the program, as a shell runs it")
    parser.add_argument("--seeds", type=int, default=score.SEEDS)
    chosen = parser.parse_args(arguments)
    known = score.played([chosen.scenario], range(chosen.seeds))
    for seed in range(chosen.seeds):
        with External(chosen.command) as system:
            record = Year(World(SCENARIOS[chosen.scenario], seed)).play(system)
        known.append({"scenario": chosen.scenario, "seed": seed, "system": "yours", **score.as_result(record)})
    names = ["oracle", *score.AGAINST, "ours", "yours"]
    regrets = score.regrets(known)[chosen.scenario]
    for name in names:
        print("{:18} {:8,.0f} ± {:,.0f}".format(name, *score.interval(list(regrets[name].values()))))
    print(score.decisions(known, names))
    return 0


if __name__ == "__main__":
    sys.exit(main())
