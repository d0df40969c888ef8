"""Checks of a session, by the simulated upstream's record and the recorders on both sides."""

import json
from collections import Counter

from parts import check, wait_for
from recorder import sha256


def arrived(world, session, exchanges, broken=()):
    """The record of a session. Checks that the upstream saw each turn of the client exactly once.

    A turn on a `broken` connection may have got lost.
    """
    sent = Counter(sha256(turn) for exchange in exchanges for turn in exchange.turns)
    due = Counter(sha256(turn) for exchange in exchanges if exchange not in broken for turn in exchange.turns)
    came = lambda turns: Counter(turn["body_sha256"] for turn in turns)
    recorded = lambda: (turns := world.record(session)) and due <= came(turns) and ended(turns) and turns
    turns = wait_for(f"record of {due.total()} turns", recorded, seconds=10)
    check(came(turns) <= sent, f"turns sent {sent}, turns that arrived {came(turns)}")
    return turns


def ended(turns):
    return all(turn["outcome"] != "open" for turn in turns)


def answers(turns):
    """The turns with a whole answer, without prewarms."""
    return [turn for turn in turns if turn["outcome"] == "completed" and not turn["prewarm"]]


def judge(world, session, exchanges, served, warm=True, broken=()):
    """Checks for one key, a warm cache, and no turn lost, changed or answered twice.

    `served` is the number of answers. `broken` names WebSockets that were cut: one end may have
    received less than the other sent.
    """
    turns = arrived(world, session, exchanges, broken)
    keys = {turn["key"] for turn in turns} | {socket["key"] for socket in world.sockets(session)}
    check(len(keys) == 1, f"one key for session {session}, not {keys}")
    ended = [f"{turn['transport']} {turn['outcome']}" for turn in turns]
    check(len(answers(turns)) == served, f"{served} answers and not {ended}")
    if warm:
        read, ideal = (sum(turn[column] for turn in turns) for column in ("cached_tokens", "ideal_cached_tokens"))
        check(ideal > 0 and read >= 0.99 * ideal, f"{read} tokens read from the cache, of {ideal} that one key would have read")
    unaltered(world, session, exchanges, broken)


def unaltered(world, session, exchanges, broken=()):
    """Checks that the messages of WebSockets arrived byte for byte, in both directions."""
    for outer in exchanges:
        if not (outer.is_socket and outer.said.texts):
            continue
        inner = [one for one in world.inner.exchanges if one.session == session and one.said.texts[:1] == outer.said.texts[:1]]
        if outer in broken and not inner:
            continue
        check(len(inner) == 1, f"one WebSocket upstream for each of the client's, not {len(inner)}")
        came = inner[0].said.texts
        upward = lambda: came == outer.said.texts[: len(came) if outer in broken else None]
        wait_for("hearing upstream of all that the client said", upward)
        received = lambda: [text for text in outer.received.texts if not is_our_own(text)]
        downward = lambda: inner[0].received.texts[: len(received()) if outer in broken else None] == received()
        wait_for("hearing at the client of what the upstream said", downward)


def is_our_own(text):
    """The error that the gateway itself makes for a turn whose upstream is gone."""
    event = json.loads(text)
    return event.get("type") == "error" and event["error"].get("code") == "upstream_interrupted"
