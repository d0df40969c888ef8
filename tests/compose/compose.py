#!/usr/bin/env python3
"""The image and docker-compose.yml in a real engine: sessions play through the balancer while the deployment changes.

    compose.py --codex FOLDER [--sessions N]

The simulated upstream and the players judge. A turn is lost only if its replica was killed, and no session
meets a second key. Prints a line a step; exits 1 when one has failed.
"""

import argparse
import glob
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import types

# This module also makes the clients' tests importable.
from stack import BALANCER, JAEGER, ROOT, TOKEN, Failure, Stack, as_written, check, docker, get, wait_for

from cli import Codex
from parts import Parts
from recorder import Recorder

IMAGE = "warmkey:dev"
MOST_BYTES = 100 * 1000 * 1000


def image(stack):
    """The image is small, runs as nobody, and has no shell."""
    stack.compose("build", "warmkey", seconds=3600)
    image = json.loads(docker("image", "inspect", IMAGE))[0]
    check(image["Size"] < MOST_BYTES, f"{image['Size']} bytes")
    check(image["Config"]["User"] == "65532:65532", f"user {image['Config']['User']}")
    check(image["Config"]["Entrypoint"] == ["/usr/local/bin/warmkey"], f"entrypoint {image['Config']['Entrypoint']}")
    version = docker("run", "--rm", "--read-only", IMAGE, "--version")
    check(version.startswith("warmkey "), version)
    for shell in ("/bin/sh", "/bin/bash", "/bin/busybox"):
        started = subprocess.run(["docker", "run", "--rm", "--entrypoint", shell, IMAGE, "-c", "true"], capture_output=True, check=False)
        check(started.returncode == 127, f"{shell} in the image: {started.returncode}")
    return f"{image['Size'] / 1e6:.0f} MB"


class Load:
    """The players, and when something was done that may cost turns."""

    def __init__(self, folder, sessions):
        self.sessions = sessions
        self._out = os.path.join(folder, "load.json")
        player = os.path.join(ROOT, "tests", "cluster", "player.py")
        command = [sys.executable, "-B", player, "--url", f"http://{BALANCER}", "--token", TOKEN, "--out", self._out]
        self._process = subprocess.Popen([*command, "--sessions", str(sessions), "--long", "15"])
        self.kills = []
        self.goes_on("the first turns")

    def goes_on(self, what, turns=2):
        """Waits until every session has had some more turns."""
        before = self._turns()
        since = lambda now: all(now.get(one, 0) >= before.get(one, 0) + turns for one in now) and now
        wait_for(f"turns of every session after {what}", lambda: since(self._turns()), 120)

    def _turns(self):
        check(self._process.poll() is None, "the players have ended")
        try:
            with open(f"{self._out}.turns", encoding="utf-8") as file:
                return json.load(file)
        except FileNotFoundError:
            return {}

    def end(self):
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(200)
        with open(self._out, encoding="utf-8") as file:
            return json.load(file)

    def kill(self):
        self._process.kill()
        self._process.wait(10)


def codex(stack, program):
    """Turns of the real Codex, over HTTP and on a WebSocket: one session, one key."""
    with Parts() as parts:
        recorder = Recorder(tuple(BALANCER.split(":")))
        world = types.SimpleNamespace(parts=parts, token=TOKEN, recorder=recorder)
        player = Codex(world, program, "codex")
        (said,) = as_written([f"ALICE_TOKEN={TOKEN}", "codex", "exec"])
        first = player.exec(*said, by_socket=True)
        first.finish()
        player.exec("resume", "--last", "Say more.", by_socket=True).finish()
        player.exec("resume", "--last", "Say it again.", by_socket=False).finish()
        turns = [turn for turn in stack.judge("turns") if turn["session"] == first.session]
    keys = {turn["key"] for turn in turns}
    check(len(turns) >= 3 and len(keys) == 1, f"{len(turns)} turns by {keys}")
    check(all(turn["status"] in (101, 200) for turn in turns), f"{[turn['status'] for turn in turns]}")
    return f"{len(turns)} turns by {keys.pop()}"


