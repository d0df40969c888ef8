"""Codex over WebSocket: a connection lives for many turns, and may lose its replica or upstream."""

import signal

from judge import answers, judge
from parts import check, wait_for
from world import REPLICAS

SLOW = "SLOW:{}x100ms please, a long story."
DELTA = "response.output_text.delta"


def only(sockets):
    check(len(sockets) == 1, f"one WebSocket was expected, not {len(sockets)}")
    return sockets[0]


def goes_on(talk, replica):
    """The other replica serves the turns after this one, all on one connection."""
    served_by = [one.served_by for one in talk.sockets]
    check(len(served_by) == 2 and served_by[0] == replica != served_by[1], f"{replica} first and then the other one: {served_by}")


def unseen(talk):
    """Checks that the user has seen no failure."""
    check(not talk.errors(), f"the user was told {talk.errors()}")


def streams(talk):
    """Waits for the middle of an answer, and returns its WebSocket."""
    before = len(talk.sockets[-1].events(DELTA)) if talk.sockets else 0
    wait_for("answer that streams", lambda: talk.sockets and len(talk.sockets[-1].events(DELTA)) >= before + 2, seconds=60)
    return talk.sockets[-1]


def several_turns_in_one_process(codex):
    talk = codex.talk()
    for text in ["Say that you are there.", "Call the TOOL.", "Once more, a tool call.", "And what was it that you did?"]:
        check(talk.turn(text), "an answer has a text")
    talk.finish()
    unseen(talk)
    socket = only(talk.exchanges)
    check(b'"function_call_output"' in b"".join(socket.turns), "no tool was called")
    judge(codex.world, talk.session, talk.exchanges, served=6)
    only(codex.world.sockets(talk.session))
    codex.first = talk.exchanges


def session_resumed_over_either_transport(codex):
    world, before = codex.world, codex.first
    check(before, "there is no session to resume")
    session, served = before[0].session, 6
    for count, by_socket in enumerate([True, False, True, False, True, False]):
        # The balancer alternates between the replicas, unless Codex has opened other connections.
        if count >= 3 and {one.served_by for one in before} == set(REPLICAS):
            break
        run = codex.exec("resume", session, "Call the TOOL again.", by_socket=by_socket)
        run.finish()
        check(run.session == session, "resume began another session")
        check({one.is_socket for one in run.exchanges} == {by_socket}, "it went the other way")
        before, served = before + run.exchanges, served + 2
        judge(world, session, before, served)
    check({one.served_by for one in before} == set(REPLICAS), "both replicas should have served")
    codex.first = before


def session_whose_history_is_compacted(codex):
    talk = codex.talk()
    talk.turn("Call the TOOL.")
    talk.compact()
    # Only the organization that made the history can open it.
    check(talk.turn("Call the TOOL again."), "an answer has a text")
    talk.finish()
    unseen(talk)
    check(b'"type":"compaction"' in b"".join(only(talk.exchanges).turns), "the history was not compacted: nothing is shown")
    judge(codex.world, talk.session, talk.exchanges, served=5)


def fork_while_redis_is_stopped(codex):
    world, parent = codex.world, codex.first[0].session
    (home,) = {turn["key"] for turn in world.record(parent)}
    world.signal("redis", signal.SIGSTOP)
    try:
        for _ in range(2):
            run = codex.exec("fork", parent, "Call the TOOL in the fork.", by_socket=True)
            run.finish()
            check(run.session != parent, "fork went on with the session of its parent")
            judge(world, run.session, run.exchanges, served=2)
            keys = {turn["key"] for turn in world.record(run.session)}
            check(keys == {home}, f"the parent's key {home} for the fork, not {keys}")
        check(any(world.metric(name, "warmkey_store_up") == 0 for name in REPLICAS), "Redis was not missed: nothing is shown")
    finally:
        world.signal("redis", signal.SIGCONT)
    wait_for("replicas that have found Redis", lambda: all(world.metric(name, "warmkey_store_up") == 1 for name in REPLICAS))


def replica_killed_in_mid_turn(codex):
    talk = codex.talk()
    talk.turn("Say that you are there.")
    turn = talk.begin(SLOW.format(30))
    broken = streams(talk)
    codex.world.kill(broken.served_by)
    talk.end(turn)
    check(talk.turn("Call the TOOL."), "an answer has a text")
    talk.finish()
    unseen(talk)
    check(len(broken.events("response.completed")) == 2, "the broken answer had been complete: nothing is shown")
    goes_on(talk, broken.served_by)
    judge(codex.world, talk.session, talk.exchanges, served=4, broken=[broken])


def replica_that_leaves_between_turns(codex):
    talk = codex.talk()
    talk.turn("Say that you are there.")
    leaving = only(talk.sockets)
    codex.world.signal(leaving.served_by, signal.SIGTERM)
    wait_for("last word to an idle connection", lambda: leaving.received.close)
    check(leaving.received.close == 1001, f"going away is 1001, not {leaving.received.close}")
    check(talk.turn("Call the TOOL."), "an answer has a text")
    talk.finish()
    unseen(talk)
    check(codex.world.ended(leaving.served_by) == 0, "a replica that was told to leave ends well")
    goes_on(talk, leaving.served_by)
    judge(codex.world, talk.session, talk.exchanges, served=3)


def replica_that_leaves_in_mid_turn(codex):
    talk = codex.talk()
    turn = talk.begin(SLOW.format(40))
    leaving = streams(talk)
    codex.world.signal(leaving.served_by, signal.SIGTERM)
    talk.end(turn)
    check(len(leaving.events("response.completed")) == 2, "the replica finishes what it began")
    wait_for("last word to an idle connection", lambda: leaving.received.close)
    check(talk.turn("Call the TOOL."), "an answer has a text")
    talk.finish()
    unseen(talk)
    check(codex.world.ended(leaving.served_by) == 0, "a replica that was told to leave ends well")
    goes_on(talk, leaving.served_by)
    judge(codex.world, talk.session, talk.exchanges, served=3)


