"""Amazon Bedrock's logs of model invocations, by the Converse API or in the form of each model's maker.

Source: https://docs.aws.amazon.com/bedrock/latest/userguide/model-invocation-logging.html
"""

from collections.abc import Iterator

from retuned.consumers.formats import calls
from retuned.consumers.formats.events import Kind, PassedOver
from retuned.consumers.formats.messages import Plain, object_of, objects_of

# Of models with a form of their own: where a prompt stands, and where the text of an answer does.
_PROMPTS, _TEXTS = ("prompt", "inputText"), ("generation", "completion", "outputText", "text")


def is_log(value: Plain) -> bool:
    """Whether an object is the log of an invocation."""
    return value.get("schemaType") == "ModelInvocationLog" or (
        value.keys() >= {"modelId", "operation", "input"} and "inputContentType" in object_of(value["input"])
    )


def events(value: Plain) -> Iterator[tuple[Kind, Plain] | PassedOver]:
    """The answer of an invocation, or why there is none."""
    given, brought = object_of(value.get("input")), object_of(value.get("output"))
    request, response = given.get("inputBodyJson"), brought.get("outputBodyJson")
    if value.get("errorCode"):
        yield PassedOver("failed_call")
    elif isinstance(response, dict) and response.keys() & {"embedding", "embeddings", "embeddingsByType", "images"}:
        yield PassedOver("other_operation")
    elif not isinstance(request, dict) or response is None:  # too large for the log, or text is not logged
        yield PassedOver("without_content")
    else:
        metadata = object_of(request.get("requestMetadata")) | object_of(value.get("requestMetadata"))
        counts = {"prompt_tokens": given.get("inputTokenCount"), "completion_tokens": brought.get("outputTokenCount")}
        if isinstance(response, dict):
            response = {"usage": counts} | _known(response)
        yield from calls.answers(
            {
                "id": value.get("requestId"),
                "timestamp": value.get("timestamp"),
                "workload": metadata.get("workload"),
                "request": _asked(request) | {"model": value.get("modelId"), "requestMetadata": metadata},
                "response": response,
                "conversation_id": metadata.get("conversation_id"),
                "attributes": metadata,
            }
        )


def _asked(request: Plain) -> Plain:
    """A request whose prompt is a text under a name of its model's maker."""
    text = next((request[name] for name in _PROMPTS if isinstance(request.get(name), str)), None)
    return request if text is None else {"messages": [{"role": "user", "content": [{"text": text}]}]}


def _known(response: Plain) -> Plain:
    """A response of a model with a form of its own as one of the Converse API; others as they are."""
    held = (objects_of(response.get("results")) or objects_of(response.get("outputs")) or [response])[0]
    text = next((held[name] for name in _TEXTS if isinstance(held.get(name), str)), None)
    if text is None or response.keys() & {"choices", "content", "output"}:
        return response
    reason = held.get("stop_reason", held.get("completionReason"))
    return {"output": {"message": {"content": [{"text": text}]}}, "stopReason": reason}
