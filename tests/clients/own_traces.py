"""Codex's own traces: with them, a turn is named by the client's trace and by its own span."""

import json
import re

from judge import judge
from parts import check, wait_for
from world import REPLICAS

# No collector listens there. Codex drops its spans, but still sends their ids.
EXPORTER = 'otel.trace_exporter={otlp-http={endpoint="http://127.0.0.1:9/v1/traces",protocol="json"}}'
TRACE, SPAN = "[0-9a-f]{32}", "[0-9a-f]{16}"


def parents(exchange):
    """The `traceparent` of each turn of an exchange; None where Codex named none."""
    if not exchange.is_socket:
        return [exchange.traceparent]
    metadata = [json.loads(text).get("client_metadata", {}) for text in exchange.turns]
    return [one.get("ws_request_header_traceparent") for one in metadata]


def names(world):
    """The names of all turns in the replicas' logs."""
    lines = [line for replica in REPLICAS for line in world.logged(replica)]
    return {line["turn"] for line in lines if line.get("message") == "turn"}


def named(codex, by_socket, *words):
    """Plays a turn with a tool call. Returns Codex's own ids, and Warmkey's names."""
    world, before = codex.world, names(codex.world)
    run = codex.exec(*words, "Call the TOOL, then say that you are done.", by_socket=by_socket)
    run.finish()
    check({one.is_socket for one in run.exchanges} == {by_socket}, "it went the other way")
    judge(world, run.session, run.exchanges, served=2)
    own = [parent for exchange in run.exchanges for parent in parents(exchange)]
    check(len(own) >= 2, f"two rounds and more, not {own}")
    wait_for("line of each turn in the log", lambda: len(names(world) - before) >= len(own))
    new = names(world) - before
    check(len(new) == len(own), f"{len(own)} turns, and their names {new}")
    return own, new


def turn_is_named_by_its_own_trace(codex):
    for by_socket in [False, True]:
        own, new = named(codex, by_socket)
        check(set(own) == {None}, f"Codex traces by itself: {own}")
        check(all(re.fullmatch(TRACE, name) for name in new), f"names without a trace of Codex: {new}")


def turn_is_named_by_the_trace_of_codex(codex):
    for by_socket in [False, True]:
        own, new = named(codex, by_socket, "-c", EXPORTER)
        check(None not in own, f"Codex does not trace: {own}")
        found = [re.fullmatch(f"({TRACE})-({SPAN})", name) for name in new]
        check(all(found), f"names within a trace of Codex: {new}")
        check({name[1] for name in found} == {parent.split("-")[1] for parent in own}, f"{new} in the traces of {own}")
        check(not {name[2] for name in found} & {parent.split("-")[2] for parent in own}, "a turn has a span of its own")


SCENARIOS = [
    turn_is_named_by_its_own_trace,
    turn_is_named_by_the_trace_of_codex,
]