def upstream_that_closes_between_turns(codex):
    talk = codex.talk()
    talk.turn("Call the TOOL.")
    # The upstream closes with each code that a service may use, and without a code.
    orders = [{"code": code} for code in (1000, 1001, 1011, 1012, 1013)] + [{}]
    for number, order in enumerate(orders, 1):
        last = talk.sockets[-1]
        check(codex.world.close(session=talk.session, **order)["closed"] == 1, "there is one to close")
        wait_for("last word to the client", lambda: last.received.close)
        check(last.received.close == order.get("code", 1001), f"closed with {last.received.close} after {order}")
        check(talk.turn("And again?"), "an answer has a text")
        check(len(talk.sockets) == number + 1, f"another connection for each that was closed, not {len(talk.sockets)}")
    talk.finish()
    unseen(talk)
    judge(codex.world, talk.session, talk.exchanges, served=2 + len(orders))


def upstream_that_is_lost_in_mid_turn(codex):
    talk = codex.talk()
    talk.turn("Say that you are there.")
    turn = talk.begin(SLOW.format(15))
    streams(talk)
    check(codex.world.close(session=talk.session)["closed"] == 1, "there is one to close")
    talk.end(turn)
    talk.finish()
    unseen(talk)
    check(len(talk.sockets) == 2, f"another connection for the one that was lost, not {len(talk.sockets)}")
    judge(codex.world, talk.session, talk.exchanges, served=2, broken=talk.sockets[:1])


def turn_that_is_interrupted(codex):
    talk = codex.talk()
    talk.turn("Say that you are there.")
    turn = talk.begin(SLOW.format(300))
    left = streams(talk)
    talk.interrupt(turn)
    talk.end(turn, status="interrupted")
    outcomes = lambda: [one["outcome"] for one in codex.world.record(talk.session)]
    wait_for("turn that the upstream has stopped", lambda: "client_left" in outcomes())
    check(talk.turn("Never mind. Call the TOOL."), "an answer has a text")
    talk.finish()
    judge(codex.world, talk.session, talk.exchanges, served=3, broken=[left])


def key_that_is_revoked_between_turns(codex):
    world, talk = codex.world, codex.talk()
    talk.turn("Call the TOOL.")
    before = world.record(talk.session)
    (revoked,) = {turn["key"] for turn in before}
    world.fault(key=revoked, status=401, code="invalid_api_key")
    check(talk.turn("And again?"), "an answer has a text")
    talk.finish()
    unseen(talk)
    # Both replicas serve the session. One of them has not met the refusal itself.
    for _ in REPLICAS:
        codex.exec("resume", talk.session, "And what was it that you did?", by_socket=True).finish()
    turns = world.record(talk.session)
    keys = [turn["key"] for turn in answers(turns)]
    moved_to = set(keys[2:])
    check(keys[:2] == [revoked] * 2 and len(keys) == 5 and len(moved_to) == 1 and revoked not in moved_to, f"one move: {keys}")
    check(len({turn["organization"] for turn in turns}) == 1, "what its history holds no other organization can open")


SCENARIOS = [
    several_turns_in_one_process,
    session_resumed_over_either_transport,
    session_whose_history_is_compacted,
    fork_while_redis_is_stopped,
    replica_killed_in_mid_turn,
    replica_that_leaves_between_turns,
    replica_that_leaves_in_mid_turn,
    upstream_that_closes_between_turns,
    upstream_that_is_lost_in_mid_turn,
    turn_that_is_interrupted,
    key_that_is_revoked_between_turns,
]


def upstream_that_closes_at_its_limit(codex):
    """Sixty minutes are four seconds here."""
    world, talk = codex.world, codex.talk()
    expired = lambda: sum(socket["expired"] for socket in world.sockets(talk.session))
    cut = lambda: sum(turn["outcome"] == "cut" for turn in world.record(talk.session))
    # The limit may fall between two turns, so this repeats until it falls into one.
    turns = 0
    while not (turns and cut()):
        check(turns < 20, "the limit should have been met")
        talk.turn(SLOW.format(15))
        turns += 1
    check(cut() == 1, f"one answer is cut, and comes whole on the next connection; not {cut()}")
    before = expired()
    wait_for("limit that is met while nothing is going on", lambda: expired() == before + 1)
    talk.turn("Call the TOOL.")
    talk.finish()
    check(len(talk.sockets) == before + 2, f"a connection for each that has expired and one more, not {len(talk.sockets)}")
    # The cache forgets on the same clock, and a frame sent at the limit may be lost.
    judge(world, talk.session, talk.exchanges, served=turns + 2, warm=False, broken=talk.sockets[:-1])


WITHIN_THE_LIMIT = [upstream_that_closes_at_its_limit]


def pool_that_does_not_speak_websocket(codex):
    talk = codex.talk()
    for text in ["Say that you are there.", "Call the TOOL."]:
        check(talk.turn(text), "an answer has a text")
    talk.finish()
    unseen(talk)
    run = codex.exec("resume", talk.session, "Call the TOOL again.", by_socket=True)
    run.finish()
    for process in (talk, run):
        refused = only([one for one in process.exchanges if one.wants_socket])
        check(refused.status == 426, f"a client that is to use HTTP is told 426, not {refused.status}")
        check("alling back" not in process.log, "it falls back without a word")
    judge(codex.world, talk.session, talk.exchanges + run.exchanges, served=5)


WITHOUT = [pool_that_does_not_speak_websocket]
