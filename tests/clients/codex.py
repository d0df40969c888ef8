#!/usr/bin/env python3
"""The real Codex CLI through two replicas behind a balancer without affinity.

    codex.py --codex FOLDER --warmkey BINARY [WORDS]

The simulated upstream's record is the judge. FOLDER is where npm has put the package @openai/codex.
With WORDS, only scenarios with these words in their name are played. Prints a line for each scenario,
and exits with 1 if one has failed.
"""

import argparse
import glob
import os
import sys

import failing
import over_http
import over_socket
import own_traces
from cli import Codex
from stage import play


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--codex", required=True)
    options.add_argument("--warmkey", required=True)
    options.add_argument("words", nargs="*")
    chosen = options.parse_args()
    # Only the package's start script needs node. The program in it does not.
    found = glob.glob(os.path.join(chosen.codex, "node_modules/@openai/codex-*/vendor/*/bin/codex"))
    if len(found) != 1:
        sys.exit(f"one Codex binary below {chosen.codex} was expected, not {found}")
    program = os.path.abspath(found[0])
    home = lambda world: Codex(world, program, "codex")
    acts = [
        ("both transports", {}, over_http.SCENARIOS + over_socket.SCENARIOS + own_traces.SCENARIOS, home),
        ("failing keys", {}, failing.SCENARIOS, home),
        ("an hour in four seconds", {"simulator": "time_scale = 900"}, over_socket.WITHIN_THE_LIMIT, home),
        ("an upstream without WebSocket", {"simulator": "websocket = false"}, over_socket.WITHOUT, home),
        ("a pool without WebSocket", {"upstream": 'speaks = ["responses"]'}, over_socket.WITHOUT, home),
    ]
    return play(chosen.warmkey, acts, " ".join(chosen.words))


if __name__ == "__main__":
    sys.exit(main())
