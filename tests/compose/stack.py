"""The compose file's containers, started, changed and removed by either version of compose."""

import json
import os
import shlex
import subprocess
import sys
import time
import urllib.error

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "clients"))

import parts  # noqa: E402
from parts import Failure, check, get  # noqa: E402
from readme_text import commands, section  # noqa: E402

ROOT = os.path.abspath(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", ".."))
BALANCER, UPSTREAM, PROMETHEUS, JAEGER = "127.0.0.1:8080", "127.0.0.1:9100", "127.0.0.1:9091", "127.0.0.1:16686"
TOKEN = "alice-for-trials"
# A factor on every bound of a wait, for a slow machine.
SLOWNESS = float(os.environ.get("WARMKEY_SLOWNESS", "1"))
LOOK_SECONDS = 0.5


def as_written(program):
    """The words after `program` in each of the README's commands for the compose file."""
    found = commands(section("Several replicas"))
    return [words[len(program) :] for words in found if words[: len(program)] == program]


def wait_for(what, probe, seconds):
    return parts.wait_for(what, probe, seconds * SLOWNESS)


def run(*command, seconds=120, **options):
    """The output of a command that must succeed."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds * SLOWNESS, cwd=ROOT, **options)
    check(done.returncode == 0, f"{shlex.join(command)}: {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout


def docker(*command, **options):
    # A newer client that comes first on the path may lack BuildKit.
    program = "/usr/bin/docker" if os.path.exists("/usr/bin/docker") else "docker"
    return run(program, *command, **options)


class Stack:
    """Leaving it removes all containers, networks and volumes of the project."""

    def __init__(self, project):
        v2 = subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode == 0
        self._compose = [*(("docker", "compose") if v2 else ("docker-compose",)), "--project-name", project]
        services = ["redis", "postgres", "upstream", "warmkey", "balancer", "jaeger", "prometheus", "grafana"]
        # An empty variable says that there is no such image here.
        self.services = [name for name in services if os.environ.get(f"{name.upper()}_IMAGE", "x")]

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind and os.environ.get("WARMKEY_KEEP"):
            return
        self.compose("down", "--volumes", "--timeout", "2", seconds=180)

    def compose(self, *command, seconds=120):
        # compose wants a name for every image, even if its service is not started.
        environment = {name: value for name, value in os.environ.items() if not (name.endswith("_IMAGE") and not value)}
        return run(*self._compose, *command, seconds=seconds, env=environment)

    def up(self, replicas, *options, seconds=240):
        started = time.monotonic()
        self.compose("up", "--detach", "--no-build", "--scale", f"warmkey={replicas}", *options, *self.services, seconds=seconds)
        self.healthy(replicas)
        return time.monotonic() - started

    def start(self):
        """Starts everything with the README's command."""
        first, _ = as_written(["docker", "compose"])
        check(first[:1] == ["up"] and "--scale" not in first, f"the README's first command is {first}")
        # Building an image on this machine may take long.
        self.compose(*first, *self.services, seconds=3600)
        self.healthy(3)

    def scale(self):
        """Adds replicas with the README's command, and returns their number."""
        _, second = as_written(["docker", "compose"])
        (count,) = [int(word.removeprefix("warmkey=")) for word in second if word.startswith("warmkey=")]
        check(second[:1] == ["up"] and "--scale" in second, f"the README's second command is {second}")
        # A replica that was replaced stays.
        self.compose(*second, "--no-recreate", *self.services, seconds=240)
        self.healthy(count)
        return count

    def ids(self, service="warmkey"):
        return self.compose("ps", "-q", service).split()

    def healthy(self, replicas, seconds=120):
        """Waits until all containers are healthy, and the balancer and Prometheus know just these replicas."""

        health = {}

        def all_healthy():
            # Each check starts a dozen programs, which take CPU that the replicas on a small machine need.
            time.sleep(LOOK_SECONDS)
            found = [json.loads(docker("inspect", one))[0] for name in self.services for one in self.ids(name)]
            health.update({one["Name"]: one["State"].get("Health", {}).get("Status") for one in found})
            return all(one["State"]["Health"]["Status"] == "healthy" for one in found)

        try:
            wait_for("health of all containers", all_healthy, seconds)
        except Failure as failure:
            raise Failure(f"{failure}: {health}") from failure
        wait_for(f"{replicas} replicas in Prometheus", lambda: self.up_targets() == replicas, 60)

    def up_targets(self):
        try:
            targets = json.loads(get(f"http://{PROMETHEUS}/api/v1/targets"))["data"]["activeTargets"]
        except (urllib.error.URLError, OSError):
            return None
        return sum(target["health"] == "up" for target in targets) if all(t["health"] != "unknown" for t in targets) else None

    @staticmethod
    def judge(page):
        return json.loads(get(f"http://{UPSTREAM}/_sim/{page}"))


__all__ = ["BALANCER", "JAEGER", "PROMETHEUS", "ROOT", "TOKEN", "UPSTREAM", "Failure", "Stack", "as_written", "check", "docker", "get", "run", "wait_for"]
