"""The demo's model server: OpenAI's chat completions over one small model, and vLLM's routes to load adapters.

    python -m retuned.daemon.demo.server --base FOLDER --port N

Answers are greedy, whatever `temperature` is. Requests that wait for the same model are answered in one batch.
"""

import argparse
import asyncio
import sys
import time
import uuid
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
import torch
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from retuned.consumers.errors import RetunedError
from retuned.retrain.training.adapter import load_adapter
from retuned.retrain.training.base_model import check_base_model, choose_dtype, load_model, load_tokenizer

BASE = "base"
GATHER_SECONDS = 0.02
Body = TypeVar("Body")


class Chat(msgspec.Struct, frozen=True):
    """The fields of a chat completion request that this server reads."""

    model: str
    messages: Annotated[list[dict[str, str]], msgspec.Meta(min_length=1)]
    max_tokens: Annotated[int, msgspec.Meta(ge=1, le=1_024)] = 128
    stream: Literal[False] | None = None


class Completion(msgspec.Struct, frozen=True):
    """A request for the likeliest next tokens after prompts of token ids."""

    model: str
    prompt: list[list[int]]
    max_tokens: Literal[1]
    logprobs: int


class Adapter(msgspec.Struct, frozen=True):
    """A request to load or unload an adapter."""

    lora_name: str
    lora_path: str = ""


class Models:
    """A base model and versions of it, each with its adapter merged into a copy of the weights.

    On a CPU, a merged model answers as fast as the base model; an adapter beside the weights takes a third longer.

    Raises:
        RetunedError: the folder holds no model.
    """

    def __init__(self, base: Path) -> None:
        check_base_model(base, "--base")
        self.folders = {BASE: str(base)}
        self._dtype, self._tokenizer = choose_dtype("auto"), load_tokenizer(base)
        self._tokenizer.padding_side = "left"
        self._models = {BASE: load_model(base, self._dtype)}

    def load(self, name: str, folder: str) -> None:
        """Loads an adapter in PEFT's format under a name.

        Raises:
            Exception: the folder holds no adapter of this base model.
        """
        base = load_model(Path(self.folders[BASE]), self._dtype)
        self._models[name] = load_adapter(base, Path(folder)).merge_and_unload()
        self.folders[name] = folder

    def unload(self, name: str) -> None:
        """Frees the memory of a version."""
        del self.folders[name], self._models[name]

    @torch.inference_mode()
    def answers(self, name: str, chats: Sequence[Chat]) -> list[dict[str, Any]]:
        """Answers all requests with one model, in one batch; returns the choice and the usage of each."""
        ids = [
            self._tokenizer.apply_chat_template(
                chat.messages, add_generation_prompt=True, tokenize=True, return_dict=False
            )
            for chat in chats
        ]
        model, pad = self._models[name], self._tokenizer.pad_token_id
        batch = self._tokenizer.pad({"input_ids": ids}, return_tensors="pt")
        limit = max(chat.max_tokens for chat in chats)
        rows = model.generate(**batch, max_new_tokens=limit, do_sample=False, pad_token_id=pad)
        end = model.generation_config.eos_token_id
        ends = set(end if isinstance(end, list) else [end])
        found = []
        for chat, prompt, row in zip(chats, ids, rows[:, batch["input_ids"].shape[1] :].tolist(), strict=True):
            length = next((place for place, token in enumerate(row, 1) if token in ends), len(row))
            tokens = row[: min(length, chat.max_tokens)]
            message = {"role": "assistant", "content": self._tokenizer.decode(tokens, skip_special_tokens=True).strip()}
            reason = "stop" if tokens[-1] in ends else "length"
            usage = {"prompt_tokens": len(prompt), "completion_tokens": len(tokens)}
            found.append({"choices": [{"index": 0, "message": message, "finish_reason": reason}], "usage": usage})
        return found

    @torch.inference_mode()
    def next_tokens(self, name: str, prompts: Sequence[list[int]], count: int) -> list[dict[str, float]]:
        """Returns the likeliest tokens after each prompt, with their log-probabilities in nats."""
        found = []
        for prompt in prompts:
            logits = self._models[name](input_ids=torch.tensor([prompt])).logits[0, -1]
            values, ids = logits.float().log_softmax(-1).topk(count)
            found.append({f"token_id:{id}": value for id, value in zip(ids.tolist(), values.tolist(), strict=True)})
        return found


