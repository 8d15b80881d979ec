"""Logging as text or JSON, with personal data and keys redacted, even in quoted errors."""

import json
import logging
import os
import sys
from datetime import UTC, datetime
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Any

from retuned.consumers.common.logfields import current
from retuned.consumers.common.times import iso

if TYPE_CHECKING:
    from retuned.consumers.privacy.redactor import Redactor

_ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]

TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
FORMAT, LEVEL = "RETUNED_LOG_FORMAT", "RETUNED_LOG_LEVEL"
"""Environment variables for child processes, which log like their parent."""
_CHATTY = {
    "apscheduler": logging.ERROR,
    "httpcore": logging.WARNING,
    "httpx": logging.WARNING,
    "kafka": logging.CRITICAL,
    "uvicorn": logging.ERROR,
}


class RedactingFormatter(logging.Formatter):
    """Formats records with redacted messages, arguments and tracebacks.

    IP addresses stay, because those in the log belong to the operator. Names of people stay as well: no pattern finds
    them.
    """

    @cached_property
    def _redactor(self) -> "Redactor":
        from retuned.consumers.privacy.redactor import Redactor  # most children never log a line

        return Redactor(machines=False)

    def redact(self, text: str) -> str:
        """Redacts a text; placeholders are numbered within it."""
        return self._redactor.text(text)

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = self.redact(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: _ExcInfo) -> str:
        return self.redact(super().formatException(ei))

    def formatStack(self, stack_info: str) -> str:
        return self.redact(super().formatStack(stack_info))


class JsonFormatter(RedactingFormatter):
    """Formats a record as one line of JSON: time, level, logger, message, the log fields, and exception."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": iso(datetime.fromtimestamp(record.created, UTC)),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": self.redact(record.getMessage()),
            **current(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            line["stack"] = self.formatStack(record.stack_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def configure(format: str, level: str) -> None:
    """Logs to standard error, here and in child processes; an existing logging configuration is kept.

    Args:
        format: text or json.
        level: debug, info, warning or error; except for debug, noisy libraries are silenced.
    """
    os.environ |= {FORMAT: format, LEVEL: level}
    root = logging.getLogger()
    own = next((handler for handler in root.handlers if isinstance(handler.formatter, RedactingFormatter)), None)
    if own is None:
        if root.handlers:
            return
        own = logging.StreamHandler(sys.stderr)
        root.addHandler(own)
    own.setFormatter(JsonFormatter() if format == "json" else RedactingFormatter(TEXT))
    root.setLevel(level.upper())
    for name, least in _CHATTY.items():
        # Their important errors are reported as our own.
        logging.getLogger(name).setLevel(logging.NOTSET if level == "debug" else least)
    logging.captureWarnings(True)


def last_line(text: str) -> None:
    """Prints why a program ends, redacted: as a log line if the log is JSON, otherwise as plain text."""
    if os.environ.get(FORMAT) == "json":
        logging.getLogger("retuned").critical("%s", text)
    else:
        print(RedactingFormatter().redact(text), file=sys.stderr)


def configure_child() -> None:
    """Configures the log of a child process like its parent's; text by default."""
    configure(os.environ.get(FORMAT, "text"), os.environ.get(LEVEL, "info"))
