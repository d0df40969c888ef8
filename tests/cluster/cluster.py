#!/usr/bin/env python3
"""The chart on a real Kubernetes, the cluster of the current context: sessions play while everything happens to it.

    cluster.py [--sessions N] [STEP...]

The simulated upstream and the players judge. No turn is lost but those in flight on what was killed, no session meets
a second key, no replica ends before its turns. Prints a line a step; exits 1 when one has failed.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time

import yaml

from kube import CHART, HELM3, NAMESPACE, ROOT, Failure, apply, archive, check, found, gateway, helm, is_ready, judge, kill, kubectl, load, nodes, page, pods, replicas, rolled_out, run, wait_for, words  # fmt: skip
from load import Ends, Load, all_reach
from papers import Papers
from world import DRAIN_DELAY, POSTGRES, TELEMETRY, TOKEN, build, collector, node_port, real_secret, trial_values, two_nodes, values

# The spans that every trace of a served turn has.
SPANS = {"turn", "authenticate", "identify", "bind", "chat gpt-5.4", "relay"}

OLD, NEW = "warmkey.test/warmkey:old", "warmkey.test/warmkey:new"
HA = str(CHART / "values-ha.yaml")


class Cluster:
    def __init__(self, folder, sessions):
        self.folder, self.sessions = folder, sessions
        self.stays, self.goes, self.address = two_nodes()
        self.load = self.ends = self.victim = None

    def file(self, name, content):
        path = os.path.join(self.folder, name)
        with open(path, "w", encoding="utf-8") as file:
            yaml.safe_dump(content, file)
        return path

    def upgraded(self, image, release="warmkey", **more):
        file = self.file("values.yaml", values(image, **more))
        helm("upgrade", "--install", release, str(CHART), "--values", HA, "--values", file)

    def url(self, release="warmkey"):
        return f"http://{self.address}:{node_port(release)}"

    # The steps, in their order.

    def prepared(self):
        """Images are on the nodes, and the namespace has what the release stands on."""
        for name in (OLD, NEW):
            load(archive(name, self.folder))
        build(OLD, self.stays)
        # The API server also accepts what kustomize makes of the plain manifests.
        plain = [one for one in yaml.safe_load_all(run("kubectl", "kustomize", str(ROOT / "k8s"))) if one["kind"] != "Namespace"]
        for one in plain:
            one["metadata"]["namespace"] = NAMESPACE
        taken = kubectl("apply", "--dry-run=server", "-f", "-", feed=yaml.safe_dump_all(plain))
        check(taken.count("created (server dry run)") == len(plain), taken)

    def installed(self):
        """The HA values in a namespace that enforces `restricted`; `helm test` plays a session."""
        self.upgraded(OLD)
        replicas("warmkey", 3)
        rolled_out("warmkey")
        self.tested()

    def tested(self):
        printed = helm("test", "warmkey", "--timeout", "120s", seconds=150)
        check("Succeeded" in printed, printed)
        wait_for("end of the test pod", lambda: not found("pods", "-l", "app.kubernetes.io/component=test")["items"], 60)

    def played(self):
        """Sessions begin, and from now on every end of a replica is written down."""
        self.ends = Ends(self.folder, "warmkey")
        self.load = Load(self.folder, "load", self.url(), TOKEN, self.sessions)

    def image_upgraded(self):
        self.upgraded(NEW)
        rolled_out("warmkey")
        self.load.goes_on("the upgrade")
        images = {pod["spec"]["containers"][0]["image"] for pod in pods(gateway("warmkey"))}
        check(images == {NEW}, f"{images}")

    def scaled(self):
        self.upgraded(NEW, autoscaling={"minReplicas": 5})
        replicas("warmkey", 5)
        self.load.goes_on("two more replicas")
        self.upgraded(NEW, autoscaling={"minReplicas": 2, "maxReplicas": 2})
        wait_for("two replicas", lambda: len(pods(gateway("warmkey"))) == 2, 180)
        self.load.goes_on("three replicas less")
        self.upgraded(NEW)
        replicas("warmkey", 3)

    def rotated(self):
        """Both keys get other secrets. Every pod stays, and its turns show the new ones."""
        restarts = lambda: {pod["metadata"]["uid"]: pod["status"]["containerStatuses"][0]["restartCount"] for pod in pods(gateway("warmkey"))}
        before, began = restarts(), time.monotonic()
        apply(yaml.safe_dump(real_secret(2)))

        seen = {"#1": 0, "#2": 0}

        def is_new():
            """60 turns with new secrets while none had an old one."""
            keys = judge("summary")["keys"]
            now = {which: sum(count for key, count in keys.items() if key.endswith(which)) for which in seen}
            if now["#1"] != seen["#1"]:
                seen.update(now)
            return now["#2"] >= seen["#2"] + 60

        wait_for("turns with the new secrets alone", is_new, 300)
        seconds = time.monotonic() - began
        check(before == restarts(), f"a pod was replaced or restarted by a rotated key: {before}, {restarts()}")
        return f"all turns show the new secrets after {seconds:.0f} s, no pod restarted"

    def drained(self):
        """A node is drained: its replicas leave, one at a time."""
        leaving = {pod["metadata"]["name"] for pod in pods(gateway("warmkey")) if pod["spec"].get("nodeName") == self.goes}
        check(leaving, "no replica is on the node that is drained")
        run("kubectl", "drain", self.goes, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=600s", seconds=620)
        self.load.goes_on("the drain")
        left = {name.split()[0] for name, _ in self.ends.codes()}
        check(leaving <= left, f"{leaving} were on the node, and {left} have ended")
        run("kubectl", "uncordon", self.goes)
        replicas("warmkey", 3)

    def process_killed(self):
        victim = pods(gateway("warmkey"))[0]
        self.victim = victim["metadata"]["name"]
        self.load.cut_by(lambda: kill(victim))
        replicas("warmkey", 3)
        self.load.goes_on("a replica's process was killed")

    def rolled_back(self):
        helm("rollback", "warmkey", "1")
        rolled_out("warmkey")
        self.load.goes_on("the rollback")
        images = {pod["spec"]["containers"][0]["image"] for pod in pods(gateway("warmkey"))}
        check(images == {OLD}, f"{images}")

    def uninstalled_under_load(self):
        """Turns in flight come to their end; later ones find no Service."""
        self.load.no_more()
        self.uninstalled()

    def judged(self):
        result = self.load.end()
        check(not result["lost"], f"{len(result['lost'])} turns lost: {result['lost'][:4]}")
        drift = self.drifted(result["sessions"])
        check(not drift, f"sessions met several keys: {drift}")
        ends = self.ends.codes()
        killed = {name: code for name, code in ends if code != 0}
        others = [name for name in killed if name.split()[0] != self.victim]
        check(len(ends) >= 12 and not others, f"replicas ended with {ends}, and {self.victim} alone was killed")
        # Each session has one turn at a time, and may send that one again while connections still lead to what was killed.
        check(len(result["cut"]) <= self.sessions, f"{len(result['cut'])} turns of {self.sessions} sessions lost by one replica that was killed")
        return f"turns {result['turns']}, sent again {result['again']}, in flight on what was killed {len(result['cut'])}, lost 0, drift 0; {len(ends)} replicas ended, {len(killed)} of them killed"

    def drifted(self, sessions):
        """Sessions that met more than one key. A rotated secret is the same key."""
        met = {}
        for turn in judge("turns"):
            if turn["session"] in sessions and turn["status"] == 200:
                met.setdefault(turn["session"], set()).add(turn["key"].split("#")[0])
        # A judge that knows no session would find no fault.
        check(set(met) == set(sessions), f"{len(sessions)} sessions played, and the upstream served {len(met)}: {set(sessions) ^ set(met)}")
        return {session: keys for session, keys in met.items() if len(keys) > 1}

    def autoscaled(self):
        """Load that the replicas cannot bear at 55 % brings more of them, and its end takes them away again."""
        desired = lambda: found("hpa", "warmkey")["status"].get("desiredReplicas", 0)
        self.upgraded(OLD, resources={"requests": {"cpu": "25m", "memory": "64Mi"}})
        rolled_out("warmkey")
        wait_for("an autoscaler that is content", lambda: desired() == 3, 240)
        players = Load(self.folder, "heavy", self.url(), TOKEN, self.sessions * 2, long=1)
        try:
            wait_for("an autoscaler that asks for more", lambda: desired() > 3, 240)
            most = wait_for("a replica more", lambda: len([pod for pod in pods(gateway("warmkey")) if is_ready(pod)]) > 3 and desired(), 120)
            players.goes_on("more replicas")
            result = players.end()
            check(not result["lost"], f"{result['lost'][:4]}")
        finally:
            players.stop()
        wait_for("three replicas again", lambda: desired() == 3, 300)
        return f"3 to {most} and back"

    def traced(self):
        """Each turn that an answer names is found in a real Jaeger by that name."""
        collector(self.stays)
        self.upgraded(OLD, config=values(OLD)["config"] + TELEMETRY)
        rolled_out("warmkey")
        players = Load(self.folder, "traced", self.url(), TOKEN, self.sessions, long=2)
        try:
            result = players.end()
        finally:
            players.stop()
        check(not result["lost"] and result["named"], f"{result['lost'][:4]}, {result['named']}")
        for turn in result["named"].values():
            wait_for(f"trace of turn {turn}", lambda turn=turn: self.spans(turn) >= SPANS, 60)
        return f"{len(result['named'])} turns read back by their x-warmkey-turn"

    def spans(self, turn):
        try:
            traces = page("jaeger:16686", f"api/traces/{turn.split('-')[0]}")["data"]
        except Failure:
            return set()  # Jaeger answers 404 until it has the trace.
        return {span["operationName"] for trace in traces for span in trace["spans"]}

    def control(self):
        """The test can fail: without a delay, and with 5 s of grace, turns are lost."""
        self.upgraded(OLD, release="control", fullnameOverride="control", config=values(OLD)["config"].replace(f'drain_delay = "{DRAIN_DELAY}"', 'drain_delay = "0s"'), autoscaling={"enabled": False}, replicaCount=2)
        rolled_out("control")
        patch = '{"spec": {"template": {"spec": {"terminationGracePeriodSeconds": 5}}}}'
        kubectl("patch", "deployment", "control", "--patch", patch)
        rolled_out("control")
        players = Load(self.folder, "control", self.url("control"), TOKEN, self.sessions)
        try:
            kubectl("rollout", "restart", "deployment/control")
            rolled_out("control")
            lost = len(players.end()["lost"])
        finally:
            players.stop()
        check(lost > 0, "no turn was lost without a delay and a grace: the test sees nothing")
        helm("uninstall", "control", "--wait")
        return f"{lost} turns lost, as they should be"

    def power_lost(self):
        """A node loses its power. What fails until Kubernetes notices is counted apart; then nothing does, and nothing drifts."""
        off, on = words("K8S_POWER_OFF", "docker kill"), words("K8S_POWER_ON", "docker start")
        players = Load(self.folder, "power", self.url(), TOKEN, self.sessions, long=5)
        try:
            lost_with_it = [pod for pod in pods(gateway("warmkey")) if pod["spec"].get("nodeName") == self.goes]
            check(lost_with_it, "no replica is on the node that loses its power")
            began = time.time()
            run(*off, self.goes, seconds=60)
            wait_for("Kubernetes to notice", lambda: self.goes not in nodes(), 180)
            gone = lambda: not any(
                endpoint.get("nodeName") == self.goes and endpoint["conditions"].get("ready")
                for piece in found("endpointslices", "-l", "kubernetes.io/service-name=warmkey")["items"]
                for endpoint in piece["endpoints"] or ()
            )
            wait_for("no replica of that node behind the Service", gone, 60)
            all_reach(self.url())
            noticed = time.time()
            # A turn on a connection to a lost replica ends only with its client's timeout.
            players.goes_on("the loss", turns=3, seconds=400)
            result = players.end()
        finally:
            players.stop()
            run(*on, self.goes, seconds=120)
        late = [lost for lost in result["lost"] if lost["at"] > noticed]
        latest = max((lost["at"] - noticed for lost in result["lost"]), default=0)
        check(not late, f"{len(late)} turns fail up to {latest:.1f} s after Kubernetes has noticed: {late[:4]}")
        drift = self.drifted(result["sessions"])
        check(not drift, f"sessions met several keys: {drift}")
        wait_for("the node is back", lambda: self.goes in nodes(), 180)
        replicas("warmkey", 3, 300)
        return f"{len(lost_with_it)} replicas lost with the node; {len(result['lost'])} turns failed in the {noticed - began:.0f} s until Kubernetes had noticed, none later; drift 0"

    def trial_kept(self):
        """A Secret made from values is the same after an upgrade, and is all that an uninstallation leaves."""
        file = self.file("trial.yaml", trial_values(OLD))
        helm("install", "trial", str(CHART), "--values", HA, "--values", file, program=HELM3)
        replicas("trial", 1)
        helm("test", "trial", "--timeout", "120s", program=HELM3, seconds=150)
        if POSTGRES:
            told = lambda: "alice" in kubectl("exec", "deployment/trial", "--", "warmkey", "usage", "--by", "client", "--config", "/etc/warmkey/warmkey.toml")
            wait_for("the test's turns in the trial PostgreSQL", told, 60)
        before = found("secret", "trial-secret")
        helm("upgrade", "trial", str(CHART), "--values", HA, "--values", file, "--set", "image.tag=new", program=HELM3)
        rolled_out("trial")
        check(found("secret", "trial-secret")["data"] == before["data"], "the trial Secret has changed by an upgrade")
        # An upgrade without the values that made the Secret keeps it, too.
        helm("upgrade", "trial", str(CHART), "--values", HA, "--values", file, "--set", "trialSecret.data=null", program=HELM3)
        rolled_out("trial")
        check(found("secret", "trial-secret")["data"] == before["data"], "the trial Secret is gone by an upgrade without its values")
        self.uninstalled("trial", HELM3, {"Secret/trial-secret"})
        check(found("secret", "trial-secret")["data"] == before["data"], "the trial Secret has changed by an uninstallation")
        return "with a PostgreSQL" if POSTGRES else "SKIPPED: the trial PostgreSQL, because K8S_POSTGRES names no image"

    def as_written(self):
        """What the papers tell a newcomer to do, command by command."""
        papers = Papers(self.folder, OLD, NAMESPACE)
        try:
            papers.plays()
            papers.leaves()
        finally:
            papers.remove()

    def uninstalled(self, release="warmkey", program=None, left=frozenset()):
        helm("uninstall", release, **({"program": program} if program else {}))
        kinds = "deployments,replicasets,pods,services,endpointslices,configmaps,secrets,serviceaccounts,hpa,pdb,networkpolicies,ingresses"

        def rest():
            items = found(kinds, "-l", f"app.kubernetes.io/instance={release}")["items"]
            return {f"{one['kind']}/{one['metadata']['name']}" for one in items}

        wait_for(f"nothing but {set(left)} of {release}", lambda: rest() == set(left), 300)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, default=30)
    parser.add_argument("steps", nargs="*", help="only these, with `prepared installed` before them")
    options = parser.parse_args()
    if subprocess.run(["kubectl", "get", "--raw", "/readyz"], capture_output=True, timeout=30, check=False).returncode:
        print("test-k8s: no cluster answers in the current context of kubectl", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as folder:
        cluster = Cluster(folder, options.sessions)
        steps = options.steps or (
            "prepared installed played image_upgraded scaled rotated drained process_killed rolled_back tested "
            "uninstalled_under_load judged autoscaled control power_lost traced uninstalled trial_kept as_written"
        ).split()
        try:
            for name in steps:
                began = time.monotonic()
                said = getattr(cluster, name)()
                print(f"ok {time.monotonic() - began:6.1f} s  {name.replace('_', ' ')}{': ' + said if said else ''}", flush=True)
        except Failure as failure:
            print(f"FAILED  {name}: {failure}", flush=True)
            print(kubectl("get", "pods,hpa,events", "-o", "wide")[-5000:])
            return 1
        finally:
            for one in (cluster.load, cluster.ends):
                if one:
                    one.stop()
            if not os.environ.get("WARMKEY_KEEP"):
                run("kubectl", "delete", "namespace", NAMESPACE, "--ignore-not-found", "--wait=false")
    return 0


if __name__ == "__main__":
    sys.exit(main())