class Server:
    """The routes. One chat at a time computes, and answers those that wait for the same model."""

    def __init__(self, models: Models) -> None:
        self.models = models
        self._waiting: defaultdict[str, list[tuple[Chat, asyncio.Future[dict[str, Any]]]]] = defaultdict(list)
        self._computing = asyncio.Lock()

    def app(self) -> Starlette:
        """Returns the ASGI application."""
        routes = [
            Route("/v1/models", self._list),
            Route("/v1/chat/completions", self._chat, methods=["POST"]),
            Route("/v1/completions", self._complete, methods=["POST"]),
            Route("/v1/load_lora_adapter", self._load, methods=["POST"]),
            Route("/v1/unload_lora_adapter", self._unload, methods=["POST"]),
        ]
        return Starlette(routes=routes, exception_handlers={HTTPException: _refusal})

    async def _list(self, _: Request) -> Response:
        listed = [
            {"id": name, "object": "model", "root": root, "parent": None if name == BASE else BASE}
            for name, root in self.models.folders.items()
        ]
        return JSONResponse({"object": "list", "data": listed})

    async def _chat(self, request: Request) -> Response:
        chat = await _body(request, Chat)
        self._check(chat.model)
        head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": "chat.completion", "created": int(time.time())}
        return JSONResponse({**head, "model": chat.model, **await self._answer(chat)})

    async def _answer(self, chat: Chat) -> dict[str, Any]:
        mine: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting[chat.model].append((chat, mine))
        async with self._computing:
            if not mine.done():
                await asyncio.sleep(GATHER_SECONDS)
                batch = self._waiting.pop(chat.model)
                try:
                    answers = await asyncio.to_thread(self.models.answers, chat.model, [one for one, _ in batch])
                except Exception as error:  # noqa: BLE001  (each request of the batch gets it)
                    for _, result in batch:
                        result.set_exception(error)
                else:
                    for (_, result), answer in zip(batch, answers, strict=True):
                        result.set_result(answer)
        return await mine

    async def _complete(self, request: Request) -> Response:
        asked = await _body(request, Completion)
        self._check(asked.model)
        tops = await asyncio.to_thread(self.models.next_tokens, asked.model, asked.prompt, asked.logprobs)
        choices = [{"index": index, "logprobs": {"top_logprobs": [top]}} for index, top in enumerate(tops)]
        return JSONResponse({"object": "text_completion", "model": asked.model, "choices": choices})

    async def _load(self, request: Request) -> Response:
        adapter = await _body(request, Adapter)
        if adapter.lora_name in self.models.folders:
            raise HTTPException(400, f"The lora adapter '{adapter.lora_name}' has already been loaded.")
        try:
            await asyncio.to_thread(self.models.load, adapter.lora_name, adapter.lora_path)
        except Exception as error:
            raise HTTPException(400, f"Loading lora {adapter.lora_name} failed: {error}") from error
        return Response(f"Success: LoRA adapter '{adapter.lora_name}' added successfully.")

    async def _unload(self, request: Request) -> Response:
        name = (await _body(request, Adapter)).lora_name
        if name == BASE or name not in self.models.folders:
            raise HTTPException(404, f"The lora adapter '{name}' cannot be found.")
        async with self._computing:
            self.models.unload(name)
        return Response(f"Success: LoRA adapter '{name}' removed successfully.")

    def _check(self, model: str) -> None:
        if model not in self.models.folders:
            raise HTTPException(404, f"The model `{model}` does not exist.")


async def _body(request: Request, kind: type[Body]) -> Body:
    try:
        return msgspec.json.decode(await request.body(), type=kind)
    except msgspec.DecodeError as error:
        raise HTTPException(400, str(error)) from error


def _refusal(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": {"message": error.detail, "code": error.status_code}}, error.status_code)


def main() -> None:
    """Loads the base model and serves it on the loopback address until a signal comes."""
    parser = argparse.ArgumentParser(prog="python -m retuned.daemon.demo.server")
    parser.add_argument("--base", type=Path, required=True, help="folder of the base model")
    parser.add_argument("--port", type=int, required=True, help="on 127.0.0.1")
    arguments = parser.parse_args()
    try:
        models = Models(arguments.base)
    except RetunedError as error:
        sys.exit(str(error))
    uvicorn.run(Server(models).app(), host="127.0.0.1", port=arguments.port, log_level="warning")


if __name__ == "__main__":
    main()
