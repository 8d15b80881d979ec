"""Proof that nothing personal is in what is about to leave for a provider: a second look, by the rules of ingestion."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from retuned.consumers.privacy.redactor import Redactor
from retuned.consumers.settings import PrivacySettings
from retuned.retrain.data.dataset import DatasetRefused

_NAMED = 5


class PersonalData(DatasetRefused):
    """What would be sent to a provider holds personal data. Nothing was sent."""


def check_redacted(sent: Iterable[tuple[str, Mapping[str, Any]]], settings: PrivacySettings) -> None:
    """Look through what is about to be sent for whatever redaction would replace; `privacy.keep` is left alone.

    It is looked for where `privacy.redact` is off, too: what one's own machines may hold, a provider need not get.

    Args:
        sent: the id of a row, and what of it is sent, as JSON values.

    Raises:
        PersonalData: something was found; the text names kinds and rows, and no value.
        ConfigurationError: `privacy.names` is on and its extra is not installed.
    """
    redactor = Redactor(settings.model_copy(update={"redact": True}))
    found: dict[str, list[str]] = {}
    times = Counter[str]()
    for row_id, content in sent:
        redactor.value(content)
        for kind, count in redactor.take_counts().items():
            found.setdefault(kind, []).append(row_id)
            times[kind] += count
    if found:
        told = ", ".join(f"{kind} in {_rows(found[kind])}" for kind, _ in times.most_common())
        raise PersonalData(
            f"personal data stands in what would be sent to the provider, and nothing was sent: {told}. Delete or "
            "correct these rows (`retuned lineage ROW` names the events), or list what is no personal data in "
            "privacy.keep"
        )


def _rows(ids: list[str]) -> str:
    rows = list(dict.fromkeys(ids))
    named = ", ".join(rows[:_NAMED])
    more = f" and {len(rows) - _NAMED} more" if len(rows) > _NAMED else ""
    return f"{'row' if len(rows) == 1 else 'rows'} {named}{more}"
