"""Which answers have no values that can be compared."""

import json
from pathlib import Path

import pytest

from retuned.monitors.hallucination.abstention import abstention

PAIRS = Path(__file__).parents[1] / "data" / "grounding_pairs.jsonl"
PASSAGE = "Parcels within the country take two days, those abroad take five days."
FOREIGN = {
    "polish": ("Przesyłka krajowa dociera w dwa dni.", "Paczka dotrze do Pana w ciągu dwóch dni."),
    "chinese": ("国内包裹需要两天，国外包裹需要五天。", "您的包裹将在九天内送达。"),
    "russian": ("Посылки внутри страны идут два дня.", "Посылка придёт через девять дней."),
    "arabic": ("تستغرق الطرود المحلية يومين.", "ستصل شحنتك خلال تسعة أيام."),
}
READ = {
    "german": ("Pakete im Inland brauchen zwei Tage, ins Ausland fünf.", "Ihr Paket ist in zwei Tagen bei Ihnen."),
    "french": ("La livraison en France prend deux jours.", "Vous recevrez votre colis dans deux jours."),
    "spanish": ("Los envíos nacionales tardan dos días.", "Puede devolver el producto en un plazo de 30 días."),
}


def abstains(answer: str, passages: list[str]) -> bool:
    return abstention(answer, tuple(passages)) is not None


@pytest.mark.parametrize("language", FOREIGN)
def test_it_abstains_on_languages_whose_values_are_not_read(language: str) -> None:
    passage, answer = FOREIGN[language]
    assert abstains(answer, [passage])
    assert abstains(answer, [PASSAGE])
    assert abstains("Parcels take two days.", [passage])
    assert abstention("Parcels take two days.", (PASSAGE * 5, passage)) == "language"


@pytest.mark.parametrize("language", READ)
def test_four_languages_are_read(language: str) -> None:
    passage, answer = READ[language]
    assert not abstains(answer, [passage])
    assert not abstains(answer, [PASSAGE])


def test_it_judges_english_however_short() -> None:
    pairs = [json.loads(line) for line in PAIRS.read_text(encoding="utf-8").splitlines()]
    passages = [[pair["context"]] if isinstance(pair["context"], str) else pair["context"] for pair in pairs]
    judged = [not abstains(pair["answer"], given) for pair, given in zip(pairs, passages, strict=True)]
    assert sum(judged) >= 0.99 * len(pairs)
    for answer in ("No.", "30 days.", "Agnieszka Nowak", "2nd of September", "€5", "Yes: 5 days | 9 days"):
        assert not abstains(answer, [PASSAGE]), answer
    assert not abstains("The café in Łódź, called Η Ταβέρνα, opens at nine in the morning on Sundays.", [PASSAGE])


@pytest.mark.parametrize(
    "text",
    [
        "Run this:\n```python\nprint(2)\n```",
        '{"days": 2, "abroad": 5}',
        '[{"days": 2}]',
        "int days = 2;\nint abroad = 5;\n",
        "if (abroad) {\n  ship(5);\n}\n",
    ],
)
def test_it_abstains_on_code(text: str) -> None:
    assert abstains(text, [PASSAGE])
    assert abstention("Parcels take two days.", (PASSAGE, text)) == "code"


def test_it_abstains_without_passages_or_words() -> None:
    assert abstention(" \n", (PASSAGE,)) == "no_words"
    for passages in ((), ("",), ("\n ", " ")):
        assert abstention("Parcels take two days.", passages) == "no_context"


def test_lists_and_tables_are_read() -> None:
    assert not abstains("You need:\n- your passport;\n- a photo (of your face);\n\n1. Sign it;\n2. Send it.", [PASSAGE])
    assert not abstains("| to | days |\n|---|---|\n| home | 2 |\n| abroad | 5 |", [PASSAGE])
