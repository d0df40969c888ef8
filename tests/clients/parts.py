"""What stands around a real client in its tests: child processes, and a pass-through that sees every byte.

Nothing here knows the client or judges an answer. Every wait has a bound, every child is ended by its own id.
"""

import contextlib
import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import tempfile
import threading
import time
import urllib.request


class Failure(Exception):
    """A check that did not hold, or a wait that passed its bound."""


def check(holds, what):
    if not holds:
        raise Failure(what)


def wait_for(what, probe, seconds=15):
    """Asks `probe` until it answers something true, which is returned; fails with what it said last."""
    until = time.monotonic() + seconds
    while not (answer := probe()):
        if time.monotonic() > until:
            raise Failure(f"no {what} within {seconds} s (last: {answer!r})")
        time.sleep(0.02)
    return answer


def get(url):
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=5) as answer:
        return answer.read()


class Parts:
    """The child processes of one run and their scratch folder; leaving it ends and removes all of them."""

    def __enter__(self):
        self._folder = tempfile.TemporaryDirectory(prefix="warmkey-client-")
        self.folder = self._folder.name
        self._children = {}
        return self

    def __exit__(self, *_):
        for child in self._children.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait(5)
        self._folder.cleanup()

    def path(self, name, text=None):
        path = os.path.join(self.folder, name)
        if text is not None:
            with open(path, "w", encoding="utf-8") as file:
                file.write(text)
        return path

    def start(self, name, command, environment=None, output=None, **options):
        """Starts a child in a process group of its own that also ends when this process does, however it ends."""
        log = open(self.path(f"{name}.log"), "wb")
        child = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *command],
            stdin=subprocess.DEVNULL,
            stdout=output or log,
            stderr=log,
            start_new_session=True,
            env=environment,
            **options,
        )
        log.close()
        self._children[name] = child
        return child

    def log(self, name):
        with open(self.path(f"{name}.log"), encoding="utf-8", errors="replace") as log:
            return log.read()

    def announced(self, name, pattern, seconds=20):
        """What the child called `name` said of its addresses when it was ready."""

        def said():
            check(self._children[name].poll() is None, f"{name} ended with {self._children[name].returncode}:\n{self.log(name)}")
            return re.search(pattern, self.log(name))

        return wait_for(f"line of {name} that it is ready", said, seconds).groups()

    def signal(self, name, number):
        self._children[name].send_signal(number)

    def kill(self, name):
        self._children[name].send_signal(signal.SIGKILL)
        self._children[name].wait(5)

    def tails(self, lines=40):
        for name in self._children:
            kept = "\n  ".join(self.log(name).splitlines()[-lines:])
            yield f"-- {name}, the last {lines} lines\n  {kept}"


def start_redis(parts):
    """A Redis of our own: a port can be taken between asking and binding, so the one that answers is asked for its id."""
    for _ in range(3):
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        options = ["--bind", "127.0.0.1", "--port", str(port), "--dir", parts.folder, "--save", "", "--appendonly", "no"]
        child = parts.start("redis", ["redis-server", *options])

        def is_ours():
            if child.poll() is not None:
                return "ended"
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1) as connection:
                connection.settimeout(1)
                connection.sendall(b"INFO server\r\n")
                return "ours" if f"process_id:{child.pid}\r" in connection.recv(65536).decode() else None

        if wait_for("answer from redis", is_ours) == "ours":
            return f"redis://127.0.0.1:{port}/"
    raise Failure(f"redis did not start:\n{parts.log('redis')}")


def start_haproxy(parts, replicas):
    """Round robin over the replicas, no affinity; every answer says in x-served-by who gave it."""
    servers = ""
    for name, address, admin in replicas:
        host, port = admin.split(":")
        servers += f"    server {name} {address} check addr {host} port {port}\n"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.set_inheritable(True)
        config = f"""
defaults
    mode http
    timeout connect 2s
    timeout client 120s
    timeout server 120s
    timeout check 1s
    retries 3
    option redispatch 1
    default-server inter 200ms fall 1 rise 1
frontend clients
    bind fd@{listener.fileno()}
    default_backend replicas
backend replicas
    balance roundrobin
    option httpchk GET /readyz
    http-response set-header x-served-by %s
{servers}"""
        parts.start("haproxy", ["haproxy", "-db", "-f", parts.path("haproxy.cfg", config)], pass_fds=[listener.fileno()])
        return listener.getsockname()[:2]


class Exchange:
    """A request as the client sent it, and what has come back so far."""

    def __init__(self, head, body):
        session = re.search(rb"^session-id: *(\S+)\r$", head, re.M | re.I)
        self.session = session and session[1].decode()
        self.body = body
        self.body_sha256 = hashlib.sha256(body).hexdigest()
        self.answer = b""

    @property
    def served_by(self):
        found = re.search(rb"^x-served-by: *(\S+)\r$", self.answer, re.M | re.I)
        return found and found[1].decode()

    def events(self, kind):
        """The payloads of the server-sent events of one kind that have come so far."""
        found = re.findall(rb"^event: *" + kind.encode() + rb"\r?\ndata: *(.*)\r?\n", self.answer, re.M)
        return [json.loads(payload) for payload in found]


class Recorder:
    """Stands between the client and the balancer, passes every byte as it comes and keeps the exchanges in order."""

    def __init__(self, towards):
        self.exchanges = []
        self._towards = towards
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = "127.0.0.1:%d" % self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            client, _ = self._listener.accept()
            threading.Thread(target=self._pass, args=(client,), daemon=True).start()

    def _pass(self, client):
        """One connection: requests forth here, answers back in a thread of their own, until either side is gone."""
        asked = []
        with client, socket.create_connection(self._towards, 5) as balancer, contextlib.suppress(OSError):
            balancer.settimeout(None)
            threading.Thread(target=self._back, args=(balancer, client, asked), daemon=True).start()
            came = client.makefile("rb")
            while head := came.readline():
                while not head.endswith(b"\r\n\r\n") and (line := came.readline()):
                    head += line
                check(b"\r\ntransfer-encoding:" not in head.lower(), "the recorder reads no chunked request")
                length = re.search(rb"^content-length: *(\d+)\r$", head, re.M | re.I)
                asked.append(Exchange(head, came.read(int(length[1]) if length else 0)))
                self.exchanges.append(asked[-1])
                balancer.sendall(head + asked[-1].body)
            self._end(client, balancer)

    def _back(self, balancer, client, asked):
        with contextlib.suppress(OSError):
            while data := balancer.recv(65536):
                asked[-1].answer += data
                client.sendall(data)
        self._end(client, balancer)

    @staticmethod
    def _end(*sides):
        for side in sides:
            with contextlib.suppress(OSError):
                side.shutdown(socket.SHUT_RDWR)
