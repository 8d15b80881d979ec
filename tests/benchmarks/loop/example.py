"""A system for `external.py`: every 30 days it teaches the newest answer to each question and promotes the result."""

import json
import sys

newest: dict[str, str] = {}
last = today = 0


def act(action: dict[str, object]) -> dict[str, str]:
    """Writes an action and reads its result."""
    print(json.dumps(action), flush=True)
    result: dict[str, str] = json.loads(sys.stdin.readline())
    return result


for line in iter(sys.stdin.readline, ""):
    event = json.loads(line)
    if event["type"] == "day":
        today = event["day"]
    elif event["type"] == "feedback":
        question, correction = event["question"], event["correction"]
        if correction:
            newest[question] = correction
        elif event["helpful"]:
            newest.setdefault(question, event["answer"])
    elif event["type"] == "end":
        if newest and today - last >= 30:
            last = today
            made = act({"type": "train", "rows": list(newest.items())})
            if made["type"] == "trained":
                act({"type": "promote", "version": made["version"]})
        print(json.dumps({"type": "done"}), flush=True)
