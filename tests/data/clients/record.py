"""Records what client libraries emit, as fixtures beside this file.

The libraries are real, the model behind them is a double: a local HTTP server with the answers of the OpenAI and the
Anthropic API. Each recording runs alone, in an environment that has its library:

    python -m venv /tmp/clients
    /tmp/clients/bin/pip install openai anthropic litellm langsmith langchain-core langfuse mlflow-skinny cloudevents \
        opentelemetry-instrumentation-openai-v2 openinference-instrumentation-openai \
        opentelemetry-exporter-otlp-proto-common 'opentelemetry-util-genai==1.1b0' botocore google-genai
    /tmp/clients/bin/python tests/data/clients/record.py            # all, or the names of some

README.md names the versions that made the files that are here.
"""

import base64
import contextlib
import itertools
import json
import os
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

HERE = Path(__file__).parent
QUESTION, ANSWER, SYSTEM = "Until when can I return a tent?", "Within 30 days.", "You work for a shop."
MESSAGES = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": QUESTION}]
TOOL = {
    "type": "function",
    "function": {
        "name": "order_status",
        "description": "The status of an order",
        "parameters": {"type": "object", "properties": {"order": {"type": "string"}}},
    },
}
CALL = {"id": "call_1", "type": "function", "function": {"name": "order_status", "arguments": '{"order": "A-1"}'}}
NUMBERS = itertools.count(1)
IMAGE = "data:image/png;base64," + base64.b64encode(bytes(range(256)) * 4).decode()


# --- the double ------------------------------------------------------------------------------------------------------


def chat_completion(asked: dict[str, Any]) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": ANSWER, "refusal": None}
    if asked.get("tools"):
        message |= {"content": None, "tool_calls": [CALL]}
    return {
        "id": f"chatcmpl-d{next(NUMBERS)}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": "double-1-2026",
        "choices": [
            {
                "index": i,
                "message": message,
                "logprobs": None,
                "finish_reason": "tool_calls" if "tool_calls" in message else "stop",
            }
            for i in range(asked.get("n") or 1)
        ],
        "usage": {"prompt_tokens": 21, "completion_tokens": 5, "total_tokens": 26},
        "system_fingerprint": "fp_double",
    }


