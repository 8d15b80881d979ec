"""Real questions and answers of several kinds, of which the sets themselves know what is right.

RETUNED_LEARNED_DATA names a folder with a folder for each of SOURCES, which holds the named files of the repository at
that revision. They are for measuring, and no part of this project. People are made up (see `learned_accounts`), except
in `qa`, whose feedback and disagreements are real.
"""

import ast
import csv
import gzip
import json
import os
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from learned_accounts import Crowd, People
from learned_tasks import Item

from fixtures.worlds.learned import START, World, equal, plain

VARIABLE = "RETUNED_LEARNED_DATA"


@dataclass(frozen=True)
class Source:
    """Where a set comes from. `folder` is its folder, if that is not the name of the set."""

    repository: str
    revision: str
    files: tuple[str, ...]
    folder: str = ""


_CLINC = Source("clinc/oos-eval", "828f8093932c", ("data/data_small.json",), "clinc")
SOURCES = {
    "clinc": _CLINC,
    "clinc_renamed": _CLINC,
    "sgd": Source(
        "google-research-datasets/dstc8-schema-guided-dialogue",
        "e852981ae349",
        ("dev/dialogues_001.json", "dev/dialogues_002.json", "dev/dialogues_008.json"),
    ),
    "qa": Source(
        "lil-lab/qa-from-hf",
        "bae3fbdfd8bd",
        ("data/train/train-data-round1to9.jsonl.gz", "data/full-test-long-term.jsonl.gz"),
    ),
    "sroie": Source("zzzDavid/ICDAR-2019-SROIE", "27be4271b251", ("data/key/000.json", "data/box/000.csv")),
    "text2sql": Source(
        "jkkummerfeld/text2sql-data",
        "5050bad2309a",
        tuple(f"data/{name}.json" for name in ("geography", "restaurants", "academic", "imdb", "yelp", "scholar")),
    ),
    "xquad": Source(
        "google-deepmind/xquad", "7d30520c7175", tuple(f"xquad.{code}.json" for code in ("en", "de", "es", "tr", "zh"))
    ),
}


def worlds() -> Iterator[World]:
    """The sets that are there; of the others, where they come from."""
    named = os.environ.get(VARIABLE)
    for name, source in SOURCES.items():
        here = source.folder or name
        files = [Path(named or "") / here / file for file in source.files]
        if named and all(file.exists() for file in files):
            world = World(name, same=like_one_of_three if name == "qa" else equal)
            _SETS[name](world, files, random.Random(name))
            yield world
        else:
            missing = f"{', '.join(source.files)} of github.com/{source.repository} at {source.revision}"
            print(
                f"{name} is skipped: {VARIABLE} must name a folder with {here}/, which holds {missing}", file=sys.stderr
            )


def _clinc(world: World, files: Sequence[Path], luck: random.Random) -> None:
    """150 intents and what is none; three in ten statements are junk."""
    splits = json.loads(files[0].read_text(encoding="utf-8"))
    found: dict[str, list[str]] = {}
    for text, label in splits["train"] + splits["oos_train"]:
        found.setdefault(label, []).append(text)
    pairs = [(text, label) for label, texts in found.items() for text in texts[:14]]
    people = People(Crowd(accounts=200, mistaken=0.05, sarcastic=0.33, experts=0.03), luck)
    names = list(found)
    _everybody(world, people, [(text, [label], _any_of(names)) for text, label in pairs])


def _renamed(world: World, files: Sequence[Path], luck: random.Random) -> None:
    """In the middle of the month 30 of 91 intents get another name, which the model does not use yet.

    Experts give half of what is said before, and a tenth afterwards, when six in ten questions are asked again."""
    found: dict[str, list[str]] = {}
    for text, label in json.loads(files[0].read_text(encoding="utf-8"))["train"]:
        found.setdefault(label, []).append(text)
    names = luck.sample(list(found), 91)
    before, after = (People(Crowd(accounts=200, mistaken=0.05, experts=share), luck) for share in (0.5, 0.1))
    for number, name in enumerate(names):
        right = f"{name}_v2" if number < 30 else name
        for text in found[name][:14]:
            item = Item(text, (right,), (name,), _any_of(names))
            for people, start, is_old in ((before, 0, True), (after, 15, False)):
                if not is_old and luck.random() > 0.6:
                    continue
                (who,) = people.drawn(1)
                shown = name if luck.random() < (0.5 if is_old else 0.9) else item.wrong(luck)
                when = START + timedelta(days=start + luck.uniform(0, 15))
                interaction = world.asked(text, shown, when, right=item.wordings, who=who)
                people.speak(world, who, item, interaction, shown, is_old, when + timedelta(minutes=2))


