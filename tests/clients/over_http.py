"""Codex over HTTP: each request opens a connection, which goes to the other replica."""

import signal

from judge import arrived, judge
from parts import check, wait_for
from world import REPLICAS


def doctor_that_finds_nothing_wrong(codex):
    checks = codex.doctor()
    reached = {name: one for name, one in checks.items() if name.endswith("_reachability")}
    check(len(reached) == 2, f"the doctor looks at both transports: {list(checks)}")
    # The doctor asks GitHub for the latest version of Codex, which a test cannot count on.
    ill = {name: one for name, one in checks.items() if one["status"] != "ok" and name != "updates.status"}
    check(not ill, f"the doctor is not content: {ill}")


def both_served(run):
    check({exchange.served_by for exchange in run.exchanges} == set(REPLICAS), "both replicas should have served")


def turn_with_a_tool_call(codex):
    run = codex.exec("Call the TOOL, then say that you are done.", by_socket=False)
    run.finish()
    check(b'"function_call_output"' in run.exchanges[-1].body, "no tool was called")
    both_served(run)
    judge(codex.world, run.session, run.exchanges, served=2)
    codex.first = run.exchanges


def session_resumed_on_the_other_replica(codex):
    before = codex.first
    check(before, "there is no session to resume")
    run = codex.exec("resume", "--last", "And what was it that you did?", by_socket=False)
    run.finish()
    check(run.session == before[-1].session, "resume began another session")
    check(run.exchanges[0].served_by != before[-1].served_by, "the same replica served again: nothing is shown")
    codex.first = before + run.exchanges
    judge(codex.world, run.session, codex.first, served=3)


def resume_and_fork(codex, times, served):
    """Resumes and forks the first session, by both replicas; every turn is on the first key."""
    world, parent = codex.world, codex.first[0].session
    run = codex.exec("resume", parent, "Once more, call the TOOL.", by_socket=False)
    run.finish()
    check(run.session == parent, "resume began another session")
    both_served(run)
    codex.first = codex.first + run.exchanges
    judge(world, parent, codex.first, served)
    (home,) = {turn["key"] for turn in world.record(parent)}
    # Without inheritance, a fork would find the same key by chance, but not each time.
    for _ in range(times):
        run = codex.exec("fork", parent, "Call the TOOL in the fork.", by_socket=False)
        run.finish()
        check(run.session != parent, "fork went on with the session of its parent")
        both_served(run)
        arrived(world, run.session, run.exchanges)
        keys = {turn["key"] for turn in world.record(run.session)}
        check(keys == {home}, f"the parent's key {home} for the fork, not {keys}")


def session_resumed_and_forked_while_redis_is_stopped(codex):
    world = codex.world
    world.signal("redis", signal.SIGSTOP)
    try:
        resume_and_fork(codex, 2, served=5)
        check(all(world.metric(name, "warmkey_store_up") == 0 for name in REPLICAS), "Redis was not missed: nothing is shown")
    finally:
        world.signal("redis", signal.SIGCONT)
    wait_for("replicas that have found Redis", lambda: all(world.metric(name, "warmkey_store_up") == 1 for name in REPLICAS))
    resume_and_fork(codex, 1, served=7)


def replica_killed_in_mid_stream(codex):
    run = codex.exec("SLOW:30x100ms please, a long story.", by_socket=False)
    streaming = lambda: run.exchanges and len(run.exchanges[0].events("response.output_text.delta")) >= 2
    wait_for("answer that streams", streaming, seconds=60)
    broken = run.exchanges[0]
    check(not broken.events("response.completed"), "the answer was over before the replica could be killed")
    codex.world.kill(broken.served_by)
    run.finish()
    check(len(run.exchanges) >= 2, "codex did not need to ask again: nothing is shown")
    check(not broken.events("response.completed"), "the broken answer had been complete: nothing is shown")
    check(run.exchanges[-1].served_by not in (None, broken.served_by), "the killed replica answered")
    judge(codex.world, run.session, run.exchanges, served=1)


SCENARIOS = [
    doctor_that_finds_nothing_wrong,
    turn_with_a_tool_call,
    session_resumed_on_the_other_replica,
    session_resumed_and_forked_while_redis_is_stopped,
    replica_killed_in_mid_stream,
]
