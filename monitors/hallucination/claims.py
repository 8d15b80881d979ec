"""Claims: the sentences of an answer that claim something. Thanks, wishes, questions and "I do not know" do not."""

import re
from collections.abc import Iterator

from retuned.monitors.hallucination.clauses import sentences

# What is polite or honest, or sends elsewhere, and claims nothing; what follows a "but" does.
_NO_CLAIM = re.compile(
    r"\b(?:i (?:do not|don['’]t|cannot|can['’]t|could not|couldn['’]t|am unable|am not able|am sorry|am afraid)"
    r"|we (?:do not|don['’]t|cannot|can['’]t|could not|couldn['’]t) (?:know|find|say|tell|answer|confirm|see)"
    r"|(?:no|any|not have) (?:\w+ )?(?:information|details?) (?:about|on|regarding|concerning|whether|for)\b"
    r"|no (?:mention|indication)\b"
    r"|(?:says?|said|mentions?|tells?(?: me| us)?|states?) nothing"
    r"|(?:not|\w+n['’]t|never) (?:\w+ )?(?:mention|specif|state|say)"
    r"|^(?:please |(?:it(?: would be| is|['’]s) )?(?:best|better) to |i (?:suggest|recommend|would|['’]d) (?:\w+ )?)?"
    r"(?:check|ask|asking|contact|contacting|consult|consulting|checking|get in touch|reach out)\b(?!.*[\d@])"
    r"|(?:articles?|passages?|documents?|information|texts?|pages?) (?:that )?i(?:['’]ve been given| have) "
    r"(?:do not|does not|don['’]t|doesn['’]t) (?:\w+ )?(?:cover|contain|include|address|list|describe)"
    r"|(?:would|['’]d) rather not\b"
    r"|i['’]m (?:\w+ )?(?:sorry|afraid|unable|not (?:able|sure))|look(?:ing)? forward to"
    r"|(?:happy|glad|here) to help|hope (?:this|that) helps|let (?:me|us) know (?:if|whether)|feel free"
    r"|sorry to hear|(?:great|good) question|thank(?:s| you)|you['’]re welcome|have a (?:nice|good|great))\b",
    re.IGNORECASE,
)
# A sentence that wishes or greets; one that goes on behind a comma, or has a number, may claim something.
_WISH = re.compile(
    r"^(?:hello|hi|hey|good (?:morning|afternoon|evening|day|luck)|have (?:a|fun|an)\b|enjoy (?:your|the|it)\b"
    r"|how (?:lovely|nice|exciting|wonderful|great)|(?:that|it)['’]?s? (?:is )?(?:great|good|nice) to (?:hear|see)"
    r"|(?:great|lovely|nice|good|wonderful|glad|happy) to (?:hear|see|meet)|(?:we|i) (?:hope|wish|can['’]t wait)"
    r"|hope (?:you|to)|wishing you|all the best|best (?:wishes|of luck)|(?:kind|warm|best) regards|take care"
    r"|congratulations|see you|talk soon|no need to (?:be|worry)|no worries|don['’]t worry|safe travels"
    r"|cheers)\b[^\d,:;–—]*$",
    re.IGNORECASE,
)
_BUT = re.compile(r"\bbut\b", re.IGNORECASE)


def claims(answer: str) -> Iterator[str]:
    """The sentences that claim something."""
    for sentence in sentences(answer):
        if _NO_CLAIM.search(sentence) or _WISH.search(sentence):
            but = _BUT.search(sentence)
            sentence = sentence[but.end() :].strip() if but else ""
        if sentence and not sentence.endswith("?"):
            yield sentence
