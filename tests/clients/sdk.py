#!/usr/bin/env python3
"""OpenAI's own SDKs through two replicas behind a balancer without affinity.

    sdk.py --python FOLDER --node FOLDER --warmkey BINARY [WORDS]

The simulated upstream's record is the judge. The folders are where pip and npm have put the packages.
With WORDS, only scenarios with these words in their name are played. Prints a line for each scenario,
and exits with 1 if one has failed.
"""

import argparse
import json
import os
import secrets
import signal
import subprocess
import sys

from failing import on_one_key
from judge import judge
from parts import Failure, check, wait_for
from stage import play
from world import REPLICAS

SECONDS = 60
HERE = os.path.dirname(os.path.abspath(__file__))


class Sdk:
    """One of the SDKs, which plays scenes."""

    def __init__(self, world, command, folder):
        self.world = world
        self._command, self._folder = command, os.path.abspath(folder)
        self._runs = 0

    def begin(self, scene, before=None, session=None):
        """Begins a scene. `before` runs before the first request; `session` is an old one to resume."""
        self._runs += 1
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": self.world.parts.folder,
            "NO_PROXY": "127.0.0.1",
            "PYTHONPATH": self._folder,
            "PYTHONDONTWRITEBYTECODE": "1",
            "SDK": self._folder,
            "OPENAI_BASE_URL": f"http://{self.world.recorder.address}/v1",
            "OPENAI_API_KEY": self.world.token,
        }
        return Scene(self.world, f"scene-{self._runs}", [*self._command, scene], environment, before, session)


class Scene:
    """A program that plays one scene of one session."""

    def __init__(self, world, name, command, environment, before, session):
        self.session = session or secrets.token_hex(16)
        if before:
            before(self)
        self._world, self._before = world, len(world.recorder.exchanges)
        self._said = world.parts.path(f"{name}.out")
        self._log = lambda: world.parts.log(name)
        with open(self._said, "wb") as output:
            self._child = world.parts.start(name, [*command, self.session], environment, output=output)

    @property
    def exchanges(self):
        return self._world.recorder.exchanges[self._before :]

    def printed(self):
        """The output of the program, which must end successfully."""
        try:
            status = self._child.wait(SECONDS)
        except subprocess.TimeoutExpired as error:
            raise Failure(f"the scene did not end within {SECONDS} s") from error
        check(status == 0, f"the scene ended with {status}:\n{self._log()}")
        with open(self._said, encoding="utf-8") as said:
            return json.load(said)

    def answers(self, count):
        """Checks that every answer is a text."""
        answers = self.printed()
        are_whole = all(one["status"] == "completed" and one["text"] for one in answers)
        check(len(answers) == count and are_whole, f"{count} answers and not {answers}")
        return answers


def plain_and_a_streamed_answer_over_http(sdk):
    scene = sdk.begin("over_http")
    scene.answers(2)
    check(len(scene.exchanges) == 2, f"one request for each answer, not {len(scene.exchanges)}")
    judge(sdk.world, scene.session, scene.exchanges, served=2)


def two_turns_on_one_websocket(sdk):
    scene = sdk.begin("two_turns")
    first, second = scene.answers(2)
    check(len(scene.exchanges) == 1, f"one WebSocket for both, not {len(scene.exchanges)}")
    judge(sdk.world, scene.session, scene.exchanges, served=2)
    went_on = [turn["previous_response_id"] for turn in sdk.world.record(scene.session)]
    check(went_on == [None, first["id"]] and second["id"] != first["id"], f"the second goes on from the first: {went_on}")


