"""A model server that answers everything at once with one completion: what is measured is what stands before it.

A request for a stream gets four megabytes. Started with `fails` it answers 500, with `closes` it reads a request and
closes the connection.
"""

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
CHUNK = b"data: " + json.dumps({"choices": [{"index": 0, "delta": {"content": "x" * 65_000}}]}).encode() + b"\n\n"
STREAM = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    + b"%x\r\n%s\r\n" % (len(CHUNK), CHUNK) * 64
    + b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
)
MODELS = json.dumps({"object": "list", "data": [{"id": "base", "object": "model"}]}).encode()


def _answer(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


class Fixed(asyncio.Protocol):
    """One connection. It reads requests whose bodies have a Content-Length."""

    behaviour = ""

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
            if head.startswith(b"get"):
                self.transport.write(_answer(MODELS))
            elif self.behaviour == "fails":
                self.transport.write(_answer(b"{}").replace(b"200 OK", b"500 Failed"))
            elif self.behaviour == "closes":
                self.transport.close()
                return
            else:
                asked = self.buffer[end + 4 : end + 4 + length]
                self.transport.write(STREAM if b'"stream": true' in asked else _answer(COMPLETION))
            self.buffer = self.buffer[end + 4 + length :]


async def main(port: int) -> None:
    """Serve until the process is ended."""
    server = await asyncio.get_running_loop().create_server(Fixed, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    Fixed.behaviour = "".join(sys.argv[2:])
    uvloop.run(main(int(sys.argv[1])))
