"""What a judge's reply says, in the forms in which models put it."""

import pytest

from retuned.monitors.hallucination.verdict import is_invented

INVENTED = [
    "Verdict: invented",
    "Verdict: not supported",
    "Verdict: Not supported.",
    "**Verdict: invented**",
    "**Verdict:** *not supported*",
    "### Verdict\n\ninvented",
    "Verdict: unsupported",
    "Verdict: isn't supported by the passages",
    "Verdict: The answer is not fully supported by the passages.",
    "Verdict: partially supported",
    "Verdict: the passages do not mention it, so it is invented",
    "The first half is supported. The price is not.\n\nVerdict: invented",
    "It says supported at first glance.\nVerdict: not supported",
    "Verdict: hallucinated",
    "Verdict: supported: no",
    "Verdict: neither stated nor supported",
    "The answer is not supported.",
    "Urteil: nicht belegt",
    "Urteil: erfunden",
    "Fazit: Die Antwort wird durch die Passagen nicht gestützt.",
    "Bewertung: teilweise belegt",
    "Verdict : n'est pas étayée par les passages",
    "Verdict : inventée",
    "Conclusion : non soutenue",
    "Veredicto: no respaldada por los pasajes",
    "Veredicto: inventado",
    "Verdetto: non supportata",
    "Oordeel: niet ondersteund",
    '{"verdict": "invented"}',
    '{"verdict": "not supported", "reason": "It is supported nowhere."}',
    '```json\n{\n  "supported": false,\n  "reason": "nine days are not stated"\n}\n```',
    '{"hallucination": true}',
    '{"reason": "It is supported by the first passage only.", "supported": "no"}',
    "<think>It looks supported. Verdict: supported? No, nine is not two.</think>\nVerdict: invented",
    "It may be supported.</think>\n\nVerdict: not supported",
    "<|channel|>analysis<|message|>Maybe supported.<|end|><|channel|>final<|message|>Verdict: invented",
]
SUPPORTED = [
    "Verdict: supported",
    "verdict: SUPPORTED",
    "**Verdict**: supported.",
    "Verdict: `supported`",
    "Verdict: not invented",
    "Verdict: nothing is invented",
    "Verdict: fully supported",
    "Verdict: The answer is supported by the passages.",
    "Verdict: supported, as it does not add anything",
    "Verdict: no hallucination",
    "Verdict: invented: no",
    "Nothing is invented here. The claim is not unsupported.\n\nVerdict: supported",
    "Urteil: belegt",
    "Urteil: nicht erfunden",
    "Verdict : étayée par les passages",
    "Veredicto: respaldada",
    "Verdetto: supportata",
    '{"verdict": "supported", "reason": "Not one word is invented."}',
    '{"supported": true}',
    '{"hallucination": false}',
    "<think>Is it invented? The passages say two days. Not invented.</think>\n\nVerdict: supported",
    "<thinking>invented?</thinking>supported",
]
NEITHER = [
    "",
    "I cannot tell.",
    "Verdict: supported or invented",
    "Verdict: unclear",
    "Verdict:",
    "<think>The passages say two days, so it is supported",
    '{"verdict": "unknown"}',
    "Yes.",
]


@pytest.mark.parametrize("reply", INVENTED)
def test_it_says_invented(reply: str) -> None:
    assert is_invented(reply) is True


@pytest.mark.parametrize("reply", SUPPORTED)
def test_it_says_supported(reply: str) -> None:
    assert is_invented(reply) is False


@pytest.mark.parametrize("reply", NEITHER)
def test_it_says_neither(reply: str) -> None:
    assert is_invented(reply) is None
