#!/usr/bin/env python3
"""The real Codex CLI through two replicas behind a balancer without affinity, judged by the simulated upstream's record.

    codex.py --codex FOLDER --warmkey BINARY

FOLDER is where npm has put the package @openai/codex. Prints a line a scenario; exits 1 when one has failed.
"""

import argparse
import glob
import json
import os
import secrets
import signal
import subprocess
import sys
import time

from parts import Failure, Parts, Recorder, check, get, start_haproxy, start_redis, wait_for

TURN_SECONDS = 90
REPLICAS = ("one", "two")


class World:
    """Redis, the simulated upstream, two replicas, the balancer and the recorder, and one home folder for Codex."""

    def __init__(self, parts, codex, warmkey):
        self.parts, self._codex, self._warmkey = parts, codex, warmkey
        self._token = "client-" + secrets.token_hex(16)
        self._keys = [(f"{place}-{n}", f"org-{place}", f"upstream-{secrets.token_hex(8)}") for place in "ab" for n in (1, 2)]
        store = start_redis(parts)
        self._simulate()
        config = self._configuration(store)
        for name in REPLICAS:
            parts.start(name, [warmkey, "serve", "--config", config], environment=os.environ | {"RUST_BACKTRACE": "1"})
        ready = r"listening on http://(\S+) \(admin http://([^\s)]+)\)"
        self.admin = {}
        replicas = []
        for name in REPLICAS:
            address, self.admin[name] = parts.announced(name, ready)
            replicas.append((name, address, self.admin[name]))
        self.recorder = Recorder(start_haproxy(parts, replicas))
        self._home = parts.path("home")
        os.makedirs(os.path.join(self._home, "work"))
        parts.path("home/config.toml", self._codex_configuration())
        self._runs = 0
        self.first = []

    def _simulate(self):
        keys = "".join(
            f'[[sim.key]]\nsecret = "{secret}"\norganization = "{organization}"\nproject = "{organization}-project"\n'
            for _, organization, secret in self._keys
        )
        config = self.parts.path("simulate.toml", f"[sim]\n{keys}")
        self.parts.start("simulator", [self._warmkey, "simulate", "--config", config, "--listen", "127.0.0.1:0"])
        (self.upstream,) = self.parts.announced("simulator", r"simulating on http://(\S+)")

    def _configuration(self, store):
        keys = "".join(
            f'[[key]]\nid = "{name}"\nupstream = "openai"\norganization = "{organization}"\nsecret = "{secret}"\n'
            for name, organization, secret in self._keys
        )
        return self.parts.path(
            "warmkey.toml",
            f"""
[server]
listen = "127.0.0.1:0"
admin_listen = "127.0.0.1:0"
secret = "{secrets.token_hex(32)}"
[store]
url = "{store}"
[ledger]
url = "none:"
[[upstream]]
name = "openai"
base_url = "http://{self.upstream}/v1"
{keys}
[[client]]
id = "alice"
token = "{self._token}"
""",
        )

    def _codex_configuration(self):
        """What the article tells its readers to write for HTTP, with our address."""
        return f"""
model_provider = "warmkey"
model = "gpt-5.4"
model_reasoning_effort = "xhigh"
plan_mode_reasoning_effort = "xhigh"
model_reasoning_summary = "none"
model_verbosity = "medium"
model_context_window = 1050000
model_auto_compact_token_limit = 945000
tool_output_token_limit = 6000
approval_policy = "never"
sandbox_mode = "danger-full-access"
[model_providers.warmkey]
name = "OpenAI"
base_url = "http://{self.recorder.address}"
wire_api = "responses"
requires_openai_auth = false
env_key = "WARMKEY_TOKEN"
[analytics]
enabled = false
"""

    def codex(self, *arguments):
        """Starts `codex exec` with nobody at the keyboard."""
        self._runs += 1
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": self._home,
            "CODEX_HOME": self._home,
            "NO_PROXY": "127.0.0.1",
            "WARMKEY_TOKEN": self._token,
        }
        return Run(self, f"codex-{self._runs}", [self._codex, "exec", "--skip-git-repo-check", *arguments], environment)

    def metric(self, replica, name):
        """The value of a metric without labels."""
        lines = get(f"http://{self.admin[replica]}/metrics").decode().splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith(name + " "))

    def record(self, session):
        return [turn for turn in json.loads(get(f"http://{self.upstream}/_sim/turns")) if turn["session"] == session]


