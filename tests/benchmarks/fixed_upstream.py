"""A model server that answers everything at once with one completion: what is measured is what stands before it."""

import asyncio
import json
import sys

import uvloop

COMPLETION = json.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1_790_000_000,
        "model": "base",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "You can return a parcel within 30 days. " * 5},
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 90, "completion_tokens": 50, "total_tokens": 140},
    }
).encode()
MODELS = json.dumps({"object": "list", "data": [{"id": "base", "object": "model"}]}).encode()


def _answer(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


class Fixed(asyncio.Protocol):
    """One connection. It reads requests whose bodies have a Content-Length."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport, self.buffer = transport, b""

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            head = self.buffer[:end].lower()
            place = head.find(b"\r\ncontent-length:")
            length = int(head[place + 17 :].split(b"\r\n", 1)[0]) if place >= 0 else 0
            if len(self.buffer) < end + 4 + length:
                return
            self.transport.write(_answer(MODELS if head.startswith(b"get") else COMPLETION))
            self.buffer = self.buffer[end + 4 + length :]


async def main(port: int) -> None:
    """Serve until the process is ended."""
    server = await asyncio.get_running_loop().create_server(Fixed, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