def two_lanes_of_one_websocket(sdk):
    scene = sdk.begin("two_lanes")
    answers = scene.answers(4)
    check(len(scene.exchanges) == 1, f"one WebSocket for all, not {len(scene.exchanges)}")
    # Both are cold: neither could read the cache entry that the other was just writing.
    judge(sdk.world, scene.session, scene.exchanges, served=4)
    turns = sdk.world.record(scene.session)
    for lane in "ab":
        own = [one["id"] for one in answers if one["lane"] == lane]
        went_on = [turn["previous_response_id"] for turn in turns if turn["lane"] == lane]
        check(len(own) == 2 and went_on == [None, own[0]], f"lane {lane} goes on from {went_on}, having been answered {own}")
    events = [json.loads(text).get("stream_id") for text in scene.exchanges[0].received.texts]
    changes = sum(one != other for one, other in zip(events, events[1:]))
    check(changes > 4, f"lanes interleave, and do not follow each other: {events}")


def connection_that_is_closed_as_a_replica_leaves(sdk):
    world, scene = sdk.world, sdk.begin("connection_that_is_closed")
    wait_for("first answer", lambda: any(one.events("response.completed") for one in scene.exchanges))
    leaving = scene.exchanges[0]
    world.signal(leaving.served_by, signal.SIGTERM)
    scene.answers(2)
    check(leaving.received.close == 1001, f"going away is 1001, not {leaving.received.close}")
    check(world.ended(leaving.served_by) == 0, "a replica that was told to leave ends well")
    check({one.served_by for one in scene.exchanges} == set(REPLICAS) and len(scene.exchanges) == 2, "the other replica goes on")
    judge(world, scene.session, scene.exchanges, served=2)


def trouble_that_passes(sdk):
    for fault in [{"status": 429, "retry_after": 1}, {"status": 503, "code": "server_is_overloaded", "retry_after": 1}, {"status": 500}]:
        scene = sdk.begin("in_trouble", lambda scene: sdk.world.fault(session=scene.session, times=1, **fault))
        scene.answers(2)
        on_one_key(sdk.world, scene.session, served=2)


def stream_that_is_cut(sdk):
    # A cut stream, or one without a terminal event, is an error to the user. The next turn is not.
    # The upstream waits a moment first, since a reset overtakes sent bytes.
    for fault, error in [({"reset": True}, "APIConnectionError"), ({}, "RuntimeError")]:
        scene = sdk.begin("in_trouble")
        scene.answers(2)
        cut = lambda scene: sdk.world.fault(session=scene.session, times=1, cut_after_events=6, stall="300ms", **fault)
        scene = sdk.begin("in_a_stream", before=cut, session=scene.session)
        broken, whole = scene.printed()
        check(broken["status"] == error, f"what its user sees: {broken}")
        check(whole["status"] == "completed" and whole["text"], f"the next turn is answered: {whole}")
        check(len(scene.exchanges) == 2, f"nobody asks again for what has begun: {len(scene.exchanges)}")
        first, second = scene.exchanges
        made_up = [kind for kind in ("response.completed", "response.failed", "error") if first.events(kind)]
        check(first.events("response.created") and not made_up, f"an answer that began, and nothing made up: {made_up}")
        check(len(second.events("response.completed")) == 1, "and one that came to its end")
        on_one_key(sdk.world, scene.session, served=3)
        check(len(sdk.world.record(scene.session)) == 4, "each turn reached the upstream once")


def key_that_is_revoked_and_a_quota_that_is_gone(sdk):
    world, scene = sdk.world, sdk.begin("in_trouble")
    scene.answers(2)
    (turn, _) = world.record(scene.session)
    world.fault(key=turn["key"], status=401, code="invalid_api_key")
    scene = sdk.begin("in_trouble", session=scene.session)
    scene.answers(2)
    (moved,) = {turn["key"] for turn in world.record(scene.session)[-2:]}
    check(moved != turn["key"] and moved[0] == turn["key"][0], f"within its organization, from {turn['key']} to {moved}")
    world.fault(organization=turn["organization"], status=429, code="credit_balance_exhausted")
    scene = sdk.begin("in_trouble", session=scene.session)
    told = [one["status"] for one in scene.printed()]
    check(told == ["insufficient_quota"] * 2, f"what it stops with: {told}")
    check(len(scene.exchanges) == 2, f"told once, it does not ask again: {len(scene.exchanges)}")


def chat_conversation_that_grows(sdk):
    stays(sdk, "growing", 10)