class Run:
    """One process of Codex, and what went over the wire since it began."""

    def __init__(self, world, name, command, environment):
        self._world, self._name = world, name
        self._before = len(world.recorder.exchanges)
        self._said = world.parts.path(f"{name}.out")
        with open(self._said, "wb") as said:
            work = os.path.join(environment["HOME"], "work")
            self._child = world.parts.start(name, command, environment=environment, output=said, cwd=work)

    @property
    def exchanges(self):
        return self._world.recorder.exchanges[self._before :]

    def finish(self):
        """Waits for the end, which has to be a good one, and for the answer to have been printed."""
        try:
            status = self._child.wait(TURN_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise Failure(f"codex did not end within {TURN_SECONDS} s") from error
        check(status == 0, f"codex ended with {status}")
        done = self.exchanges[-1].events("response.output_text.done")
        check(done, f"the last answer has no text: {self.exchanges[-1].answer[-300:]!r}")
        with open(self._said, encoding="utf-8") as said:
            printed = said.read()
        check(done[-1]["text"].strip() in printed, f"the final message {done[-1]['text']!r} was not printed, but {printed!r}")

    @property
    def session(self):
        sessions = {exchange.session for exchange in self.exchanges}
        check(len(sessions) == 1 and None not in sessions, f"one session was expected, not {sessions}")
        return sessions.pop()


def arrived(world, session, exchanges):
    """The record of a session: upstream saw the very bodies that the client sent, each of them once."""
    sent = sorted(exchange.body_sha256 for exchange in exchanges)
    recorded = lambda: (turns := world.record(session)) and len(turns) >= len(sent) and turns
    turns = wait_for(f"record of {len(sent)} turns", recorded, seconds=10)
    check(sorted(turn["body_sha256"] for turn in turns) == sent, f"bodies sent {sent}, bodies that arrived {turns}")
    return turns


def judge(world, session, exchanges):
    """One key for the whole session, a warm cache, and nothing lost or sent twice."""
    turns = arrived(world, session, exchanges)
    keys = {turn["key"] for turn in turns}
    check(len(keys) == 1, f"one key for session {session}, not {keys}")
    read, ideal = (sum(turn[column] for turn in turns) for column in ("cached_tokens", "ideal_cached_tokens"))
    check(ideal > 0 and read >= 0.99 * ideal, f"{read} tokens read from the cache, of {ideal} that one key alone would have read")


def a_turn_with_a_tool_call(world):
    run = world.codex("Call the TOOL, then say that you are done.")
    run.finish()
    check(b'"function_call_output"' in run.exchanges[-1].body, "no tool was called")
    check({exchange.served_by for exchange in run.exchanges} == set(REPLICAS), "both replicas should have served")
    judge(world, run.session, run.exchanges)
    world.first = run.exchanges


def a_session_resumed_on_the_other_replica(world):
    before = world.first
    check(before, "there is no session to resume")
    run = world.codex("resume", "--last", "And what was it that you did?")
    run.finish()
    check(run.session == before[-1].session, "resume began another session")
    check(run.exchanges[0].served_by != before[-1].served_by, "the same replica served again: nothing is shown")
    world.first = before + run.exchanges
    judge(world, run.session, world.first)


def resume_and_fork(world, times):
    """Goes on with the first session and forks it, each turn by both replicas; all of it is on the one key of the first."""
    parent = world.first[0].session
    run = world.codex("resume", parent, "Once more, call the TOOL.")
    run.finish()
    check(run.session == parent, "resume began another session")
    check({exchange.served_by for exchange in run.exchanges} == set(REPLICAS), "both replicas should have served")
    world.first = world.first + run.exchanges
    judge(world, parent, world.first)
    (home,) = {turn["key"] for turn in world.record(parent)}
    # A fork that inherits nothing would find the same key by chance, but not each time.
    for _ in range(times):
        run = world.codex("fork", parent, "Call the TOOL in the fork.")
        run.finish()
        check(run.session != parent, "fork went on with the session of its parent")
        check({exchange.served_by for exchange in run.exchanges} == set(REPLICAS), "both replicas should have served")
        arrived(world, run.session, run.exchanges)
        keys = {turn["key"] for turn in world.record(run.session)}
        check(keys == {home}, f"the parent's key {home} for the fork, not {keys}")


def a_session_resumed_and_forked_while_redis_is_stopped(world):
    world.parts.signal("redis", signal.SIGSTOP)
    try:
        resume_and_fork(world, 2)
        check(all(world.metric(name, "warmkey_store_up") == 0 for name in REPLICAS), "Redis was not missed: nothing is shown")
    finally:
        world.parts.signal("redis", signal.SIGCONT)
    wait_for("replicas that have found Redis", lambda: all(world.metric(name, "warmkey_store_up") == 1 for name in REPLICAS))
    resume_and_fork(world, 1)


def a_replica_killed_in_mid_stream(world):
    run = world.codex("SLOW:60x100ms please, a long story.")
    streaming = lambda: run.exchanges and len(run.exchanges[0].events("response.output_text.delta")) >= 2
    wait_for("answer that streams", streaming, seconds=60)
    broken = run.exchanges[0]
    check(not broken.events("response.completed"), "the answer was over before the replica could be killed")
    world.parts.kill(broken.served_by)
    run.finish()
    check(len(run.exchanges) >= 2, "codex did not need to ask again: nothing is shown")
    check(not broken.events("response.completed"), "the broken answer had been complete: nothing is shown")
    check(run.exchanges[-1].served_by not in (None, broken.served_by), "the killed replica answered")
    judge(world, run.session, run.exchanges)


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--codex", required=True)
    options.add_argument("--warmkey", required=True)
    chosen = options.parse_args()
    # The package's own start script needs node; the program itself does not.
    found = glob.glob(os.path.join(chosen.codex, "node_modules/@openai/codex-*/vendor/*/bin/codex"))
    if len(found) != 1:
        sys.exit(f"one Codex binary below {chosen.codex} was expected, not {found}")
    # Ended from outside, the children are ended too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))

    scenarios = [
        a_turn_with_a_tool_call,
        a_session_resumed_on_the_other_replica,
        a_session_resumed_and_forked_while_redis_is_stopped,
        a_replica_killed_in_mid_stream,
    ]
    failed = 0
    with Parts() as parts:
        try:
            world = World(parts, os.path.abspath(found[0]), os.path.abspath(chosen.warmkey))
        except Failure as failure:
            print(f"the parts did not start: {failure}", *parts.tails(), sep="\n")
            return 1
        for scenario in scenarios:
            name, began = scenario.__name__.replace("_", " "), time.monotonic()
            try:
                scenario(world)
            except Exception as failure:  # Whatever it was, the other scenarios still tell something.
                failed += 1
                print(f"FAILED - {name} ({time.monotonic() - began:.1f} s): {type(failure).__name__}: {failure}", flush=True)
            else:
                print(f"ok - {name} ({time.monotonic() - began:.1f} s)", flush=True)
        if failed:
            print(*parts.tails(), sep="\n")
    print(f"{len(scenarios) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
