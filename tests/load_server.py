"""A small server in a process of its own, in TorchServe's place, that can be told to misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Manners:
    """How it answers.

    Attributes:
        delay: Seconds before each answer.
        statuses: Status of the 1st, 2nd, ... request, from the front again.
        answer: The body of an answer; "echo" stands for what says which body was sent.
        wrong_every: Each so-many-th answer says something else; 0 for none.
        jitter: Added to the answer's number in turn, as other batches give other last digits.
        stall_at: Seconds after the first request from which nothing is answered ...
        stall: ... for so many seconds.
        silent: Accept and never answer.
        cut: Close in the middle of each answer.
        drip: Send an answer byte by byte, one each 0.1 s.
    """

    delay: float = 0.0
    statuses: tuple[int, ...] = (200,)
    answer: str = '{"label": "a", "score": 0.5}'
    wrong_every: int = 0
    jitter: float = 0.0
    stall_at: float = 0.0
    stall: float = 0.0
    silent: bool = False
    cut: bool = False
    drip: bool = False


class _Server:
    def __init__(self, manners: Manners) -> None:
        self.manners, self.requests, self.began = manners, 0, 0.0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                lines = [line.split(b":", 1) for line in head.split(b"\r\n") if b":" in line]
                headers = {name.strip().lower(): value.strip() for name, value in lines}
                body = await reader.readexactly(int(headers[b"content-length"]))
                await self.answer(body, headers, writer)
        writer.close()

    async def answer(self, body: bytes, headers: dict[bytes, bytes], writer: asyncio.StreamWriter) -> None:
        manners, number = self.manners, self.requests
        if not self.began:
            self.began = time.monotonic()
            print("asked", flush=True)
        self.requests += 1
        if manners.silent:
            await asyncio.sleep(3600)
        stalled_until = self.began + manners.stall_at + manners.stall
        if manners.stall and self.began + manners.stall_at <= time.monotonic() < stalled_until:
            await asyncio.sleep(stalled_until - time.monotonic())
        if manners.delay:
            await asyncio.sleep(manners.delay)
        status, answer = manners.statuses[number % len(manners.statuses)], manners.answer.encode()
        if manners.answer == "echo":
            value = len(body) / 10 + manners.jitter * (number % 3)
            told = {"score": value, "type": headers.get(b"content-type", b"").decode()}
            answer = json.dumps({**told, "token": headers.get(b"authorization", b"").decode()}).encode()
        if manners.wrong_every and number % manners.wrong_every == manners.wrong_every - 1:
            answer = b'{"score": 123.0, "type": "", "token": ""}'
        if status != 200:
            answer = json.dumps({"code": status, "message": "no"}).encode()
        whole = f"HTTP/1.1 {status} X\r\nContent-Length: {len(answer)}\r\n\r\n".encode() + answer
        if manners.cut:
            writer.write(whole[:-3])
            raise ConnectionError
        for piece in [bytes([byte]) for byte in whole] if manners.drip else [whole]:
            writer.write(piece)
            if manners.drip:
                await writer.drain()
                await asyncio.sleep(0.1)


async def _main(manners: Manners) -> None:
    server = await asyncio.start_server(_Server(manners).serve, "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


@contextlib.contextmanager
def load_server(manners: Manners | None = None) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Its address and its process, until the block ends; the process prints a line at the first request."""
    told = json.dumps(asdict(manners or Manners()))
    process = subprocess.Popen([sys.executable, str(Path(__file__)), told], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}", process
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    told = json.loads(sys.argv[1])
    asyncio.run(_main(Manners(**{**told, "statuses": tuple(told["statuses"])})))
