"""Plays scenarios of real clients, each group in its own deployment; prints a line for each."""

import os
import signal
import sys
import time

from parts import Failure, Parts
from world import World


def play(warmkey, acts, words=""):
    """Plays `acts`: each has a world's name, its options, a client of the world, and scenarios.

    Returns an exit code. With `words`, only scenarios with these words in their name are played.
    """
    # A SIGTERM ends the children, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    passed = failed = 0
    for name, particular, scenarios, client in acts:
        chosen = [scenario for scenario in scenarios if words in titled(scenario)]
        if not chosen:
            continue
        with Parts() as parts:
            try:
                world = World(parts, os.path.abspath(warmkey), name, **particular)
                actor = client(world)
            except Failure as failure:
                failed += len(chosen)
                print(f"the parts of {name} did not start: {failure}", *parts.tails(), sep="\n")
                continue
            print(f"-- {name}", flush=True)
            faults = sum(not succeeds(scenario, actor, world) for scenario in chosen)
            if faults:
                print(*parts.tails(), sep="\n")
            passed, failed = passed + len(chosen) - faults, failed + faults
    print(f"{passed} passed, {failed} failed")
    return 1 if failed or not passed else 0


def titled(scenario):
    return scenario.__name__.replace("_", " ")


def succeeds(scenario, actor, world):
    began = time.monotonic()
    try:
        world.complete()
        scenario(actor)
    except Exception as failure:  # The other scenarios still say something.
        print(f"FAILED - {titled(scenario)} ({time.monotonic() - began:.1f} s): {type(failure).__name__}: {failure}", flush=True)
        return False
    print(f"ok - {titled(scenario)} ({time.monotonic() - began:.1f} s)", flush=True)
    return True
