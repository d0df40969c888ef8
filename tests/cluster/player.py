"""Plays sessions as clients do, until it is told to end, and says what became of every turn.

    player.py --url URL --token TOKEN --out FILE [--sessions N] [--long SECONDS]

Sessions are of four kinds: a connection for each turn, a kept connection, a WebSocket, and streams of LONG seconds. It ends on SIGTERM, after the turns in flight, and writes FILE. While it plays it writes the number
of turns into FILE.turns, twice a second.

A turn is lost if its client was told of a failure, or got no end. Closing a connection between two turns loses
nothing: clients open another. A request that meets the end of a kept connection before any byte of an answer is sent once
more, as every HTTP client does.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import time
import urllib.parse
import uuid

from wire import Closed, Http, Refused, WebSocket

PAUSE = (0.2, 0.8)
LONGEST_TURN = 180 * float(os.environ.get("WARMKEY_SLOWNESS", "1"))
# The test is about connections. Longer histories would only add work for the machine.
MOST_ITEMS = 60


class Session:
    """One session: what was said in it, and what was lost."""

    def __init__(self, kind, options, number):
        self.kind, self.options = kind, options
        self.id = str(uuid.uuid4())
        self.turns, self.lost, self.again = 0, [], 0
        self.named = None
        self.history = []
        self.text = f"Session {number} of a kind {kind}. " + "It begins with much that does not change. " * 60
        self.socket = self.http = None

    def said(self):
        """The next thing that is said."""
        slow = f"SLOW:{self.options.long * 2}x500ms " if self.kind == "long" else ""
        return {"type": "message", "role": "user", "content": f"{slow}{self.text}Step {self.turns}."}

    def body(self, items, **more):
        plain = {"model": "gpt-5.4", "stream": True, "store": False, "prompt_cache_key": self.id, "input": items}
        return json.dumps(plain | more)

    async def play(self, over):
        while not over.is_set():
            item = self.said()
            began = time.time()
            try:
                async with asyncio.timeout(LONGEST_TURN):
                    output = await (self.socket_turn(item) if self.kind == "socket" else self.http_turn(item))
                self.turns += 1
                self.history += [item, *output]
                if len(self.history) > MOST_ITEMS:
                    await self.start_over()
            except (Closed, Refused, OSError, TimeoutError) as why:
                self.lost.append({"at": began, "until": time.time(), "kind": self.kind, "why": f"{type(why).__name__}: {why}"})
                await self.close()
            with_bound = asyncio.wait_for(over.wait(), random.uniform(*PAUSE))
            try:
                await with_bound
            except TimeoutError:
                pass
        await self.close()

    async def start_over(self):
        """Forgets what was said; the session stays the same."""
        self.history = []
        await self.close()

    async def close(self):
        for one in (self.socket, self.http):
            if one:
                await one.close()
        self.socket = self.http = None

    def headers(self):
        return {"authorization": f"Bearer {self.options.token}", "session-id": self.id}

    async def http_turn(self, item):
        body = self.body([*self.history, item])
        keeps = self.kind == "kept"
        is_used = bool(self.http)
        self.http = self.http or await Http.open(self.options.host, self.options.port)
        try:
            try:
                output = await self.http.turn(self.headers(), body, keeps)
            except Closed as closed:
                if not (is_used and closed.is_silent):
                    raise
                self.again += 1
                await self.close()
                self.http = await Http.open(self.options.host, self.options.port)
                output = await self.http.turn(self.headers(), body, keeps)
            self.named = self.http.named
            return output
        finally:
            if not keeps or (self.http and self.http.is_over):
                await self.http.close()
                self.http = None

    async def socket_turn(self, item):
        if self.socket and await self.socket.has_ended():
            await self.close()
        for attempt in (1, 2):
            is_new = self.socket is None
            if is_new:
                self.socket = await WebSocket.open(self.options.host, self.options.port, self.headers())
                self.socket.previous = None
            items = [item] if self.socket.previous else [*self.history, item]
            more = {"previous_response_id": self.socket.previous} if self.socket.previous else {}
            try:
                response = await self.socket.turn(self.body(items, type="response.create", **more))
            except Closed as closed:
                # It closed between two turns, while this one was on its way: Codex opens another with its full input.
                if attempt == 2 or not closed.is_silent:
                    raise
                self.again += 1
                await self.close()
                continue
            self.socket.previous = response["id"]
            return response["output"]
        raise AssertionError("two attempts are all")


async def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True)
    parser.add_argument("--token", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--sessions", type=int, default=30)
    parser.add_argument("--long", type=int, default=60)
    options = parser.parse_args()
    url = urllib.parse.urlsplit(options.url)
    options.host, options.port = url.hostname, url.port
    over = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, over.set)
    kinds = ("new", "kept", "socket", "long")
    sessions = [Session(kinds[number % 4], options, number) for number in range(options.sessions)]
    tell = asyncio.create_task(tell_turns(sessions, options.out))
    await asyncio.gather(*(session.play(over) for session in sessions))
    tell.cancel()
    result = {
        "turns": {kind: sum(one.turns for one in sessions if one.kind == kind) for kind in kinds},
        "again": sum(one.again for one in sessions),
        "lost": [lost | {"session": one.id} for one in sessions for lost in one.lost],
        "sessions": [one.id for one in sessions],
        # The id of the turn in a session's last HTTP answer.
        "named": {one.id: one.named for one in sessions if one.named},
    }
    write(options.out, json.dumps(result))


async def tell_turns(sessions, out):
    while True:
        write(f"{out}.turns", json.dumps({one.id: one.turns for one in sessions}))
        await asyncio.sleep(0.5)


def write(path, text):
    """As a whole: whoever reads it meanwhile reads the one before."""
    with open(f"{path}.new", "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(f"{path}.new", path)


if __name__ == "__main__":
    asyncio.run(main())
