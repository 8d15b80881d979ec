"""Calls of tools: single calls of the Berkeley Function Calling Leaderboard (Patil et al. 2025, Apache 2.0).

Its data are in the wheel `bfcl-eval` (pip download --no-deps bfcl-eval), in the folder that RETUNED_DATA names or
in the current environment. Each question has a tool of its own, which the exam's questions do not share.
"""

import importlib.util
import json
import os
import re
from pathlib import Path
from random import Random
from typing import Any
from zipfile import Path as InZip

from workloads.task import Item, Skipped, Task, said

EXAM = 100
_TYPES = {"dict": "object", "float": "number", "tuple": "array", "any": "string"}
_CALL = re.compile(r"<tool_call>\s*(\{.*?\})\s*</tool_call>", re.DOTALL)


def task() -> Task:
    items = [*_items("simple_python"), *_items("multiple")]
    Random(3).shuffle(items)
    return Task("tool_calls", items[EXAM:], items[:EXAM], _wrong, right, graded, max_new_tokens=96)


def right(answer: str, item: Item) -> float:
    """1 where exactly the right tool is called, each argument has one of the values that the leaderboard allows, and
    what is required is there."""
    try:
        calls = [json.loads(text) for text in _CALL.findall(answer)]
    except ValueError:
        return 0.0
    (name, allowed), *_ = item.truth.items()
    if len(calls) != 1 or calls[0].get("name") != name or not isinstance(calls[0].get("arguments"), dict):
        return 0.0
    given = calls[0]["arguments"]
    known = all(key in allowed and _among(value, allowed[key]) for key, value in given.items())
    return float(known and all(key in given or "" in values for key, values in allowed.items()))


def graded(answer: str, item: Item) -> float:
    """F1 of the call's name and of each value in its arguments, beside the one call that was approved."""
    try:
        (given,) = [json.loads(text) for text in _CALL.findall(answer)]
    except ValueError:
        return 0.0
    wanted = json.loads(_CALL.findall(item.answer)[0])
    if given.get("name") != wanted["name"] or not isinstance(given.get("arguments"), dict):
        return 0.0
    mine, theirs = _values(given["arguments"]), _values(wanted["arguments"])
    return 2 * (1 + len(mine & theirs)) / (2 + len(mine) + len(theirs))


def _values(value: Any, path: str = "") -> set[str]:
    """Each value that holds no others, behind the keys and places that lead to it."""
    if isinstance(value, dict | list) and value:
        parts = value.items() if isinstance(value, dict) else enumerate(value)
        return {one for key, part in parts for one in _values(part, f"{path}/{key}")}
    return {f"{path}={json.dumps(value)}"} if path else set()


def _among(value: Any, allowed: list[Any]) -> bool:
    return any(_fits(value, one) for one in allowed)


def _fits(value: Any, one: Any) -> bool:
    """Of an object the leaderboard has a list of what is allowed for each key."""
    if isinstance(one, dict) and isinstance(value, dict):
        return value.keys() <= one.keys() and all(
            _among(value[key], allowed) if key in value else "" in allowed for key, allowed in one.items()
        )
    return bool(_plain(value) == _plain(one))


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return re.sub(r"[ ,./\-_*^']", "", value).lower()
    return [_plain(one) for one in value] if isinstance(value, list) else value


def _items(name: str) -> list[Item]:
    folder = _folder()
    asked = _lines(folder / f"BFCL_v4_{name}.json")
    answers = {one["id"]: one["ground_truth"] for one in _lines(folder / "possible_answer" / f"BFCL_v4_{name}.json")}
    found = []
    for one in asked:
        truth = answers[one["id"]][0]
        (function, arguments), *_ = truth.items()
        chosen = {key: _first(values) for key, values in arguments.items() if "" not in values}
        call = json.dumps({"name": function, "arguments": chosen}, ensure_ascii=False)
        tools = [{"type": "function", "function": _schema(tool)} for tool in one["function"]]
        text = one["question"][0][-1]["content"]
        found.append(Item(said(text), f"<tool_call>\n{call}\n</tool_call>", name, tools, truth))
    return found


def _first(values: list[Any]) -> Any:
    value = values[0]
    if isinstance(value, dict):
        return {key: _first(one) if isinstance(one, list) else one for key, one in value.items()}
    return value


def _schema(value: Any) -> Any:
    """The leaderboard's schemas call objects dict, floats float and tuples tuple."""
    if isinstance(value, list):
        return [_schema(one) for one in value]
    if not isinstance(value, dict):
        return value
    found = {key: _schema(one) for key, one in value.items()}
    if isinstance(value.get("type"), str):
        found["type"] = _TYPES.get(value["type"], value["type"])
    return found


def _wrong(item: Item, luck: Random) -> str:
    """The call without its first argument, of a tool that is not there, or words alone."""
    body = json.loads(_CALL.findall(item.answer)[0])
    fewer = dict(list(body["arguments"].items())[1:])
    other = {"name": "search_web", "arguments": {"query": item.messages[-1]["content"]}}
    calls = [json.dumps({"name": body["name"], "arguments": fewer}), json.dumps(other)]
    return luck.choice([*(f"<tool_call>\n{call}\n</tool_call>" for call in calls), "I cannot do that."])


def _folder() -> Any:
    named = Path(os.environ.get("RETUNED_DATA", ""))
    wheels = sorted(named.glob("bfcl_eval-*.whl")) if os.environ.get("RETUNED_DATA") else []
    if wheels:
        return InZip(wheels[-1], "bfcl_eval/data/")
    spec = importlib.util.find_spec("bfcl_eval")
    if spec is None or spec.origin is None:
        raise Skipped("no bfcl_eval-*.whl where RETUNED_DATA says (pip download --no-deps bfcl-eval)")
    return Path(spec.origin).parent / "data"


def _lines(file: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
