"""Settings that differ between workloads: `workloads.<name or glob>` in the configuration, over what holds for all."""

import difflib
import logging
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import lru_cache
from itertools import combinations, permutations
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from retuned.consumers.sections import WorkloadSettings

log = logging.getLogger(__name__)

SECTIONS = (
    *("metric", "dataset", "train", "evaluate", "gate", "rollout", "policy", "windows", "watch", "roi", "labels"),
    *("drift", "serving", "runner", "incumbent", "cascade", "memory", "forget", "retention"),
)
"""Whose keys an entry may set, beside `objective` and `base`, which is `models.base`."""

COMMON = {
    ("roi", "currency"): "all workloads have one currency",
    ("retention", "archive"): "all workloads have one archive",
    ("retention", "keep_bytes"): "all workloads have one warehouse",
    ("retention", "dead_letter_days"): "a dead letter belongs to no workload",
}
"""Keys of these sections that an entry may not set, with the reason."""

GLOB = frozenset("*?[")
"""What makes a name of an entry a glob."""

MOST_NAMED = 10
"""Workloads that a text names."""

Entries = Mapping[str, Mapping[str, Any]]
S = TypeVar("S", bound=BaseModel)


def matching(entries: Entries, workload: str) -> list[str]:
    """The names and globs of the entries for a workload; of two that set the same key, the later one in the list wins.

    Globs (`*`, `?`, `[abc]`) come first, a longer one after a shorter one, equally long ones in the order of the file
    (see `notices`); the exact name comes last.
    """
    globs = [name for name in entries if name != workload and fnmatchcase(workload, name)]
    return [*sorted(globs, key=len), *([workload] if workload in entries else [])]


def in_force(settings: S, entries: Entries, workload: str) -> S:
    """The settings of a workload: those of all, with the keys of all its entries, each section validated as a whole.

    A section in which globs contradict each other, which a start cannot always foresee, is that of all: one workload's
    name stops no other workload.
    """
    found, wrong = _merged(settings, entries, workload)
    if wrong:
        _warn(workload, "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['type']!s}" for one in wrong))
    return found


@lru_cache(maxsize=1_000)
def _warn(workload: str, wrong: str) -> None:
    """Logs once that entries contradict each other on a workload."""
    log.error("workloads: entries contradict each other on %s, where the settings of all hold: %s", workload, wrong)


def _merged(settings: S, entries: Entries, workload: str) -> tuple[S, list[InitErrorDetails]]:
    """Returns the settings of a workload, and everything that is wrong in them, at the entry that sets it."""
    names, changed = matching(entries, workload), dict[str, Any]()
    merged, wrong = dict[str, dict[str, Any]](), list[InitErrorDetails]()
    for name in names:
        if "objective" in entries[name]:
            changed["objective"] = WorkloadSettings(objective=entries[name]["objective"]).objective
        for section, given in _by_section(entries[name]).items():
            merged.setdefault(section, {}).update(given)
    for section, given in merged.items():
        try:
            changed[section] = _changed(getattr(settings, section), given)
        except ValidationError as error:
            setting = [name for name in names if section in _by_section(entries[name])]
            wrong += [_located(one, entries, setting, section) for one in error.errors()]
    return settings.model_copy(update=changed) if changed else settings, wrong


def check(settings: BaseModel, entries: Entries) -> None:
    """Try every entry over the settings of all, together with the others that match it.

    Raises:
        ValidationError: of everything that is wrong.
    """
    wrong: dict[tuple[Any, ...], InitErrorDetails] = {}  # what several names inherit is wrong once
    sound: dict[str, dict[str, Any]] = {name: {} for name in entries}
    for name, entry in entries.items():
        for key, given in entry.items():
            try:
                _check_key(settings, key, given)
            except ValidationError as error:
                where = ("workloads", name, *((key,) if key in SECTIONS else ()))
                wrong |= _by_place(error, where)
            else:
                sound[name][key] = given
    for name in (*sound, *_shared(sound)):
        wrong |= {(*one["loc"], str(one["type"])): one for one in _merged(settings, sound, name)[1]}
    if wrong:
        raise ValidationError.from_exception_data("Settings", list(wrong.values()))


def notices(entries: Entries, workloads: Sequence[str]) -> list[str]:
    """What looks like a mistake in view of the workloads that are known; of no workload nothing is said.

    An entry that is of none of them; and two globs of one length that set a key of one of them to different values.
    """
    found = [
        f"workloads.{name}: no workload that is known has this name{near(name, workloads)}; it counts once there is one"
        for name in entries
        if workloads and not any(workload == name or fnmatchcase(workload, name) for workload in workloads)
    ]
    contradictions = dict[tuple[str, str, tuple[str, ...]], str]()
    for workload in workloads:
        globs = [name for name in matching(entries, workload) if name != workload]
        for one, other in ((one, other) for one, other in combinations(globs, 2) if len(one) == len(other)):
            first, second = _flat(entries[one]), _flat(entries[other])
            for key in first.keys() & second.keys():
                if first[key] != second[key] and origin(entries, workload, key) == other:
                    contradictions.setdefault((one, other, key), workload)
    return found + [
        f"workloads.{one} and workloads.{other}: both are globs of {workload}, are equally long and set "
        f"{'.'.join(key)}; {other}, the later one, counts: set it in an entry workloads.{workload}, or in one of them"
        for (one, other, key), workload in sorted(contradictions.items())
    ]


