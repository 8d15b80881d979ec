"""What the daemon logs: no personal data and no keys, whatever an error quotes."""

import logging
from types import TracebackType
from typing import Any

from retuned.consumers.privacy.redactor import Redactor

_ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


class RedactingFormatter(logging.Formatter):
    """Formats records with everything redacted that patterns find: the message with its arguments, and tracebacks.

    IP addresses stay: those in the log are the operator's own. So do names of people, which no pattern finds.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._redactor = Redactor(machines=False)

    def redact(self, text: str) -> str:
        """A text as it may be shown; placeholders are numbered within it."""
        return self._redactor.text(text)

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = self.redact(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: _ExcInfo) -> str:
        return self.redact(super().formatException(ei))

    def formatStack(self, stack_info: str) -> str:
        return self.redact(super().formatStack(stack_info))
