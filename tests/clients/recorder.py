"""A proxy that records every byte: HTTP requests with their answers, and messages of WebSockets.

The recorder alters nothing, and leaves the judging to its callers.
"""

import contextlib
import hashlib
import json
import re
import socket
import threading

from parts import check

TEXT, CLOSE = 1, 8


class Messages:
    """The frames of one direction of a WebSocket, read from bytes that come in pieces."""

    def __init__(self):
        self.texts = []
        self.close = None
        self._bytes = bytearray()
        self._part = b""

    def feed(self, data):
        self._bytes += data
        while frame := self._frame():
            head, payload = frame
            check(head & 0x70 == 0, f"a frame with bits that nobody agreed on: {head:#x}")
            if head & 15 == CLOSE:
                self.close = int.from_bytes(payload[:2], "big") or 1005
            elif head & 15 <= TEXT:
                self._part += payload
                if head & 0x80:
                    self.texts.append(self._part)
                    self._part = b""

    def _frame(self):
        """The next whole frame: its first byte and its payload."""
        seen = self._bytes
        if len(seen) < 2:
            return None
        length, at = seen[1] & 0x7F, 2
        if length > 125:
            size = 2 if length == 126 else 8
            length, at = int.from_bytes(seen[2 : 2 + size], "big"), 2 + size
        mask = seen[at : at + 4] if seen[1] & 0x80 else b""
        at += len(mask)
        if (seen[1] & 0x80 and len(mask) < 4) or len(seen) < at + length:
            return None
        head, payload = seen[0], bytes(seen[at : at + length])
        del seen[: at + length]
        return head, xor(payload, mask) if mask else payload


def xor(payload, mask):
    spread = (bytes(mask) * (len(payload) // 4 + 1))[: len(payload)]
    return (int.from_bytes(payload, "big") ^ int.from_bytes(spread, "big")).to_bytes(len(payload), "big")


class Exchange:
    """A request and its answer so far, or a WebSocket with the messages of both directions."""

    def __init__(self, head, body):
        session = re.search(rb"^session-id: *(\S+)\r$", head, re.M | re.I)
        self.session = session and session[1].decode()
        parent = re.search(rb"^traceparent: *(\S+)\r$", head, re.M | re.I)
        self.traceparent = parent and parent[1].decode()
        self.wants_socket = re.search(rb"^upgrade: *websocket\r$", head, re.M | re.I) is not None
        self.is_turn = head.startswith(b"POST ")
        # The method and the path, without the ids in it.
        self.asked = re.sub(r"resp_\w+", "resp_#", head.split(b" HTTP/", 1)[0].decode())
        self.body = body
        self.answer = b""
        # Whether the whole head of an answer has come.
        self.is_answered = threading.Event()
        self.said, self.received = Messages(), Messages()

    def take(self, data):
        """Adds bytes of the answer."""
        if self.is_answered.is_set() and self.is_socket:
            self.received.feed(data)
            return
        self.answer += data
        if self.is_answered.is_set() or b"\r\n\r\n" not in self.answer:
            return
        if self.is_socket:
            head, end, rest = self.answer.partition(b"\r\n\r\n")
            self.answer = head + end
            self.received.feed(rest)
        self.is_answered.set()

    @property
    def status(self):
        found = re.match(rb"HTTP/1.1 (\d+) ", self.answer)
        return found and int(found[1])

    @property
    def is_socket(self):
        return self.wants_socket and self.status == 101

    @property
    def served_by(self):
        found = re.search(rb"^x-served-by: *(\S+)\r$", self.answer, re.M | re.I)
        return found and found[1].decode()

    @property
    def turns(self):
        """The bodies of the turns that the client sent."""
        if self.is_turn:
            return [self.body]
        return [text for text in list(self.said.texts) if json.loads(text).get("type") == "response.create"]

    @property
    def text(self):
        """The body so far, without the framing of its chunks. A chunk may end inside an event."""
        head, _, rest = self.answer.partition(b"\r\n\r\n")
        if not re.search(rb"^transfer-encoding: *chunked\r?$", head, re.M | re.I):
            return rest
        text = b""
        while found := re.match(rb"(?:\r\n)?([0-9a-fA-F]+)[^\r\n]*\r\n", rest):
            end = found.end() + int(found[1], 16)
            text, rest = text + rest[found.end() : end], rest[end:]
        return text

    def events(self, kind):
        """The payloads of the events of one kind that have come so far."""
        if self.is_socket:
            events = (json.loads(text) for text in list(self.received.texts))
            return [event for event in events if event.get("type") == kind]
        found = re.findall(rb"^event: *" + kind.encode() + rb"\r?\ndata: *(.*)\r?\n", self.text, re.M)
        return [json.loads(payload) for payload in found]


def sha256(body):
    return hashlib.sha256(body).hexdigest()


class Recorder:
    """Listens before an address, passes every byte as it comes, and keeps the exchanges in order."""

    def __init__(self, towards):
        self.exchanges = []
        self.towards = towards
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = "127.0.0.1:%d" % self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            client, _ = self._listener.accept()
            threading.Thread(target=self._pass, args=(client,), daemon=True).start()

    def _pass(self, client):
        """Serves one connection until a side is gone; a thread of its own passes the answers back."""
        asked = []
        with client, socket.create_connection(self.towards, 5) as server, contextlib.suppress(OSError):
            server.settimeout(None)
            for side in (client, server):
                side.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._back, args=(server, client, asked), daemon=True).start()
            came = client.makefile("rb")
            while head := came.readline():
                while not head.endswith(b"\r\n\r\n") and (line := came.readline()):
                    head += line
                check(b"\r\ntransfer-encoding:" not in head.lower(), "the recorder reads no chunked request")
                length = re.search(rb"^content-length: *(\d+)\r$", head, re.M | re.I)
                exchange = Exchange(head, came.read(int(length[1]) if length else 0))
                asked.append(exchange)
                self.exchanges.append(exchange)
                server.sendall(head + exchange.body)
                if exchange.wants_socket and exchange.is_answered.wait(30) and exchange.is_socket:
                    while data := came.read1(65536):
                        exchange.said.feed(data)
                        server.sendall(data)
            self._end(client, server)

    def _back(self, server, client, asked):
        with contextlib.suppress(OSError):
            while data := server.recv(65536):
                asked[-1].take(data)
                client.sendall(data)
        self._end(client, server)

    @staticmethod
    def _end(*sides):
        for side in sides:
            with contextlib.suppress(OSError):
                side.shutdown(socket.SHUT_RDWR)
