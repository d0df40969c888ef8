"""What must be true of a session, by the simulated upstream's record and by what the recorders saw on either side."""

import json
from collections import Counter

from parts import check, wait_for
from recorder import sha256


def arrived(world, session, exchanges, broken=()):
    """The record of a session: the upstream saw the very turns that the client sent, each of them once.

    What was sent on a `broken` connection may have got lost.
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
    """Those that were answered to their end, and did not only prepare."""
    return [turn for turn in turns if turn["outcome"] == "completed" and not turn["prewarm"]]


def judge(world, session, exchanges, served, warm=True, broken=()):
    """One key for the whole session, a warm cache, and nothing lost, changed or answered twice.

    `served`: how many answers there must be. `broken`: WebSockets that were cut, on which less was heard than said.
    """
    turns = arrived(world, session, exchanges, broken)
    keys = {turn["key"] for turn in turns} | {socket["key"] for socket in world.sockets(session)}
    check(len(keys) == 1, f"one key for session {session}, not {keys}")
    told = [f"{turn['transport']} {turn['outcome']}" for turn in turns]
    check(len(answers(turns)) == served, f"{served} answers and not {told}")
    if warm:
        read, ideal = (sum(turn[column] for turn in turns) for column in ("cached_tokens", "ideal_cached_tokens"))
        check(ideal > 0 and read >= 0.99 * ideal, f"{read} tokens read from the cache, of {ideal} that one key would have read")
    unaltered(world, session, exchanges, broken)


def unaltered(world, session, exchanges, broken=()):
    """What a WebSocket's client said its upstream heard, and the other way round, message by message and byte for byte."""
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
        heard = lambda: [text for text in outer.heard.texts if not is_our_own(text)]
        downward = lambda: inner[0].heard.texts[: len(heard()) if outer in broken else None] == heard()
        wait_for("hearing at the client of what the upstream said", downward)


def is_our_own(text):
    """The gateway's word for a turn whose upstream is gone: no upstream says it."""
    event = json.loads(text)
    return event.get("type") == "error" and event["error"].get("code") == "upstream_interrupted"
