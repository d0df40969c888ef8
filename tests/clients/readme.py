#!/usr/bin/env python3
"""Does what the README tells a newcomer to do, as it is written there: its configurations, its commands, its Codex.

    readme.py --codex FOLDER --warmkey BINARY

Not as in the README: the upstream is the simulated one, the ports are free ones, and `cargo build --release` is read but not
run, for the given binary plays. `make demo`, the compose file and the chart have tests of their own. Exits 1 when a step has
failed.
"""

import argparse
import glob
import json
import os
import re
import shlex
import subprocess
import sys

from parts import Failure, Parts, check, get, start_redis, wait_for
from readme_text import blocks, commands, section

USUAL, REDIS = "127.0.0.1:8080", "redis://redis:6379"
SECRETS = {"OPENAI_KEY_A1": "simulated-a-1", "OPENAI_KEY_B1": "simulated-b-1", "ALICE_TOKEN": "alice-of-the-readme"}


def checked(warmkey, words, environment, folder):
    """`warmkey check`, which must find nothing wrong; returns its output."""
    done = subprocess.run([warmkey, *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False)
    check(done.returncode == 0, f"{words}: {done.stdout}{done.stderr}")
    return done.stdout


def play(parts, program, warmkey):
    part = section("Codex in three minutes")
    ours, *codexs = blocks(part, "toml")
    check(len(codexs) == 2, f"{len(codexs)} configurations of Codex, not one for each transport")
    keys = "".join(f'[[sim.key]]\nid = "{k}"\nsecret = "simulated-{k}"\norganization = "org-{k[0]}"\n' for k in ("a-1", "b-1"))
    parts.start("simulator", [warmkey, "simulate", "--config", parts.path("sim.toml", keys), "--listen", "127.0.0.1:0"])
    (upstream,) = parts.announced("simulator", r"simulating on http://(\S+)")
    parts.path("warmkey.toml", f'{ours}\n[[upstream]]\nname = "openai"\nbase_url = "http://{upstream}/v1"\n')
    own = {"WARMKEY__SERVER__LISTEN": "127.0.0.1:0", "WARMKEY__SERVER__ADMIN_LISTEN": "127.0.0.1:0"}
    environment = os.environ | SECRETS | own

    build, *rest = commands(part)
    check(build == ["cargo", "build", "--release"], f"the first command is {build}")
    check([words[0] for words in rest] == ["target/release/warmkey"] * 2, f"the commands are {rest}")
    (_, *checks), (_, *serves) = rest
    checked(warmkey, checks, environment, parts.folder)
    parts.start("replica", [warmkey, *serves], environment, cwd=parts.folder)
    (address,) = parts.announced("replica", r"listening on http://(\S+)")
    (said,) = re.findall(r"`(codex exec [^`]+)`", part)
    turns = lambda: [turn for turn in json.loads(get(f"http://{upstream}/_sim/turns")) if turn["session"]]
    for transport, configuration in zip(("websocket", "http"), codexs):
        before = len(turns())
        says(parts, program, transport, configuration, address, said)
        new = turns()[before:]
        check(new and {turn["status"] for turn in new} <= {101, 200}, f"the upstream saw {new}")
        check({turn["transport"] for turn in new} == {transport}, f"by {transport}: {new}")
        check(len({turn["key"] for turn in new}) == 1, f"one key for the session: {new}")
    wait_for("lines of the turns in the log", lambda: parts.log("replica").count('"outcome"') >= 2)


def says(parts, program, name, configuration, address, said):
    """The real Codex with a configuration of the README, at this address."""
    check(configuration.count(USUAL) == 1, f"Codex's configuration names {USUAL}")
    more = 'approval_policy = "never"\nsandbox_mode = "danger-full-access"\n'
    folder = parts.path(name)
    os.makedirs(folder)
    parts.path(f"{name}/config.toml", more + configuration.replace(USUAL, address) + "\n[analytics]\nenabled = false\n")
    home = {"HOME": folder, "CODEX_HOME": folder, "NO_PROXY": "127.0.0.1", "PATH": os.environ["PATH"]}
    _, *words = shlex.split(said)
    command = [program, words[0], "--skip-git-repo-check", *words[1:]]
    done = subprocess.run(command, cwd=folder, env=home | SECRETS, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False)
    check(done.returncode == 0 and done.stdout.strip(), f"{said}: {done.returncode} {done.stdout} {done.stderr[-2000:]}")


def could_run(parts, warmkey):
    """The configuration of several replicas: that of one, with the sections of the README and a Redis."""
    (one, *_) = blocks(section("Codex in three minutes"), "toml")
    (several,) = blocks(section("Several replicas"), "toml")
    check(several.count(REDIS) == 1, f"the configuration of several replicas names {REDIS}")
    store = start_redis(parts, "redis")
    file = parts.path("several.toml", one + several.replace(REDIS, store))
    environment = os.environ | SECRETS | {"WARMKEY_ADMIN_TOKEN": "admin-of-the-readme", "WARMKEY_SECRET": "0123456789abcdef" * 2}
    printed = checked(warmkey, ["check", "--config", file], environment, parts.folder)
    check("The store does what serving needs." in printed, printed)
    check("Listens on 0.0.0.0:8080 for clients" in printed, printed)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--codex", required=True)
    parser.add_argument("--warmkey", required=True)
    options = parser.parse_args()
    found = glob.glob(os.path.join(options.codex, "node_modules/@openai/codex-*/vendor/*/bin/codex"))
    if len(found) != 1:
        sys.exit(f"one Codex binary below {options.codex} was expected, not {found}")
    with Parts() as parts:
        try:
            play(parts, os.path.abspath(found[0]), os.path.abspath(options.warmkey))
            could_run(parts, os.path.abspath(options.warmkey))
        except Failure as failure:
            print(f"FAILED  the README's commands: {failure}")
            print("\n".join(parts.tails()))
            return 1
    print("ok  the README's commands")
    return 0


if __name__ == "__main__":
    sys.exit(main())
