"""The surroundings of a real client: child processes, a Redis, a balancer without affinity.

This module knows no client and judges no answer. Every wait has a bound, and every child is ended
by its own id.
"""

import contextlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import tempfile
import threading
import time
import urllib.request


class Failure(Exception):
    """A check that failed, or a wait that passed its bound."""


def check(holds, what):
    if not holds:
        raise Failure(what)


def wait_for(what, probe, seconds=15):
    """Asks `probe` until it returns something true, and returns that. Fails with the last answer."""
    until = time.monotonic() + seconds
    while not (answer := probe()):
        if time.monotonic() > until:
            raise Failure(f"no {what} within {seconds} s (last: {answer!r})")
        time.sleep(0.02)
    return answer


def get(url, order=None, method=None):
    """The body of an answer. An `order` is posted as JSON."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    body = None if order is None else json.dumps(order).encode()
    request = urllib.request.Request(url, body, method=method)
    with opener.open(request, timeout=5) as answer:
        return answer.read()


class Parts:
    """The child processes of one run and their scratch folder. Leaving the context ends all."""

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

    def start(self, name, command, environment=None, feed=subprocess.DEVNULL, output=None, **options):
        """Starts a child in a process group of its own. The child ends with this process.

        A later child of the same name continues the same log.
        """
        log = open(self.path(f"{name}.log"), "ab")
        child = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *command],
            stdin=feed,
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
        """The addresses that the child `name` printed when it was ready."""

        def said():
            check(self._children[name].poll() is None, f"{name} ended with {self._children[name].returncode}:\n{self.log(name)}")
            return re.search(pattern, self.log(name))

        return wait_for(f"line of {name} that it is ready", said, seconds).groups()

    def signal(self, name, number):
        self._children[name].send_signal(number)

    def kill(self, name):
        self.signal(name, signal.SIGKILL)
        self._children[name].wait(5)

    def status(self, name):
        """The exit code of the child `name`, or None while it runs."""
        return self._children[name].poll()

    def tails(self, lines=40):
        for name in self._children:
            kept = "\n  ".join(self.log(name).splitlines()[-lines:])
            yield f"-- {name}, the last {lines} lines\n  {kept}"


def free_port():
    """A port below the ephemeral ones, so that no connection takes it while its server restarts."""
    for _ in range(1000):
        port = random.randrange(12_000, 32_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise Failure("no free port among 1000")


def start_redis(parts, name):
    """Starts a Redis, and checks by its process id that no other server has taken the port."""
    for _ in range(3):
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        options = ["--bind", "127.0.0.1", "--port", str(port), "--dir", parts.folder, "--save", "", "--appendonly", "no"]
        child = parts.start(name, ["redis-server", *options])

        def is_ours():
            if child.poll() is not None:
                return "ended"
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1) as connection:
                connection.settimeout(1)
                connection.sendall(b"INFO server\r\n")
                return "ours" if f"process_id:{child.pid}\r" in connection.recv(65536).decode() else None

        if wait_for("answer from redis", is_ours) == "ours":
            return f"redis://127.0.0.1:{port}/"
    raise Failure(f"redis did not start:\n{parts.log(name)}")


def start_haproxy(parts, name, replicas):
    """Round robin over the replicas, without affinity. x-served-by names the replica of an answer."""
    servers = ""
    for replica, address, admin in replicas:
        host, port = admin.split(":")
        servers += f"    server {replica} {address} check addr {host} port {port}\n"
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
        parts.start(name, ["haproxy", "-db", "-f", parts.path(f"{name}.cfg", config)], pass_fds=[listener.fileno()])
        return listener.getsockname()[:2]