def _dialogues(world: World, files: Sequence[Path], luck: random.Random) -> None:
    """Turns of conversations: to each, what the assistant said next."""
    dialogues = [
        [(turn["speaker"] == "USER", turn["utterance"]) for turn in dialogue["turns"]]
        for file in files
        for dialogue in json.loads(file.read_text(encoding="utf-8"))[:60]
    ]
    replies = [text for turns in dialogues for user, text in turns if not user]
    people = People(Crowd(accounts=150), luck)
    for number, turns in enumerate(dialogues):
        (who,) = people.drawn(1)
        for place in range(1, len(turns)):
            if turns[place][0] or not turns[place - 1][0]:
                continue
            history = [{"role": "user" if user else "assistant", "content": text} for user, text in turns[:place]]
            when = START + timedelta(minutes=60 * number + place)
            item = Item("", (turns[place][1],), (), _any_of(replies))
            _speak(world, people, item, history, when, who=who, conversation=f"conversation-{number}", rated=0.6)


def _people_who_disagree(world: World, files: Sequence[Path], luck: random.Random) -> None:
    """Questions about passages.

    Some were answered by three people each, in words of their own; in four of ten cases somebody adds the answer to
    another question. Of others, real users called the system's answer correct, wrong, or partly correct."""
    answered = [one for one in records(files[1]) if one["annotation"]]
    for number, one in enumerate(answered):
        given = [text for text in listed(one["annotations"]) if text.strip()]
        when = START + timedelta(minutes=20 * number)
        wrong = luck.choice(answered)["annotation"]
        interaction = world.asked(one["question"], wrong, when, right=given, context=[one["context"]])
        stated = [*given, *[luck.choice(answered)["annotation"]] * (luck.random() < 0.4)]
        luck.shuffle(stated)
        for minute, text in enumerate(stated):
            world.taught(interaction, text, when + timedelta(minutes=minute), who=f"reader-{luck.randrange(120)}")
    for number, one in enumerate(records(files[0])):
        when, correct = START + timedelta(minutes=13 * number), one["feedback"] == "Correct"
        right = [one["pred"]] if correct else []
        who = one["workerId"]
        interaction = world.asked(one["question"], one["pred"], when, right=right, who=who, context=[one["context"]])
        world.said(interaction, "helpful", correct, when + timedelta(minutes=1), who=who)


def _receipts(world: World, files: Sequence[Path], luck: random.Random) -> None:
    """Text of scanned receipts, and the JSON of four fields in it."""
    documents = []
    for key in sorted(files[0].parent.glob("*.json")):
        box = files[1].parent / f"{key.stem}.csv"
        if box.exists():
            with box.open(encoding="utf-8", errors="replace", newline="") as lines:
                text = "\n".join(",".join(line[8:]) for line in csv.reader(lines, quoting=csv.QUOTE_NONE))
            documents.append((text, json.loads(key.read_text(encoding="utf-8"))))

    def one_field_off(right: dict[str, str]) -> Callable[[random.Random], str]:
        def wrong(luck: random.Random) -> str:
            field, other = luck.choice(list(right)), luck.choice(documents)[1]
            return json.dumps(right | {field: other.get(field, "") + "0" * (other.get(field) == right[field])})

        return wrong

    people = People(Crowd(accounts=60, mistaken=0.08, sarcastic=0.1), luck)
    asked = [
        (text, [json.dumps(fields), json.dumps(fields, indent=2)], one_field_off(fields)) for text, fields in documents
    ]
    _everybody(world, people, asked, system="Extract company, date, address and total as JSON.")


