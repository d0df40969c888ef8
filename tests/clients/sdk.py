#!/usr/bin/env python3
"""OpenAI's own SDKs, LangChain and the AI SDK through two replicas behind a balancer without affinity.

    sdk.py --python FOLDER --node FOLDER --langchain FOLDER --ai FOLDER --warmkey BINARY [WORDS]

The simulated upstream's record is the judge. The folders are where pip and npm have put the packages.
With WORDS, only scenarios with these words in their name are played. Prints a line for each scenario,
and exits with 1 if one has failed.
"""

import argparse
import json
import os
import signal
import sys

import direct
import talks
from failing import on_one_key
from judge import judge
from parts import check, wait_for
from scene import Sdk
from stage import play
from world import REPLICAS

HERE = os.path.dirname(os.path.abspath(__file__))


def conversation_over_http_that_grows(sdk):
    scene = sdk.begin("over_http")
    scene.answers(10)
    check(len(scene.exchanges) == 10, f"one request for each answer, not {len(scene.exchanges)}")
    judge(sdk.world, scene.session, scene.exchanges, served=10)


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
    # Both turns are cold, because neither could read the cache entry that the other was writing.
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


def long_body_that_is_refused(sdk):
    # Each SDK writes its whole body before it reads. If a replica did not read on, the SDK would see a reset.
    told = [(one["status"], one["text"]) for one in sdk.begin("refused", by="one").printed()]
    check(told == [("invalid_api_key", "401")] * 4 + [("request_too_large", "413")] * 4, f"what it is told: {told}")


SCENARIOS = [
    conversation_over_http_that_grows,
    long_body_that_is_refused,
    two_turns_on_one_websocket,
    two_lanes_of_one_websocket,
    connection_that_is_closed_as_a_replica_leaves,
]
# Models that every upstream has, and two whose names SDKs encode in a path.
MODELS = ["gpt-5.4", "gpt-5.5", "gpt-5", "gpt-5.2", "org/model", "ft:gpt-5:acme::abc"]
IN_TROUBLE = [trouble_that_passes, stream_that_is_cut, key_that_is_revoked_and_a_quota_that_is_gone]


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--python", required=True)
    options.add_argument("--node", required=True)
    options.add_argument("--langchain", required=True)
    options.add_argument("--ai", required=True)
    options.add_argument("--warmkey", required=True)
    options.add_argument("words", nargs="*")
    chosen = options.parse_args()
    python, node = (lambda file: [sys.executable, os.path.join(HERE, file)]), (lambda file: ["node", os.path.join(HERE, file)])
    sdks = [
        ("openai-python", python("turns.py"), python("chat.py"), chosen.python),
        ("openai-node", node("turns.mjs"), node("chat.mjs"), chosen.node),
    ]
    client = lambda run, folder: lambda world: Sdk(world, run, folder)
    translated = {"upstream": 'speaks = ["responses"]'}
    acts = []
    for name, turns, chat, folder in sdks:
        # Both SDKs show errors in the same way, so one of them is enough.
        troubles = IN_TROUBLE if name == "openai-python" else []
        acts += [
            (name, {"models": MODELS}, [*SCENARIOS, *talks.STORED, *direct.RESPONSES, *troubles], client(turns, folder)),
            # Chat for an upstream that speaks it, and for one for which every turn is translated.
            (f"{name}-chat", {}, [*talks.NAMED, *direct.CHAT], client(chat, folder)),
            (f"{name}-chat-translated", translated, [*talks.NAMED, *talks.TRANSLATED], client(chat, folder)),
        ]
    for name, run, folder in [("langchain", python("chain.py"), chosen.langchain), ("ai", node("ai.mjs"), chosen.ai)]:
        # These are the AI SDK's own defaults.
        stored = [*talks.STORED_UNNAMED, *direct.STORED_UNNAMED] if name == "ai" else []
        acts += [
            (name, {}, [*talks.UNNAMED, *talks.BY_RESPONSES, *direct.UNNAMED, *stored], client(run, folder)),
            (f"{name}-translated", translated, talks.UNNAMED, client(run, folder)),
        ]
    return play(chosen.warmkey, acts, " ".join(chosen.words))


if __name__ == "__main__":
    sys.exit(main())
