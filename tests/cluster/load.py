"""The players of a test on a cluster, and what became of their turns; and a watch on the ends of pods."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time
import urllib.parse

from kube import NAMESPACE, SLOWNESS, check, gateway, wait_for, words

HERE = pathlib.Path(__file__).parent
PLAYER, REACH = HERE / "player.py", HERE / "reach.py"
# With three replicas, one of which is lost, so many connections miss it once in 200,000 times.
CONNECTIONS = 30


def all_reach(url, seconds=180):
    """Waits until every new connection leads to a replica that lives: kube-proxy has learned of a loss."""
    at = urllib.parse.urlsplit(url)
    command = [*words("K8S_NET"), sys.executable, "-B", str(REACH), at.hostname, str(at.port), str(CONNECTIONS)]
    there = lambda: subprocess.run(command, capture_output=True, timeout=120 * SLOWNESS, check=False).returncode == 0
    wait_for("connections that all lead to a replica", there, seconds)


class Load:
    """Sessions that play where NodePorts answer, until they are ended."""

    def __init__(self, folder, name, url, token, sessions, long=60):
        self._url, self._out = url, os.path.join(folder, f"{name}.json")
        command = [*words("K8S_NET"), sys.executable, "-B", str(PLAYER), "--url", url, "--token", token, "--out", self._out]
        self._process = subprocess.Popen([*command, "--sessions", str(sessions), "--long", str(long)])
        self.kills = []
        self.last = float("inf")
        self.goes_on("the start")

    def turns(self):
        check(self._process.poll() is None, "the players have ended")
        try:
            with open(f"{self._out}.turns", encoding="utf-8") as file:
                return json.load(file)
        except FileNotFoundError:
            return {}

    def goes_on(self, what, turns=1, seconds=240):
        """Waits until every session has had some more turns."""
        before = self.turns()
        more = lambda now: bool(now) and all(now[one] >= before.get(one, 0) + turns for one in now)
        wait_for(f"turns of every session after {what}", lambda: more(self.turns()), seconds)

    def cut_by(self, deed):
        """Turns in flight at `deed` may be lost, and those that begin before the Service leads elsewhere."""
        began = time.time()
        deed()
        all_reach(self._url)
        self.kills.append((began, time.time()))

    def no_more(self):
        """Turns that begin from now on find nothing that serves them, and are left out."""
        self.last = time.time()

    def end(self):
        """What became of the turns, once those in flight have ended; turns in flight at a cut are counted apart."""
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(240 * SLOWNESS)
        with open(self._out, encoding="utf-8") as file:
            result = json.load(file)
        result["lost"] = [one for one in result["lost"] if one["at"] < self.last]
        excused = lambda lost: any(lost["at"] <= until and began <= lost["until"] for began, until in self.kills)
        result["cut"] = [one for one in result["lost"] if excused(one)]
        result["lost"] = [one for one in result["lost"] if not excused(one)]
        return result

    def stop(self):
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait(10)


class Ends:
    """Watches how the containers of replicas end, until it is told to stop."""

    def __init__(self, folder, release):
        self._path = os.path.join(folder, f"ends-{release}")
        # A pod that has no node yet has no status of a container, and `range` reports that as a fault.
        of = ".status.containerStatuses[*]"
        fields = (".metadata.name", f"{of}.state.terminated.exitCode", f"{of}.state.terminated.reason", f"{of}.restartCount")
        form = "jsonpath=" + '{" "}'.join(f"{{{field}}}" for field in fields) + r'{"\n"}'
        command = ["kubectl", "--namespace", NAMESPACE, "get", "pods", "--watch", "-l", gateway(release), "-o", form]
        with open(self._path, "wb") as out:
            self._process = subprocess.Popen(command, stdout=out)

    def codes(self):
        """The exit code of each container that has ended: pairs of pod and code, a container that ends twice is two."""
        codes = set()
        with open(self._path, encoding="utf-8") as file:
            for line in file:
                # A container that runs has no code and no reason.
                if len(said := line.split()) == 4:
                    name, code, _, restarts = said
                    codes.add((f"{name} {restarts}", int(code)))
        return sorted(codes)

    def stop(self):
        self._process.kill()
        self._process.wait(10)
