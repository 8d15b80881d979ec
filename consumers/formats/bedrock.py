"""Amazon Bedrock's model invocation logs, of the Converse API or in the model provider's own form.

Source: https://docs.aws.amazon.com/bedrock/latest/userguide/model-invocation-logging.html
"""

from collections.abc import Iterator

from retuned.consumers.formats import calls
from retuned.consumers.formats.events import Kind, PassedOver
from retuned.consumers.formats.messages import Plain, object_of, objects_of

# The fields of the prompt and of the answer's text in providers' own forms.
_PROMPTS, _TEXTS = ("prompt", "inputText"), ("generation", "completion", "outputText", "text")


def is_log(value: Plain) -> bool:
    """Whether an object is an invocation log."""
    return value.get("schemaType") == "ModelInvocationLog" or (
        value.keys() >= {"modelId", "operation", "input"} and "inputContentType" in object_of(value["input"])
    )


def events(value: Plain) -> Iterator[tuple[Kind, Plain] | PassedOver]:
    """Yields the answer of an invocation, or the reason there is none."""
    input, output = object_of(value.get("input")), object_of(value.get("output"))
    request, response = input.get("inputBodyJson"), output.get("outputBodyJson")
    if value.get("errorCode"):
        yield PassedOver("failed_call")
    elif isinstance(response, dict) and response.keys() & {"embedding", "embeddings", "embeddingsByType", "images"}:
        yield PassedOver("other_operation")
    elif not isinstance(request, dict) or response is None:  # too large for the log, or logging of text is off
        yield PassedOver("without_content")
    else:
        metadata = object_of(request.get("requestMetadata")) | object_of(value.get("requestMetadata"))
        counts = {"prompt_tokens": input.get("inputTokenCount"), "completion_tokens": output.get("outputTokenCount")}
        if isinstance(response, dict):
            response = {"usage": counts} | _as_converse(response)
        yield from calls.answers(
            {
                "id": value.get("requestId"),
                "timestamp": value.get("timestamp"),
                "workload": metadata.get("workload"),
                "request": _with_messages(request) | {"model": value.get("modelId"), "requestMetadata": metadata},
                "response": response,
                "conversation_id": metadata.get("conversation_id"),
                "attributes": metadata,
            }
        )


def _with_messages(request: Plain) -> Plain:
    """Returns a request with messages, where it has its prompt in the provider's own field."""
    text = next((request[name] for name in _PROMPTS if isinstance(request.get(name), str)), None)
    return request if text is None else {"messages": [{"role": "user", "content": [{"text": text}]}]}


def _as_converse(response: Plain) -> Plain:
    """Returns a response in a provider's own form as one of the Converse API; others unchanged."""
    result = (objects_of(response.get("results")) or objects_of(response.get("outputs")) or [response])[0]
    text = next((result[name] for name in _TEXTS if isinstance(result.get(name), str)), None)
    if text is None or response.keys() & {"choices", "content", "output"}:
        return response
    reason = result.get("stop_reason", result.get("completionReason"))
    return {"output": {"message": {"content": [{"text": text}]}}, "stopReason": reason}
