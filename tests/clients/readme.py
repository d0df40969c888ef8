#!/usr/bin/env python3
"""Does what the README tells a newcomer to do, as it is written there: its configuration, its commands, its Codex.

    readme.py --codex FOLDER --warmkey BINARY

Two things are not as in the README: the upstream is the simulated one, and the ports are free ones. Exits 1 when a step has
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

from parts import Failure, Parts, check, get, wait_for

README = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "README.md")
USUAL = "127.0.0.1:8080"
SECRETS = {"OPENAI_KEY_A1": "simulated-a-1", "OPENAI_KEY_B1": "simulated-b-1", "ALICE_TOKEN": "alice-of-the-readme"}


def section(title):
    """The text below a heading, up to the next one."""
    with open(README, encoding="utf-8") as file:
        found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", file.read(), re.M | re.S)
    check(found, f"the README has no section {title}")
    return found.group(1)


def blocks(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.M | re.S)


def commands(text):
    """The words of each command, without its comment."""
    lines = [line for block in blocks(text, "sh") for line in block.splitlines()]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def play(parts, program, warmkey):
    part = section("Codex in three minutes")
    ours, codexs = blocks(part, "toml")
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
    done = subprocess.run([warmkey, *checks], cwd=parts.folder, env=environment, capture_output=True, text=True, timeout=60, check=False)
    check(done.returncode == 0, f"{checks}: {done.stdout}{done.stderr}")
    parts.start("replica", [warmkey, *serves], environment, cwd=parts.folder)
    (address,) = parts.announced("replica", r"listening on http://(\S+)")

    check(codexs.count(USUAL) == 1, f"Codex's configuration names {USUAL}")
    more = 'approval_policy = "never"\nsandbox_mode = "danger-full-access"\n'
    os.makedirs(parts.path("home"))
    parts.path("home/config.toml", more + codexs.replace(USUAL, address) + "\n[analytics]\nenabled = false\n")
    home = {"HOME": parts.path("home"), "CODEX_HOME": parts.path("home"), "NO_PROXY": "127.0.0.1", "PATH": os.environ["PATH"]}
    (said,) = re.findall(r"`(codex exec [^`]+)`", part)
    _, *words = shlex.split(said)
    command = [program, words[0], "--skip-git-repo-check", *words[1:]]
    done = subprocess.run(command, cwd=parts.path("home"), env=home | SECRETS, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False)
    check(done.returncode == 0 and done.stdout.strip(), f"{said}: {done.returncode} {done.stdout} {done.stderr[-2000:]}")
    turns = [turn for turn in json.loads(get(f"http://{upstream}/_sim/turns")) if turn["session"]]
    check(turns and {turn["status"] for turn in turns} <= {101, 200}, f"the upstream saw {turns}")
    check(len({turn["key"] for turn in turns}) == 1, f"one key for the session: {turns}")
    wait_for("line of the turn in the log", lambda: '"outcome"' in parts.log("replica"))


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
        except Failure as failure:
            print(f"FAILED  the README's commands: {failure}")
            print("\n".join(parts.tails()))
            return 1
    print("ok  the README's commands")
    return 0


if __name__ == "__main__":
    sys.exit(main())