def chunks() -> list[dict[str, Any]]:
    common = {
        "id": f"chatcmpl-d{next(NUMBERS)}",
        "object": "chat.completion.chunk",
        "created": int(time.time()),
        "model": "double-1-2026",
    }
    deltas = [{"role": "assistant", "content": ""}, {"content": "Within "}, {"content": "30 days."}]
    found = [{**common, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
    found.append({**common, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    usage = {"prompt_tokens": 21, "completion_tokens": 5, "total_tokens": 26}
    return [*found, {**common, "choices": [], "usage": usage}]


def response(asked: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": f"resp_d{next(NUMBERS)}", "object": "response", "created_at": int(time.time()), "status": "completed",
        "error": None, "incomplete_details": None, "instructions": asked.get("instructions"), "metadata": {},
        "model": "double-1-2026",
        "output": [
            {"type": "reasoning", "id": "rs_1", "summary": []},
            {"type": "message", "id": "msg_1", "status": "completed", "role": "assistant",
             "content": [{"type": "output_text", "text": ANSWER, "annotations": []}]},
        ],
        "parallel_tool_calls": True, "temperature": 1.0, "tool_choice": "auto", "tools": [], "top_p": 1.0,
        "usage": {"input_tokens": 21, "input_tokens_details": {"cached_tokens": 0}, "output_tokens": 5,
                  "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": 26},
    }  # fmt: skip


def anthropic_message(asked: dict[str, Any]) -> dict[str, Any]:
    content: list[dict[str, Any]] = [{"type": "text", "text": ANSWER}]
    if asked.get("tools"):
        content.append({"type": "tool_use", "id": "toolu_1", "name": "order_status", "input": {"order": "A-1"}})
    return {
        "id": f"msg_d{next(NUMBERS)}", "type": "message", "role": "assistant", "model": "double-1-2026",
        "content": content, "stop_reason": "tool_use" if asked.get("tools") else "end_turn", "stop_sequence": None,
        "usage": {"input_tokens": 21, "output_tokens": 5},
    }  # fmt: skip


def anthropic_events(asked: dict[str, Any]) -> list[dict[str, Any]]:
    message = anthropic_message(asked)
    begun = {"stop_reason": None, "content": [], "usage": {"input_tokens": 21, "output_tokens": 1}}
    found: list[dict[str, Any]] = [{"type": "message_start", "message": message | begun}]
    for index, block in enumerate(message["content"]):
        if block["type"] == "text":
            empty = {"text": ""}
            deltas = [{"type": "text_delta", "text": piece} for piece in ("Within ", "30 days.")]
        else:
            empty = {"input": {}}
            deltas = [{"type": "input_json_delta", "partial_json": piece} for piece in ('{"order": ', '"A-1"}')]
        found.append({"type": "content_block_start", "index": index, "content_block": block | empty})
        found += [{"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas]
        found.append({"type": "content_block_stop", "index": index})
    ended = {"stop_reason": message["stop_reason"], "stop_sequence": None}
    found.append({"type": "message_delta", "delta": ended, "usage": {"output_tokens": 5}})
    return [*found, {"type": "message_stop"}]


def converse_answer(asked: dict[str, Any]) -> dict[str, Any]:
    content: list[dict[str, Any]] = [
        {"reasoningContent": {"reasoningText": {"text": "30, I think."}}},
        {"text": ANSWER},
    ]
    if asked.get("toolConfig"):
        content.append({"toolUse": {"toolUseId": "tooluse_1", "name": "order_status", "input": {"order": "A-1"}}})
    return {
        "output": {"message": {"role": "assistant", "content": content}},
        "stopReason": "tool_use" if asked.get("toolConfig") else "end_turn",
        "usage": {"inputTokens": 20, "outputTokens": 5, "totalTokens": 26, "cacheReadInputTokens": 1},
        "metrics": {"latencyMs": 830},
    }


def gemini_answer(asked: dict[str, Any]) -> dict[str, Any]:
    parts: list[dict[str, Any]] = [{"text": "30, I think.", "thought": True}, {"text": ANSWER}]
    if asked.get("tools"):
        parts.append({"functionCall": {"id": "f1", "name": "order_status", "args": {"order": "A-1"}}})
    usage = {"promptTokenCount": 21, "candidatesTokenCount": 2, "thoughtsTokenCount": 3, "totalTokenCount": 26}
    return {
        "candidates": [{"content": {"role": "model", "parts": parts}, "finishReason": "STOP", "index": 0}],
        "usageMetadata": usage, "modelVersion": "double-1-2026", "responseId": f"resp-d{next(NUMBERS)}",
    }  # fmt: skip


def langfuse_score(sent: dict[str, Any]) -> dict[str, Any]:
    """A score as version 3 of the API returns it; one from its own pages has the source ANNOTATION."""
    observation = {"kind": "observation", "id": sent["observationId"], "traceId": sent["traceId"]}
    more = {"projectId": "p", "source": "ANNOTATION", "environment": "default", "subject": observation}
    kept = {key: value for key, value in sent.items() if key not in ("traceId", "observationId")}
    value = {"value": bool(sent["value"])} if sent["dataType"] == "BOOLEAN" else {}
    return kept | value | more | dict.fromkeys(("createdAt", "updatedAt"), sent["timestamp"])


class Double(BaseHTTPRequestHandler):
    asked: ClassVar[dict[str, Any]] = {}
    scores: ClassVar[list[dict[str, Any]]] = []

    def log_message(self, *_: Any) -> None: ...

    def do_GET(self) -> None:
        if self.path.endswith("/v3/scores"):
            self.answer({"data": [langfuse_score(score) for score in Double.scores], "meta": {"limit": 50}})
        else:
            self.answer({})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        if "chunked" in (self.headers.get("transfer-encoding") or ""):
            while size := int(self.rfile.readline() or b"0", 16):
                body += self.rfile.read(size)
                self.rfile.readline()
        path = self.path.split("?")[0]
        try:
            asked = json.loads(body)
        except (ValueError, UnicodeDecodeError):
            asked = {}
        Double.asked = asked
        if path.endswith("/chat/completions") and asked.get("stream"):
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.end_headers()
            for chunk in chunks():
                self.wfile.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")
            self.wfile.write(b"data: [DONE]\n\n")
        elif path.endswith("/chat/completions"):
            time.sleep(0.05)
            self.answer(chat_completion(asked))
        elif path.endswith("/responses"):
            self.answer(response(asked))
        elif path.endswith("/messages") and asked.get("stream"):
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.end_headers()
            for event in anthropic_events(asked):
                self.wfile.write(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode())
        elif path.endswith("/messages"):
            self.answer(anthropic_message(asked))
        elif path.endswith("/converse"):
            self.answer(converse_answer(asked))
        elif path.endswith(":generateContent"):
            self.answer(gemini_answer(asked))
        elif path.endswith("/scores"):
            Double.scores = asked
            self.answer({})
        else:
            self.answer({})

    def answer(self, value: Any) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def serve() -> str:
    """Starts a double in this process; returns its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Double)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}"


def write(name: str, value: Any) -> None:
    data = value if isinstance(value, bytes) else (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()
    data = data.replace(sys.prefix.encode(), b"/venv")  # in tracebacks
    (HERE / name).write_bytes(data)
    print(f"{name}: {len(data):,} bytes")


def openai_client(url: str) -> Any:
    import openai

    return openai.OpenAI(base_url=url + "/v1", api_key="none")


# --- recordings ------------------------------------------------------------------------------------------------------


def openai(url: str) -> None:
    """Requests as they were sent, responses as the library's objects write themselves."""
    client = openai_client(url)
    parts = [
        {"type": "text", "text": "What is on this picture?"},
        {"type": "image_url", "image_url": {"url": IMAGE}},
    ]
    image = [{"role": "user", "content": parts}]
    for name, request in {
        "chat": {"messages": MESSAGES, "user": "user-17", "metadata": {"channel": "web"}},
        "tools": {"messages": MESSAGES, "tools": [TOOL]},
        "image": {"messages": image},
        "two_choices": {"messages": MESSAGES, "n": 2},
    }.items():
        request = {"model": "double-1", **request}
        answer = client.chat.completions.create(**request)
        write(f"openai_{name}.json", {"request": request, "response": answer.model_dump(mode="json")})
    request = {"model": "double-1", "messages": MESSAGES, "stream": True, "stream_options": {"include_usage": True}}
    found = [chunk.model_dump(mode="json") for chunk in client.chat.completions.create(**request)]
    write("openai_stream.json", {"request": request, "response": found})
    request = {"model": "double-1", "instructions": SYSTEM, "input": QUESTION, "safety_identifier": "user-17"}
    answer = client.responses.create(**request)
    write("openai_responses.json", {"request": request, "response": answer.model_dump(mode="json")})


def anthropic(url: str) -> None:
    import anthropic

    client = anthropic.Anthropic(base_url=url, api_key="none")
    tool = {"name": "order_status", "description": "…", "input_schema": TOOL["function"]["parameters"]}
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": IMAGE.split(",")[1]}}
    for name, more in {
        "chat": {"messages": MESSAGES[1:], "metadata": {"user_id": "user-17"}},
        "tools": {
            "tools": [tool],
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "Where are A-1 and this?"}, image]},
                {"role": "assistant", "content": [
                    {"type": "tool_use", "id": "toolu_0", "name": "order_status", "input": {"order": "A-0"}}]},
                {"role": "user", "content": [
                    {"type": "tool_result", "tool_use_id": "toolu_0", "content": [{"type": "text", "text": "sent"}]}]},
            ],
        },
    }.items():  # fmt: skip
        request = {"model": "double-1", "system": SYSTEM, "max_tokens": 100, **more}
        answer = client.messages.create(**request)
        write(f"anthropic_{name}.json", {"request": request, "response": answer.model_dump(mode="json")})
    request = {"model": "double-1", "system": SYSTEM, "max_tokens": 100, "messages": MESSAGES[1:], "stream": True}
    for name, more in {"stream": {}, "stream_tools": {"tools": [tool]}}.items():
        found = [event.model_dump(mode="json") for event in client.messages.create(**request, **more)]
        write(f"anthropic_{name}.json", {"request": request | more, "response": found})


def bedrock(url: str) -> None:
    """The request as it is sent, which is what Bedrock logs, and what the library returns."""
    from botocore.session import get_session

    client = get_session().create_client(
        "bedrock-runtime", "us-east-1", endpoint_url=url, aws_access_key_id="none", aws_secret_access_key="none"
    )
    spec = {"name": "order_status", "description": "…", "inputSchema": {"json": TOOL["function"]["parameters"]}}
    image = {"image": {"format": "png", "source": {"bytes": bytes(range(256)) * 4}}}
    used = {"toolUseId": "tooluse_0", "name": "order_status", "input": {"order": "A-0"}}
    for name, more in {
        "chat": {
            "messages": [{"role": "user", "content": [{"text": QUESTION}, {"cachePoint": {"type": "default"}}]}],
            "requestMetadata": {"workload": "support.refunds", "user_id": "user-17", "conversation_id": "conv-1"},
        },
        "tools": {
            "toolConfig": {"tools": [{"toolSpec": spec}]},
            "messages": [
                {"role": "user", "content": [{"text": "Where are A-1 and this?"}, image]},
                {"role": "assistant", "content": [{"toolUse": used}]},
                {"role": "user", "content": [{"toolResult": {
                    "toolUseId": "tooluse_0", "content": [{"text": "sent"}, {"json": {"day": 3}}]}}]},
            ],
        },
    }.items():  # fmt: skip
        answer = client.converse(modelId="double-1", system=[{"text": SYSTEM}], **more)
        del answer["ResponseMetadata"]
        write(f"bedrock_{name}.json", {"request": {"modelId": "double-1", **Double.asked}, "response": answer})


def gemini(url: str) -> None:
    """The request as it is sent, and what the library returns, with the API's names and with its own."""
    from google import genai
    from google.genai import types

    client = genai.Client(api_key="none", http_options=types.HttpOptions(base_url=url))
    declared = types.FunctionDeclaration(
        name="order_status", description="…", parameters_json_schema=TOOL["function"]["parameters"]
    )
    image = types.Part.from_bytes(data=bytes(range(256)) * 4, mime_type="image/png")
    called = types.FunctionCall(id="f0", name="order_status", args={"order": "A-0"})
    answered = types.FunctionResponse(id="f0", name="order_status", response={"output": "sent"})
    for name, contents, tools in (
        ("chat", QUESTION, None),
        ("tools", [
            types.Content(role="user", parts=[types.Part(text="Where are A-1 and this?"), image]),
            types.Content(role="model", parts=[types.Part(function_call=called)]),
            types.Content(role="user", parts=[types.Part(function_response=answered)]),
        ], [types.Tool(function_declarations=[declared])]),
    ):  # fmt: skip
        config = types.GenerateContentConfig(
            system_instruction=SYSTEM, tools=tools, automatic_function_calling={"disable": True}
        )
        answer = client.models.generate_content(model="double-1", contents=contents, config=config)
        dumped = [answer.model_dump(mode="json", exclude_none=True, by_alias=alias) for alias in (True, False)]
        for one in dumped:
            one.pop("sdkHttpResponse", one.pop("sdk_http_response", None))
        request = {"model": "double-1", **Double.asked}
        write(f"gemini_{name}.json", {"request": request, "response": dumped[0], "with_underscores": dumped[1]})


def litellm(url: str) -> None:
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    import litellm
    from litellm.integrations.custom_logger import CustomLogger

    found: list[Any] = []

    class Logger(CustomLogger):
        def log_success_event(self, kwargs: Any, response_obj: Any, start_time: Any, end_time: Any) -> None:  # noqa: ARG002
            found.append(kwargs["standard_logging_object"])

        log_failure_event = log_success_event

    litellm.callbacks = [Logger()]
    for more in ({}, {"tools": [TOOL]}, {"stream": True}):
        answer = litellm.completion(
            model="openai/double-1", api_base=url + "/v1", api_key="none", messages=MESSAGES, user="user-17",
            metadata={"tags": ["workload:support.refunds"], "session_id": "conv-1"},
            input_cost_per_token=1e-6, output_cost_per_token=2e-6, **more,
        )  # fmt: skip
        if more.get("stream"):
            list(answer)
        time.sleep(1)
    with contextlib.suppress(litellm.InternalServerError):
        litellm.completion(model="openai/double-1", api_base="http://127.0.0.1:9/v1", api_key="none",
                           messages=MESSAGES, num_retries=0, max_retries=0)  # fmt: skip
    time.sleep(2)
    write("litellm.json", json.loads(json.dumps(found, default=str)))


def opentelemetry(url: str) -> None:
    """Each mode of capture in a process of its own: the instrumentation reads it once."""
    for mode in ("SPAN_ONLY", "EVENT_ONLY", "SPAN_AND_EVENT", "NO_CONTENT"):
        subprocess.run([sys.executable, __file__, "_opentelemetry", mode, url], check=True)


def _opentelemetry(mode: str, url: str) -> None:
    os.environ["OTEL_SEMCONV_STABILITY_OPT_IN"] = "gen_ai_latest_experimental"
    os.environ["OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"] = mode
    from opentelemetry.instrumentation.openai_v2 import OpenAIInstrumentor

    recorded = _Exporters("support.refunds")
    OpenAIInstrumentor().instrument(tracer_provider=recorded.tracers, logger_provider=recorded.loggers)
    client = openai_client(url)
    client.chat.completions.create(model="double-1", messages=MESSAGES, user="user-17")
    client.chat.completions.create(model="double-1", messages=MESSAGES, tools=[TOOL])
    recorded.write(f"otel_openai_v2_{mode.lower()}")


def openinference(url: str) -> None:
    subprocess.run([sys.executable, __file__, "_openinference", "", url], check=True)


def _openinference(_: str, url: str) -> None:
    from openinference.instrumentation import using_attributes
    from openinference.instrumentation.openai import OpenAIInstrumentor

    recorded = _Exporters("support.refunds")
    OpenAIInstrumentor().instrument(tracer_provider=recorded.tracers)
    client = openai_client(url)
    with using_attributes(session_id="conv-1", user_id="user-17", metadata={"channel": "web"}):
        client.chat.completions.create(model="double-1", messages=MESSAGES)
    client.chat.completions.create(model="double-1", messages=MESSAGES, tools=[TOOL])
    client.responses.create(model="double-1", instructions=SYSTEM, input=QUESTION)
    list(client.chat.completions.create(model="double-1", messages=MESSAGES, stream=True))
    recorded.write("openinference_openai")


class _Exporters:
    """Providers whose spans and log records are kept, and written as OTLP: protobuf and the JSON of it."""

    def __init__(self, service: str) -> None:
        from opentelemetry.sdk._logs import LoggerProvider
        from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

        resource = Resource.create({"service.name": service})
        self.tracers, self.loggers = TracerProvider(resource=resource), LoggerProvider(resource=resource)
        self.spans, self.logs = InMemorySpanExporter(), InMemoryLogRecordExporter()
        self.tracers.add_span_processor(SimpleSpanProcessor(self.spans))
        self.loggers.add_log_record_processor(SimpleLogRecordProcessor(self.logs))

    def write(self, name: str) -> None:
        from opentelemetry.exporter.otlp.proto.common._log_encoder import encode_logs
        from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans

        for kind, found, encode in (
            ("spans", self.spans.get_finished_spans(), encode_spans),
            ("logs", self.logs.get_finished_logs(), encode_logs),
        ):
            if not found:
                continue
            message = encode(found)
            write(f"{name}_{kind}.bin", message.SerializeToString())
            write(f"{name}_{kind}.json", _otlp_json(message))


def _otlp_json(message: Any) -> Any:
    """OTLP's JSON: that of protobuf, but for ids, which are hexadecimal, and enums, which are numbers."""
    from google.protobuf.json_format import MessageToDict

    def fixed(value: Any) -> Any:
        if isinstance(value, list):
            return [fixed(item) for item in value]
        if not isinstance(value, dict):
            return value
        return {
            key: base64.b64decode(item).hex() if key in ("traceId", "spanId", "parentSpanId") else fixed(item)
            for key, item in value.items()
        }

    return fixed(MessageToDict(message, use_integers_for_enums=True))


def langsmith(url: str) -> None:
    """What the client sends to its server, from its own queue."""
    os.environ |= {"LANGSMITH_TRACING": "true", "LANGSMITH_API_KEY": "none", "LANGSMITH_ENDPOINT": url}
    import langsmith
    from langsmith.wrappers import wrap_openai

    client = _recording_client(url)
    metadata = {"workload": "support.refunds", "user_id": "user-17", "session_id": "conv-1"}
    wrapped = wrap_openai(openai_client(url), tracing_extra={"client": client, "metadata": metadata})
    wrapped.chat.completions.create(model="double-1", messages=MESSAGES)
    wrapped.chat.completions.create(model="double-1", messages=MESSAGES, tools=[TOOL])

    @langsmith.traceable(client=client, run_type="chain")
    def answer(question: str) -> str:
        return ANSWER if question else ""

    answer(QUESTION)
    time.sleep(1)
    write("langsmith.json", json.loads(json.dumps(client.runs, default=_plain)))


def langchain(url: str) -> None:
    """Runs of LangChain, whose messages are objects of its own, as its tracer hands them to LangSmith's client."""
    os.environ |= {"LANGSMITH_TRACING": "false"}
    from langchain_core.language_models.fake_chat_models import FakeMessagesListChatModel
    from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
    from langchain_core.tracers import LangChainTracer

    call = {"name": "order_status", "args": {"order": "A-1"}, "id": "call_1"}
    usage = {"input_tokens": 21, "output_tokens": 5, "total_tokens": 26}
    about = {"model_name": "double-1-2026", "finish_reason": "stop"}
    answers = [
        AIMessage(ANSWER, usage_metadata=usage, response_metadata=about),
        AIMessage("", tool_calls=[call], response_metadata=about),
    ]
    client = _recording_client(url)
    config = {"callbacks": [LangChainTracer(client=client)], "metadata": {"workload": "support.refunds"}}
    model = FakeMessagesListChatModel(responses=answers)
    for _ in answers:
        model.invoke([SystemMessage(SYSTEM), HumanMessage(QUESTION)], config=config)
    time.sleep(1)
    for run in client.runs:
        run["extra"].pop("runtime", None)  # what tells of this machine
    write("langchain.json", json.loads(json.dumps(client.runs, default=_plain)))


def _recording_client(url: str) -> Any:
    import langsmith

    class Client(langsmith.Client):
        runs: ClassVar[list[Any]] = []

        def create_run(self, name: str, inputs: Any, run_type: Any, **more: Any) -> None:
            self.runs.append({"name": name, "inputs": inputs, "run_type": run_type, **more})

        def update_run(self, run_id: Any, **more: Any) -> None:
            run = next(run for run in self.runs if run["id"] == run_id)
            run.update({key: value for key, value in more.items() if value is not None})

    return Client(api_url=url, api_key="none")


def langfuse(_: str) -> None:
    subprocess.run([sys.executable, __file__, "_langfuse"], check=True)


def _langfuse() -> None:
    """Its observations are spans of OpenTelemetry, its scores are JSON: as they are sent, and as the API's client reads
    them."""
    from langfuse import Langfuse

    recorded, url = _Exporters("shop"), serve()
    client = Langfuse(public_key="pk", secret_key="sk", host=url, tracer_provider=recorded.tracers)
    try:
        from langfuse import propagate_attributes

        with propagate_attributes(user_id="user-17", session_id="conv-1", metadata={"workload": "support.refunds"}):
            _generation(client)
    except ImportError:
        _generation(client)
    client.flush()
    recorded.write("langfuse_sdk")
    read = client.api.scores.get_many().data
    write("langfuse_scores.json", {"sent": Double.scores, "read": [json.loads(score.json()) for score in read]})


def _generation(client: Any) -> None:
    with (
        client.start_as_current_observation(as_type="span", name="handle"),
        client.start_as_current_observation(
            as_type="generation", name="answer", model="double-1", input=MESSAGES
        ) as generation,
    ):
        generation.update(
            output={"role": "assistant", "content": ANSWER},
            usage_details={"input": 21, "output": 5}, cost_details={"total": 0.001},
        )  # fmt: skip
        generation.score(name="output", value="Within 14 days.", data_type="CORRECTION", comment="The new terms.")
        generation.score(name="helpful", value=0, data_type="BOOLEAN")


def mlflow(_: str) -> None:
    import tempfile

    os.environ |= {"MLFLOW_ALLOW_FILE_STORE": "true", "MLFLOW_TRACKING_URI": "file://" + tempfile.mkdtemp()}
    import mlflow

    mlflow.set_experiment("shop")
    with mlflow.start_span("answer", span_type="CHAT_MODEL") as span:
        mlflow.update_current_trace(
            tags={"workload": "support.refunds"},
            metadata={"mlflow.trace.user": "user-17", "mlflow.trace.session": "conv-1"},
        )
        span.set_inputs({"model": "double-1", "messages": MESSAGES})
        span.set_outputs(chat_completion({}))
    mlflow.get_trace(span.trace_id, flush=True)
    mlflow.log_feedback(trace_id=span.trace_id, name="helpful", value=True, rationale="Right and short.")
    mlflow.log_expectation(trace_id=span.trace_id, name="expected_response", value="Within 14 days.")
    trace = json.loads(mlflow.get_trace(span.trace_id).to_json())
    for held in (trace["info"]["trace_metadata"], trace["info"]["tags"]):  # what tells of this machine
        for key in [key for key in held if key.startswith(("mlflow.source", "mlflow.artifact", "mlflow.user"))]:
            del held[key]
    write("mlflow.json", trace)


def cloudevents(_: str) -> None:
    """By both interfaces of the SDK, of version 1 and of version 2."""
    from datetime import UTC, datetime

    from cloudevents.core.bindings.kafka import to_binary_event, to_structured_event
    from cloudevents.core.v1.event import CloudEvent
    from cloudevents.v1.http import CloudEvent as CloudEvent1
    from cloudevents.v1.kafka import to_binary, to_structured

    native = {"model": "double-1", "messages": MESSAGES, "response": ANSWER}
    about = {"type": "com.example.answer", "source": "/shop", "workload": "support.refunds"}
    about["datacontenttype"] = "application/json"
    event1 = CloudEvent1(about, native)
    event2 = CloudEvent({**about, "id": "e1", "specversion": "1.0", "time": datetime.now(UTC)}, native)
    for name, message in (
        ("v1_binary", to_binary(event1)),
        ("v1_structured", to_structured(event1)),
        ("v2_binary", to_binary_event(event2)),
        ("v2_structured", to_structured_event(event2)),
    ):
        headers = {key: value.decode() for key, value in message.headers.items()}
        write(f"cloudevents_{name}.json", {"headers": headers, "value": message.value.decode()})


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json") if hasattr(value, "model_dump") else str(value)


RECORDINGS = (
    openai,
    anthropic,
    bedrock,
    gemini,
    litellm,
    opentelemetry,
    openinference,
    langsmith,
    langchain,
    langfuse,
    mlflow,
    cloudevents,
)

if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1].startswith("_"):
        globals()[sys.argv[1]](*sys.argv[2:4])
        sys.exit()
    address = serve()
    for recording in RECORDINGS:
        if not sys.argv[1:] or recording.__name__ in sys.argv[1:]:
            recording(address)