def _queries(world: World, files: Sequence[Path], luck: random.Random) -> None:
    """Questions in English to databases, and SQL; several queries may be right."""
    asked: list[tuple[str, list[str], Callable[[random.Random], str]]] = []
    every = []
    for file in files:
        for query in json.loads(file.read_text(encoding="utf-8")):
            for sentence in query["sentences"]:
                text, right = sentence["text"], list(query["sql"])
                for name, value in sentence["variables"].items():
                    text, right = text.replace(name, value), [sql.replace(name, value) for sql in right]
                every.append(right[0])
                asked.append((text, right, lambda luck: str(luck.choice(every))))
    luck.shuffle(asked)
    people = People(Crowd(accounts=80, experts=0.1), luck)
    _everybody(world, people, asked[:1_500])


def _languages(world: World, files: Sequence[Path], luck: random.Random) -> None:
    """The same questions about the same passages in five languages, each asked by one to three accounts."""
    asked = []
    for file in files:
        for article in json.loads(file.read_text(encoding="utf-8"))["data"][:12]:
            for paragraph in article["paragraphs"]:
                answers = [question["answers"][0]["text"] for question in paragraph["qas"]]
                for question, answer in zip(paragraph["qas"], answers, strict=True):
                    asked.append((paragraph["context"], question["question"], answer, answers))
    people = People(Crowd(accounts=150, sarcastic=0.1, experts=0.03), luck)
    luck.shuffle(asked)
    for number, (passage, question, answer, answers) in enumerate(asked):
        item = Item(question, (answer,), (), _any_of(answers))
        for voice, who in enumerate(people.drawn(luck.choice((1, 1, 2, 3)))):
            when = START + timedelta(minutes=20 * number + voice)
            _speak(world, people, item, question, when, who=who, context=[passage])


_SETS: dict[str, Callable[[World, Sequence[Path], random.Random], None]] = {
    "clinc": _clinc,
    "clinc_renamed": _renamed,
    "sgd": _dialogues,
    "qa": _people_who_disagree,
    "sroie": _receipts,
    "text2sql": _queries,
    "xquad": _languages,
}


def _everybody(
    world: World,
    people: People,
    asked: Sequence[tuple[str, list[str], Callable[[random.Random], str]]],
    system: str | None = None,
) -> None:
    """Each question is asked once, by anybody."""
    order = list(asked)
    people.luck.shuffle(order)
    for number, (text, right, wrong) in enumerate(order):
        turns = [{"role": "system", "content": system}] if system else []
        turns.append({"role": "user", "content": text})
        (who,) = people.drawn(1)
        item = Item(text, tuple(right), (), wrong)
        _speak(world, people, item, turns, START + timedelta(minutes=20 * number), who=who)


def _speak(
    world: World,
    people: People,
    item: Item,
    messages: Any,
    when: Any,
    *,
    who: str,
    rated: float = 1.0,
    **about: Any,
) -> None:
    """One asks, is answered right in half of the cases, and mostly says something."""
    luck = people.luck
    shown = luck.choice(item.wordings) if luck.random() < 0.5 else item.wrong(luck)
    interaction = world.asked(messages, shown, when, right=item.wordings, who=who, **about)
    if luck.random() < rated:
        people.speak(world, who, item, interaction, shown, False, when + timedelta(minutes=2))


def _any_of(answers: Sequence[str]) -> Callable[[random.Random], str]:
    return lambda luck: luck.choice(answers)


def like_one_of_three(answer: str, given: str) -> bool:
    """Whether at least half of the words are shared (their F1), as people copy more or less of a passage."""
    ours, theirs = set(plain(answer).split()), set(plain(given).split())
    return plain(answer) == plain(given) or 2 * len(ours & theirs) >= (len(ours) + len(theirs)) / 2


def records(file: Path) -> list[dict[str, Any]]:
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def listed(value: list[str] | str) -> list[str]:
    """A list, which some rows hold as Python writes it."""
    return value if isinstance(value, list) else list(ast.literal_eval(value))