def near(name: str, workloads: Sequence[str]) -> str:
    """Which of the workloads could be meant by a name, as the end of a sentence."""
    likely = difflib.get_close_matches(name, workloads, n=3)
    return f"; did you mean {' or '.join(likely)}?" if likely else f"; known are {', '.join(workloads[:MOST_NAMED])}"


def origin(entries: Entries, workload: str, key: tuple[str, ...]) -> str | None:
    """The name or glob of the entry that a workload's value of a key comes from; None: from none."""
    return next((name for name in reversed(matching(entries, workload)) if has(entries[name], key)), None)


def has(values: Mapping[str, Any], key: tuple[str, ...]) -> bool:
    """Whether a key is set: ("train", "rank") where that is the rank in the section train."""
    found: Any = values
    for part in key:
        if not isinstance(found, Mapping) or part not in found:
            return False
        found = found[part]
    return True


def known() -> list[str]:
    """What an entry may hold."""
    return ["objective", "base", *SECTIONS]


def _flat(entry: Mapping[str, Any]) -> dict[tuple[str, ...], Any]:
    """The values of an entry by their keys: ("train", "rank") is the rank in the section train."""
    sections = {section: given for section, given in entry.items() if isinstance(given, Mapping)}
    alone = {(key,): given for key, given in entry.items() if key not in sections}
    return alone | {(section, key): value for section, given in sections.items() for key, value in given.items()}


def _by_section(entry: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """What an entry sets, as sections with keys; without its objective."""
    found = {key: given for key, given in entry.items() if key in SECTIONS}
    return found | {"models": {"base": entry["base"]}} if "base" in entry else found


def _shared(entries: Entries) -> Iterator[str]:
    """Yields names that two globs have in common, with one in place of a `*` of the other. Others are met by
    `in_force`."""
    sections = {name: _by_section(entry).keys() for name, entry in entries.items() if GLOB & set(name)}
    for one, other in permutations(sections, 2):
        if sections[one].isdisjoint(sections[other]):
            continue
        name = one.replace("*", other, 1)
        if fnmatchcase(name, one) and fnmatchcase(name, other):
            yield name


def _changed(section: S, given: Mapping[str, Any]) -> S:
    """A section with some keys set anew, validated as a whole."""
    kept = {key: getattr(section, key) for key in section.model_fields_set}
    return type(section).model_validate({**kept, **given})


def _check_key(settings: BaseModel, key: str, given: Any) -> None:
    """One key of an entry, a section or another. Raises a ValidationError when it cannot stand there."""
    if key not in known():
        if key in type(settings).model_fields:
            raise _wrong("value_error", "the same for all workloads: set it outside of workloads", (key,), given)
        raise _wrong("extra_forbidden", "unknown key", (key,), given)
    if key == "objective":
        WorkloadSettings(objective=given)
        return
    if key in SECTIONS and not isinstance(given, Mapping):
        raise _wrong("dict_type", "Expected keys with values", (), given)
    for (section, name), reason in COMMON.items():
        if key == section and name in given:
            raise _wrong("value_error", f"{reason}: set {section}.{name}", (name,), given)


def _located(one: Any, entries: Entries, setting: Sequence[str], section: str) -> InitErrorDetails:
    """An error in a section, at the last entry that sets its key; if it is of several keys, at the last one of all."""
    place: tuple[Any, ...] = () if section == "models" else (section,)
    key = (*place, *one["loc"][:1])
    name = next((name for name in reversed(setting) if one["loc"] and has(entries[name], key)), setting[-1])
    others = [f"workloads.{other}" for other in setting if other != name]
    together = f"with {', '.join(others)}: " if others and not one["loc"] else ""
    said = together + one["msg"].removeprefix("Value error, ")
    return _error(one["type"], said, ("workloads", name, *place, *one["loc"]), one["input"])


def _by_place(error: ValidationError, where: tuple[str, ...] = ()) -> dict[tuple[Any, ...], InitErrorDetails]:
    return {
        (*where, *one["loc"], one["msg"]): _error(one["type"], one["msg"], (*where, *one["loc"]), one["input"])
        for one in error.errors()
    }


def _wrong(type: str, said: str, where: tuple[str, ...], given: Any) -> ValidationError:
    return ValidationError.from_exception_data("Settings", [_error(type, said, where, given)])


def _error(type: str, said: str, where: tuple[Any, ...], given: Any) -> InitErrorDetails:
    return InitErrorDetails(type=PydanticCustomError(type, said), loc=where, input=given)