def replica_killed(stack, load):
    victim = stack.ids()[0]
    began = time.time()
    docker("kill", "--signal", "KILL", victim)
    # The process has ended with its sockets, so the balancer sends new requests to other replicas.
    load.kills.append((began, time.time()))
    load.goes_on("a replica was killed")
    docker("rm", "--force", victim)
    stack.up(3, "--no-recreate")


def redis_paused(stack, load):
    (redis,) = stack.ids("redis")
    docker("pause", redis)
    load.goes_on("Redis was paused", turns=5)
    docker("unpause", redis)
    stack.healthy(3)
    load.goes_on("Redis came back")


def scaled(stack, load):
    count = stack.scale()
    check(count == 5, f"the README scales to {count} replicas")
    load.goes_on("two more replicas")
    stack.up(2, "--no-recreate")
    load.goes_on("three replicas less")


def replaced(stack, load):
    """Each replica by a new one: the new one first."""
    for old in stack.ids():
        stack.up(3, "--no-recreate")
        docker("stop", "--time", "70", old, seconds=90)
        code = docker("inspect", "--format", "{{.State.ExitCode}}", old).strip()
        check(code == "0", f"a replica ended with {code}")
        docker("rm", old)
    stack.up(2, "--no-recreate")
    load.goes_on("all replicas were replaced")


def judged(stack, load):
    result = load.end()
    excused = lambda lost: any(lost["at"] <= until and began <= lost["until"] for began, until in load.kills)
    lost = [one for one in result["lost"] if not excused(one)]
    in_flight = len(result["lost"]) - len(lost)
    check(not lost, f"{len(lost)} turns lost: {lost[:5]}")
    summary = stack.judge("summary")
    check(summary["keys_per_session_max"] == 1, f"a session met {summary['keys_per_session_max']} keys")
    # Each session has one turn at a time.
    check(in_flight <= load.sessions, f"{in_flight} turns of {load.sessions} sessions were in flight on one replica")
    (replica, *_) = stack.ids()
    told = lambda: "alice" in docker("exec", replica, "/usr/local/bin/warmkey", "usage", "--by", "client", "--config", "/etc/warmkey/warmkey.toml")
    wait_for("turns in the ledger, in PostgreSQL", told, 60)
    traces = traced(result["named"]) if "jaeger" in stack.services else "SKIPPED: no image of Jaeger"
    return f"turns {result['turns']}, sent again {result['again']}, lost 0 (in flight on what was killed: {in_flight}), drift 0, traces {traces}"


def traced(named):
    """Reads the last turns that answers named back from Jaeger, whose page the README names. Returns their number."""
    check(named, "no answer named its turn")

    def spans(turn):
        try:
            traces = json.loads(get(f"http://{JAEGER}/api/traces/{turn.split('-')[0]}"))["data"]
        except OSError:
            return set()  # Jaeger answers 404 until it has the trace.
        return {span["operationName"] for trace in traces for span in trace["spans"]}

    for turn in named.values():
        wait_for(f"trace of turn {turn}", lambda turn=turn: {"turn", "bind", "relay"} <= spans(turn), 60)
    return len(named)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, default=16)
    parser.add_argument("--codex", required=True, help="where npm has put the package @openai/codex")
    options = parser.parse_args()
    (program,) = glob.glob(os.path.join(options.codex, "node_modules/@openai/codex-*/vendor/*/bin/codex"))
    passed = True

    def step(name, act, *arguments):
        nonlocal passed
        began = time.monotonic()
        said = act(*arguments)
        print(f"ok {time.monotonic() - began:6.1f} s  {name}{': ' + said if isinstance(said, str) else ''}", flush=True)

    with tempfile.TemporaryDirectory() as folder, Stack("warmkey-test") as stack:
        load = None
        try:
            step("image", image, stack)
            step("three replicas are up", stack.start)
            step("Codex through the balancer", codex, stack, os.path.abspath(program))
            load = Load(folder, options.sessions)
            step("a replica is killed", replica_killed, stack, load)
            step("Redis is paused", redis_paused, stack, load)
            step("five replicas, then two", scaled, stack, load)
            step("every replica is replaced", replaced, stack, load)
            step("judged", judged, stack, load)
        except Failure as failure:
            print(f"FAILED  {failure}", flush=True)
            passed = False
            if load:
                load.kill()
            print(stack.compose("logs", "--tail", "20")[-6000:])
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
