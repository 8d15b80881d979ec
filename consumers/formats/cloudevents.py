"""CloudEvents, structured and binary: envelopes around events of any format."""

import base64
import binascii
from typing import Any

import msgspec

from retuned.consumers.formats.events import BadEvent
from retuned.consumers.formats.messages import Plain, without_nothing
from retuned.consumers.kafka.contract import Headers


def is_structured(value: Any) -> bool:
    """Whether a decoded message is an envelope with its data."""
    return isinstance(value, dict) and "specversion" in value and bool(value.keys() & {"data", "data_base64"})


def binary_envelope(headers: Headers) -> Plain:
    """The attributes of an event in binary mode, which are the headers `ce_…`."""
    return {name[3:]: value.decode("utf-8", "replace") for name, value in headers if name.startswith("ce_") and value}


def data(envelope: Plain) -> Any:
    """What an envelope in structured mode holds, decoded.

    Raises:
        BadEvent: it is no JSON.
    """
    if "data_base64" not in envelope:
        held = envelope["data"]
    else:
        try:
            held = base64.b64decode(envelope["data_base64"], validate=True)
        except (binascii.Error, TypeError, ValueError) as error:
            raise BadEvent("not_an_event", f"data_base64: {error}") from error
    if not isinstance(held, bytes | str):
        return held
    return decoded(held, "data of the CloudEvent")


def decoded(text: str | bytes, where: str) -> Any:
    """JSON that lies in an envelope.

    Raises:
        BadEvent: it is none.
    """
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadEvent("not_json", f"{where}: {error}") from error


def completed(plain: Plain, envelope: Plain) -> Plain:
    """What the event does not say itself, its envelope may."""
    said = {"id": envelope.get("id"), "timestamp": envelope.get("time"), "workload": envelope.get("workload")}
    return without_nothing(said) | plain
