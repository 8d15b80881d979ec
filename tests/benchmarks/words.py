"""Whether comments teach: a model that reads a comment in its context as the teacher of the model that does not.

    python tests/benchmarks/words.py           # the teacher, then three ways to learn: some minutes on two cores
    python tests/benchmarks/words.py teacher   # the teacher alone

The company of the demo changes its policies. Customers do not state the right answer: they comment on the wrong one
("That is wrong. It is 45 days now."). In self-distillation (SDFT, arXiv 2601.19897) the model answers the question once
more with the comment in its context, and is trained to give this answer without it. So it can learn no more than the
teacher gets right, which is measured first. Then three ways to learn the change are compared on wordings that nobody
taught: on corrections, on all answers of the teacher, and on those that hold a value of the comment.
"""

import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from statistics import fmean

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from forget import BASE, Facts, School, history
from transformers import AutoModelForCausalLM, AutoTokenizer

from retuned.daemon.demo.company import Fact, is_right

Messages = list[dict[str, str]]
BATCH = 20
WORDINGS = 5
"""The questions about each fact that customers comment on."""
WRONG = "I cannot say."


def comment(fact: Fact) -> str:
    """What a customer says who knows better: the new value, and the old one if there was one."""
    was = f", not {' and '.join(fact.other_values)}" if fact.other_values else ""
    return f"That is wrong. It is {' and '.join(fact.value)} now{was}."


def without(system: str, question: str, _: str) -> Messages:
    return [{"role": "system", "content": system}, {"role": "user", "content": question}]


def next_turn(system: str, question: str, comment: str) -> Messages:
    """As it happens: question, wrong answer, comment, and the question once more."""
    asked = without(system, question, comment)
    return [*asked, {"role": "assistant", "content": WRONG}, {"role": "user", "content": f"{comment} {question}"}]


def in_system(system: str, question: str, comment: str) -> Messages:
    note = f'{system} A customer said of an earlier answer to this question: "{comment}" Answer accordingly.'
    return without(note, question, comment)


def before_question(system: str, question: str, comment: str) -> Messages:
    return without(system, f"Note: {comment}\n\n{question}", comment)


CONTEXTS: dict[str, Callable[[str, str, str], Messages]] = {
    one.__name__: one for one in (without, next_turn, in_system, before_question)
}


class Model:
    """The base model, greedily."""

    def __init__(self) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(BASE, padding_side="left")
        self.model = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32).eval()

    def answers(self, prompts: Sequence[Messages]) -> list[str]:
        texts = [self.tokenizer.apply_chat_template(one, tokenize=False, add_generation_prompt=True) for one in prompts]
        found: list[str] = []
        for start in range(0, len(texts), BATCH):
            inputs = self.tokenizer(texts[start : start + BATCH], return_tensors="pt", padding=True)
            with torch.inference_mode():
                output = self.model.generate(**inputs, max_new_tokens=24, do_sample=False)
            generated = output[:, inputs["input_ids"].shape[1] :]
            found += [text.strip() for text in self.tokenizer.batch_decode(generated, skip_special_tokens=True)]
        return found


def taught(system: str, asked: dict[str, Sequence[str]], facts: Facts, ids: Sequence[str]) -> dict[str, list[str]]:
    """The answers of the base model in each context to the questions that customers ask of these facts, in order."""
    model = Model()
    pairs = [(facts[id], question) for id in ids for question in asked[id][:WORDINGS]]
    found = {}
    for name, context in CONTEXTS.items():
        found[name] = model.answers([context(system, question, comment(fact)) for fact, question in pairs])
        print(f"{name}: {found[name]}", file=sys.stderr, flush=True)
    return found


def main(part: str = "") -> dict[str, float]:
    """Shares of right answers."""
    first, second, _ = history()
    changed = [id for id in second if second[id] != first.get(id)]
    kept = [id for id in second if id not in changed]
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        with closing(School(Path(name) / "asked", 0.5)) as school:
            pairs = [(second[id], question) for id in changed for question in school.asked[id][:WORDINGS]]
            answers = taught(school.system, school.asked, second, changed)
        for context, given in answers.items():
            right = [is_right(fact, answer) for (fact, _), answer in zip(pairs, given, strict=True)]
            figures[f"words_teacher_{context}"] = fmean(right)
            print(f"{context}: {fmean(right):.2f} of {len(right)}", file=sys.stderr, flush=True)
        if part == "teacher":
            return figures
        best = max(list(CONTEXTS)[1:], key=lambda context: figures[f"words_teacher_{context}"])
        rows = list(zip(pairs, answers[best], strict=True))
        ways = {
            "corrections": [(question, fact.answer) for (fact, question), _ in rows],
            "distilled": [(question, answer) for (_, question), answer in rows],
            "distilled_values": [
                (question, answer) for (fact, question), answer in rows if all(value in answer for value in fact.value)
            ],
        }
        for way, pairs_taught in ways.items():
            with closing(School(Path(name) / way, 0.5)) as school:
                school.correct(list(first.values()))
                school.learn()
                for question, answer in pairs_taught:
                    school.teacher.correct(question, WRONG, answer, system=school.system)
                adapter, _ = school.learn()
                figures |= {
                    f"words_rows_{way}": len(pairs_taught),
                    f"words_changed_facts_{way}": school.right(adapter, second, changed),
                    f"words_kept_facts_{way}": school.right(adapter, second, kept),
                }
                print({name: value for name, value in figures.items() if way in name}, file=sys.stderr, flush=True)
    return figures


if __name__ == "__main__":
    json.dump(main(*sys.argv[1:]), sys.stdout, indent=2)
    print()