def chat_with_calls_of_a_tool(sdk):
    stays(sdk, "tools", 4)


def chat_with_a_structured_answer(sdk):
    stays(sdk, "structured", 1)


def stays(sdk, scene, count):
    scene = sdk.begin(scene)
    scene.answers(count)
    on_one_key(sdk.world, scene.session, served=count)
    turns = sdk.world.record(scene.session)
    read, ideal = (sum(turn[column] for turn in turns) for column in ("cached_tokens", "ideal_cached_tokens"))
    check(read >= 0.99 * ideal, f"{read} tokens read from the cache, of {ideal} that one key would have read")
    check({one.served_by for one in scene.exchanges} == set(REPLICAS) or count == 1, "both replicas take turns")


def chat_field_that_is_not_translated(sdk):
    (told,) = sdk.begin("refused").printed()
    check((told["status"], told["text"]) == ("unsupported_parameter", "seed"), f"what its user reads: {told}")


CHAT = [chat_conversation_that_grows, chat_with_calls_of_a_tool, chat_with_a_structured_answer]

def stored_response_that_is_asked_for_again(sdk):
    scene = sdk.begin("stored")
    answers = scene.answers(5)
    check(len({one["id"] for one in answers[:4]}) == 1, f"one response: {answers}")
    check(answers[0]["text"] == answers[1]["text"] == answers[2]["text"], f"one text: {answers}")
    check(answers[3]["text"] == "one" and "not found" in answers[4]["text"], f"its input, and its end: {answers}")
    check({one.served_by for one in scene.exchanges} == set(REPLICAS), "both replicas have served")
    check(len(sdk.world.record(scene.session)) == 1, "one turn reached the upstream")


def response_in_the_background(sdk):
    scene = sdk.begin("in_the_background")
    polled, canceled = scene.printed()
    check(polled["status"] == "completed" and polled["text"], f"a response that is polled: {polled}")
    check(canceled["status"] == "cancelled", f"one that is canceled: {canceled}")
    on_one_key(sdk.world, scene.session, served=2)


def models_that_it_may_ask_for(sdk):
    *listed, one = sdk.begin("models").printed()
    check(one["id"] == "gpt-5.4" and one in listed and len(listed) > 5, f"a list, and one of it: {listed}, {one}")


SCENARIOS = [
    plain_and_a_streamed_answer_over_http,
    two_turns_on_one_websocket,
    two_lanes_of_one_websocket,
    connection_that_is_closed_as_a_replica_leaves,
]


STORED = [stored_response_that_is_asked_for_again, response_in_the_background, models_that_it_may_ask_for]
IN_TROUBLE = [trouble_that_passes, stream_that_is_cut, key_that_is_revoked_and_a_quota_that_is_gone]


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--python", required=True)
    options.add_argument("--node", required=True)
    options.add_argument("--warmkey", required=True)
    options.add_argument("words", nargs="*")
    chosen = options.parse_args()
    sdks = [
        ("openai-python", [sys.executable, os.path.join(HERE, "turns.py")], chosen.python),
        ("openai-node", ["node", os.path.join(HERE, "turns.mjs")], chosen.node),
    ]
    # Both SDKs show errors alike: one of them is enough.
    acts = [(name, {}, SCENARIOS + (STORED + IN_TROUBLE if name == "openai-python" else []), lambda world, run=run, folder=folder: Sdk(world, run, folder)) for name, run, folder in sdks]
    # Chat, for an upstream that speaks it, and for one that every turn is translated for.
    for name, run, folder in sdks:
        run = [*run[:-1], run[-1].replace("turns.", "chat.")]
        client = lambda world, run=run, folder=folder: Sdk(world, run, folder)
        acts.append((f"{name}-chat", {}, CHAT, client))
        translated = {"upstream": 'speaks = ["responses"]'}
        acts.append((f"{name}-chat-translated", translated, [*CHAT, chat_field_that_is_not_translated], client))
    return play(chosen.warmkey, acts, " ".join(chosen.words))


if __name__ == "__main__":
    sys.exit(main())
