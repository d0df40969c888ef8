"""HTTP/1.1 and WebSocket from a client's side, as small as the player needs them: every byte of a close is seen."""

import asyncio
import base64
import errno
import itertools
import json
import os
import random

CONNECT_SECONDS = 10


class Refused(Exception):
    """An answer that is a refusal, in words."""


class Closed(Exception):
    """The connection ended. `is_silent`: before any byte of an answer to what was sent last."""

    def __init__(self, why, is_silent):
        super().__init__(f"{why}{' before any answer' if is_silent else ''}")
        self.is_silent = is_silent


# A node leads a connection where it led the last one of the same port, for two minutes if that one was never answered. A
# kernel soon takes such a port again; here none comes twice until all have been taken. Kernels take none of these themselves.
PORTS = range(10000, 30000)
_ports = itertools.cycle((*PORTS[(first := random.randrange(len(PORTS))) :], *PORTS[:first]))


async def connect(host, port):
    async with asyncio.timeout(CONNECT_SECONDS):
        for own in itertools.islice(_ports, len(PORTS)):
            try:
                return await asyncio.open_connection(host, port, limit=1 << 22, local_addr=("0.0.0.0", own))
            except OSError as why:
                if why.errno != errno.EADDRINUSE:
                    raise
        raise OSError(errno.EADDRINUSE, "every port is in use")


async def end(writer):
    writer.close()
    try:
        async with asyncio.timeout(2):
            await writer.wait_closed()
    except (OSError, TimeoutError):
        pass


async def head(reader):
    """The status and the headers of an answer."""
    text = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = text.rstrip().split("\r\n")
    headers = {name.lower(): value.strip() for name, value in (line.split(":", 1) for line in lines)}
    return int(first.split()[1]), headers


class Http:
    """One connection, which is used for one turn or for many."""

    def __init__(self, reader, writer):
        self._reader, self._writer = reader, writer
        self.is_over = False
        # The id of the turn in the last answer.
        self.named = None

    @classmethod
    async def open(cls, host, port):
        return cls(*await connect(host, port))

    async def close(self):
        await end(self._writer)

    async def turn(self, headers, body, keeps):
        """The output of a turn."""
        is_silent = True
        lines = {"host": "warmkey", "content-type": "application/json", "accept": "text/event-stream", **headers}
        lines |= {"content-length": str(len(body.encode())), "connection": "keep-alive" if keeps else "close"}
        text = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        try:
            self._writer.write(f"POST /v1/responses HTTP/1.1\r\n{text}\r\n{body}".encode())
            await self._writer.drain()
            status, answered = await head(self._reader)
            is_silent = False
            self.is_over = answered.get("connection", "").lower() == "close"
            self.named = answered.get("x-warmkey-turn")
            content = await self._content(answered)
        except (asyncio.IncompleteReadError, OSError) as why:
            self.is_over = True
            begun = isinstance(why, asyncio.IncompleteReadError) and why.partial
            raise Closed(type(why).__name__, is_silent and not begun) from why
        if status != 200:
            raise Refused(f"{status} {content[:300].decode(errors='replace')}")
        return completed(content)["output"]

    async def _content(self, answered):
        if "content-length" in answered:
            return await self._reader.readexactly(int(answered["content-length"]))
        content = b""
        while size := int(await self._reader.readuntil(b"\r\n"), 16):
            content += await self._reader.readexactly(size)
            await self._reader.readexactly(2)
        await self._reader.readline()
        return content


def completed(content):
    """The response that a stream ends with."""
    for line in reversed(content.decode().splitlines()):
        if line.startswith("data:") and '"response.completed"' in line:
            return json.loads(line[5:])["response"]
    raise Closed("stream without response.completed", False)


class WebSocket:
    """A WebSocket on which one turn is in flight at a time."""

    def __init__(self, reader, writer):
        self._reader, self._writer = reader, writer
        self._frame = None

    @classmethod
    async def open(cls, host, port, headers):
        """Shakes hands; a handshake that is told to come again does, as Codex's does."""
        for attempt in range(8):
            reader, writer = await connect(host, port)
            lines = {"host": "warmkey", "connection": "Upgrade", "upgrade": "websocket", "sec-websocket-version": "13", **headers}
            lines |= {"sec-websocket-key": base64.b64encode(os.urandom(16)).decode(), "openai-beta": "responses_websockets=2026-02-06"}
            text = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
            writer.write(f"GET /v1/responses HTTP/1.1\r\n{text}\r\n".encode())
            try:
                async with asyncio.timeout(30):
                    await writer.drain()
                    status, answered = await head(reader)
            except (asyncio.IncompleteReadError, OSError) as why:
                await end(writer)
                if attempt == 7:
                    raise Closed("handshake", True) from why
            else:
                if status == 101:
                    return cls(reader, writer)
                await end(writer)
                if status not in (429, 500, 502, 503) or attempt == 7:
                    raise Refused(f"handshake {status}")
            await asyncio.sleep(0.1 * 2**attempt)
        raise AssertionError("the last attempt returns or raises")

    async def close(self):
        if self._frame:
            # How the connection ended no longer matters.
            self._frame.add_done_callback(lambda frame: frame.cancelled() or frame.exception())
            self._frame.cancel()
        await end(self._writer)

    async def has_ended(self):
        """Whether the other side has closed it since the last turn. Pings on the way are answered."""
        while True:
            self._frame = self._frame or asyncio.create_task(self._read())
            done, _ = await asyncio.wait([self._frame], timeout=0)
            if not done:
                return False
            try:
                kind, data = self._take()
            except (asyncio.IncompleteReadError, OSError):
                return True
            if kind == 8:
                return True
            if kind == 9:
                self._write(10, data)

    async def turn(self, text):
        """The response that a request is answered with."""
        is_silent = True
        try:
            self._write(1, text.encode())
            await self._writer.drain()
            while True:
                self._frame = self._frame or asyncio.create_task(self._read())
                await asyncio.wait([self._frame])
                kind, data = self._take()
                if kind == 9:
                    self._write(10, data)
                elif kind == 8:
                    raise Closed(f"close {int.from_bytes(data[:2])}", is_silent)
                elif kind == 1:
                    event = json.loads(data)
                    if event["type"] == "error":
                        again = event.get("error", {}).get("code") == "websocket_connection_limit_reached"
                        if again and is_silent:
                            raise Closed("told to connect again", True)
                        raise Refused(json.dumps(event)[:300])
                    is_silent = False
                    if event["type"] == "response.completed":
                        return event["response"]
                    if event["type"] in ("response.failed", "response.incomplete"):
                        raise Refused(json.dumps(event)[:300])
        except (asyncio.IncompleteReadError, OSError) as why:
            raise Closed(type(why).__name__, is_silent) from why

    def _take(self):
        frame, self._frame = self._frame, None
        return frame.result()

    async def _read(self):
        first, second = await self._reader.readexactly(2)
        size = second & 127
        if size > 125:
            size = int.from_bytes(await self._reader.readexactly(2 if size == 126 else 8))
        return first & 15, await self._reader.readexactly(size)

    def _write(self, kind, data):
        size = len(data)
        length = bytes([128 | size]) if size < 126 else bytes([254]) + size.to_bytes(2) if size < 65536 else bytes([255]) + size.to_bytes(8)
        mask = os.urandom(4)
        pad = (mask * (size // 4 + 1))[:size]
        masked = (int.from_bytes(data) ^ int.from_bytes(pad)).to_bytes(size) if size else b""
        self._writer.write(bytes([128 | kind]) + length + mask + masked)
