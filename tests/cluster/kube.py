"""kubectl and helm for the test on a cluster, and what differs from one kind of cluster to the next.

| variable | is | default |
|---|---|---|
| `K8S_LOAD` | the command that brings an image archive to all nodes; its path is appended | `kind load image-archive` |
| `K8S_NET` | the command before a program that runs where NodePorts answer | none |
| `K8S_PACK` | the command that writes the image `NAME` (1st argument) into an archive (2nd) | docker build, docker save |
| `K8S_REDIS` | the image of a Redis on the nodes, or to be pulled | `redis:8.2` |
| `K8S_POSTGRES` | the image of a PostgreSQL, likewise, for the trial release | none: the trial has no PostgreSQL, and its step says so |
| `K8S_JAEGER` | the image of a Jaeger 2, likewise | `jaegertracing/jaeger:2.21.0` |
| `K8S_KILL` | the command that kills the process of a pod's container: node and container id are appended | deletes the pod by force |
| `K8S_POWER_OFF`, `K8S_POWER_ON` | the command that cuts a node's power, and gives it back: its name is appended | `docker kill`, `docker start` |
| `WARMKEY_SLOWNESS` | a factor on every bound of a wait, for a slow machine | 1 |
| `HELM`, `HELM3` | Helm 4; Helm 3, which installs the trial release | `helm`, and the same |
"""

import json
import os
import pathlib
import shlex
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
# This folder comes after our own, because it has a module `world`, too.
sys.path.append(str(ROOT / "tests" / "clients"))

from parts import Failure, check  # noqa: E402

CHART = ROOT / "helm" / "warmkey"
NAMESPACE = "warmkey-test"
HELM = os.environ.get("HELM", "helm")
HELM3 = os.environ.get("HELM3", HELM)
SLOWNESS = float(os.environ.get("WARMKEY_SLOWNESS", "1"))
# Each query of the cluster costs CPU that the replicas on a small machine need.
LOOK_SECONDS = 0.5


def words(variable, default=""):
    return shlex.split(os.environ.get(variable, default))


def wait_for(what, probe, seconds=60):
    """Asks `probe` until it returns something true, and returns that. Fails with the last answer."""
    until = time.monotonic() + seconds * SLOWNESS
    while not (answer := probe()):
        check(time.monotonic() < until, f"no {what} within {seconds * SLOWNESS:.0f} s (last: {answer!r})")
        time.sleep(LOOK_SECONDS)
    return answer


def run(*command, seconds=120, feed=None):
    """The output of a command that must succeed."""
    try:
        done = subprocess.run(command, input=feed, capture_output=True, text=True, timeout=seconds * SLOWNESS, check=False)
    except subprocess.TimeoutExpired as expired:
        raise Failure(f"{shlex.join(map(str, command))}: not done in {expired.timeout:.0f} s") from expired
    check(done.returncode == 0, f"{shlex.join(map(str, command))}: {done.returncode}\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return done.stdout


def kubectl(*command, namespace=NAMESPACE, **options):
    return run("kubectl", "--namespace", namespace, *command, **options)


def helm(*command, program=HELM, **options):
    return run(program, "--namespace", NAMESPACE, *command, **options)


def apply(text):
    kubectl("apply", "-f", "-", feed=text)


def found(*what):
    return json.loads(kubectl("get", *what, "-o", "json"))


def pods(selector, all_of_them=False):
    """Pods that are not about to end, unless all are asked for."""
    items = found("pods", "-l", selector)["items"]
    return [pod for pod in items if all_of_them or "deletionTimestamp" not in pod["metadata"]]


def is_ready(pod):
    return any(one["type"] == "Ready" and one["status"] == "True" for one in pod["status"].get("conditions", []))


def gateway(release):
    return f"app.kubernetes.io/instance={release},app.kubernetes.io/component=gateway"


def replicas(release, count, seconds=180):
    """Waits for just so many replicas, all ready."""

    def there():
        now = pods(gateway(release))
        return len(now) == count and all(is_ready(pod) for pod in now)

    wait_for(f"{count} replicas of {release}", there, seconds)


def rolled_out(release, seconds=300):
    kubectl("rollout", "status", f"deployment/{release}", f"--timeout={seconds * SLOWNESS:.0f}s", seconds=seconds + 10)


def nodes():
    """Names of the nodes that are ready, and the address of each."""
    items = json.loads(run("kubectl", "get", "nodes", "-o", "json"))["items"]
    address = lambda node: next(one["address"] for one in node["status"]["addresses"] if one["type"] == "InternalIP")
    return {node["metadata"]["name"]: address(node) for node in items if is_ready(node)}


def page(service, path):
    """A page of a Service, through the API server."""
    return json.loads(run("kubectl", "get", "--raw", f"/api/v1/namespaces/{NAMESPACE}/services/{service}/proxy/{path}"))


def judge(what):
    """What the simulated upstream says."""
    return page("upstream:9100", f"_sim/{what}")


def archive(name, folder):
    """An image archive of Warmkey under this name."""
    path = os.path.join(folder, name.replace("/", "-").replace(":", "-") + ".tar")
    pack = words("K8S_PACK")
    if pack:
        run(*pack, name, path, seconds=600)
    else:
        run("docker", "build", "-t", name, str(ROOT), seconds=3600)
        run("docker", "save", "-o", path, name, seconds=300)
    return path


def load(path):
    run(*words("K8S_LOAD", "kind load image-archive"), path, seconds=600)


def kill(pod):
    """Ends the process of a pod's container at once."""
    status = pod["status"]["containerStatuses"][0]
    command = words("K8S_KILL")
    if command:
        run(*command, pod["spec"]["nodeName"], status["containerID"].split("//")[1])
    else:
        kubectl("delete", "pod", pod["metadata"]["name"], "--force", "--grace-period=0")


__all__ = [
    "CHART", "HELM3", "NAMESPACE", "ROOT", "SLOWNESS", "Failure", "apply", "archive", "check", "found", "gateway", "helm", "is_ready", "judge",
    "kill", "kubectl", "load", "nodes", "page", "pods", "replicas", "rolled_out", "run", "wait_for", "words",
]  # fmt: skip
