"""Plays scenarios of real clients, each group against a deployment of its own, and prints a line for each."""

import os
import signal
import sys
import time

from parts import Failure, Parts
from world import World


def play(warmkey, acts, words=""):
    """`acts`: the name of a world, what is particular about it, and the scenarios for whom `client(world)` makes.

    Returns an exit code. `words`: only the scenarios whose name has them.
    """
    # Ended from outside, the children are ended too.
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
    except Exception as failure:  # Whatever it was, the other scenarios still tell something.
        print(f"FAILED - {titled(scenario)} ({time.monotonic() - began:.1f} s): {type(failure).__name__}: {failure}", flush=True)
        return False
    print(f"ok - {titled(scenario)} ({time.monotonic() - began:.1f} s)", flush=True)
    return True
