"""Codex while keys fail: its session goes on, or stops with a message that its user should read."""

from judge import answers
from parts import check


def began(codex, by_socket):
    """Begins a session. Returns it with its key."""
    run = codex.exec("Say that you are there.", by_socket=by_socket)
    run.finish()
    (first, *_) = answers(codex.world.record(run.session))
    return run, first


def goes_on(codex, by_socket, siblings=False, **fault):
    """The fault strikes the session's next turn once, unnoticed: one key, as many answers as turns.

    `siblings`: another key of the same cache may serve it.
    """
    run, _ = began(codex, by_socket)
    codex.world.fault(session=run.session, times=1, prewarm=False, **fault)
    again = codex.exec("resume", run.session, "Go on.", by_socket=by_socket)
    again.finish()
    struck = [turn for turn in codex.world.record(run.session) if turn["outcome"] != "completed"]
    check(struck, "nothing has struck: nothing is shown")
    on_one_key(codex.world, run.session, served=2, siblings=siblings)


def on_one_key(world, session, served, siblings=False):
    """Checks for one answer a turn, all on one key. A turn may have been sent more than once."""
    turns = world.record(session)
    keys = [turn["key"].rsplit("-", 1)[0] if siblings else turn["key"] for turn in turns]
    check(len(set(keys)) == 1, f"one key, not {keys}")
    answered = [turn["body_sha256"] for turn in answers(turns)]
    check(len(answered) == len(set(answered)) == served, f"{served} answers, each to a turn of its own, not {len(answered)}")


def both(scenario, **fault):
    """A scenario over either transport."""

    def play(codex):
        for by_socket in (False, True):
            scenario(codex, by_socket, **fault)

    return play


def called(name, scenario):
    scenario.__name__ = name
    return scenario


def key_is_revoked(codex, by_socket):
    run, first = began(codex, by_socket)
    codex.world.fault(key=first["key"], status=401, code="invalid_api_key")
    for text in ("Go on.", "And on."):
        again = codex.exec("resume", run.session, text, by_socket=by_socket)
        again.finish()
        check("Incorrect API key" not in again.log, "what is said of our keys is not for users")
    keys = [turn["key"] for turn in answers(codex.world.record(run.session))]
    check(len(set(keys[1:])) == 1 and keys[0] != keys[1], f"one move: {keys}")
    check(keys[1].startswith(first["key"][0]), f"within its organization: {keys}")
    codex.world.heal(first["key"])


def organization_is_exhausted(codex):
    run, first = began(codex, False)
    codex.world.fault(organization=first["organization"], status=429, code="credit_balance_exhausted")
    before = len(codex.world.record(run.session))
    for _ in range(2):
        again = codex.exec("resume", run.session, "Go on.", by_socket=False)
        check(again.stops() != 0, "it stops")
        check("uota" in again.log, f"its user reads why: {again.log[-500:]}")
        check(len(again.exchanges) == 1, f"and it does not try again and again: {len(again.exchanges)}")
    asked = len(codex.world.record(run.session)) - before
    check(asked <= 2, f"the upstream is asked once by each replica at the most, not {asked} times")


SCENARIOS = [
    called("limit for a moment", both(goes_on, status=429, retry_after=1)),
    called("limit for longer than the gateway waits", both(goes_on, siblings=True, status=429, retry_after=7)),
    called("overloaded model", both(goes_on, status=503, code="server_is_overloaded", retry_after=1)),
    called("failing upstream", both(goes_on, status=500)),
    called("answer that is cut", both(goes_on, cut_after_events=4)),
    called("key that is revoked", both(key_is_revoked)),
    organization_is_exhausted,
]
