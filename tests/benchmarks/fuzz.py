"""Messages as no producer should send them, for as long as asked: `make fuzz MINUTES=20`.

Prints how many were tried, and each failure with the smallest message that it was found with. What is mended goes into
tests/data/fuzz, which the tests replay.
"""

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from fuzzing import Message, Pipeline, random_plan

BATCH = 100
NEW_WAREHOUSE = 20_000  # messages: what is stored makes each batch slower


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    options = parser.parse_args()
    luck = random.Random(options.seed)
    until = time.monotonic() + 60 * options.minutes
    tried, failures = 0, []
    print(f"seed {options.seed}, {options.minutes:g} minutes", file=sys.stderr)
    while time.monotonic() < until:
        with tempfile.TemporaryDirectory() as folder:
            pipeline = Pipeline(Path(folder))
            while pipeline.sent < NEW_WAREHOUSE and time.monotonic() < until:
                messages = [random_plan(luck).message(pipeline.next_id()) for _ in range(BATCH)]
                tried += len(messages)
                try:
                    pipeline.check(messages)
                except Exception as error:  # noqa: BLE001  (any failure is reported, and the search goes on)
                    failures.append(smallest(messages, error))
                    print(failures[-1], file=sys.stderr)
                    break  # in a warehouse of its own: this one may be anyhow
            pipeline.close()
    print(f"{tried:,} messages tried, {len(failures)} failures")
    return 1 if failures else 0


def smallest(messages: list[Message], error: Exception) -> str:
    """The failure, and a message that makes it by itself, found by halving; all of them, where none does."""
    for half in (messages[: len(messages) // 2], messages[len(messages) // 2 :]):
        if len(messages) > 1 and (found := failure(half)) is not None:
            return smallest(half, found)
    return f"{type(error).__name__}: {str(error)[:600]}\n" + "\n".join(message.to_json() for message in messages)


def failure(messages: list[Message]) -> Exception | None:
    """What goes wrong with these messages in a warehouse of their own."""
    with tempfile.TemporaryDirectory() as folder:
        pipeline = Pipeline(Path(folder))
        try:
            pipeline.check(messages)
        except Exception as error:  # noqa: BLE001
            return error
        finally:
            pipeline.close()
    return None


if __name__ == "__main__":
    sys.exit(main())
