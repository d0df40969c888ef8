"""What the releases of a test on a cluster stand on: a namespace, a Redis, the simulated upstream, and the Secret."""

import base64
import json
import os
import secrets
import textwrap

import yaml

from kube import CHART, NAMESPACE, SLOWNESS, apply, check, found, kubectl, nodes, wait_for

REDIS = os.environ.get("K8S_REDIS", "redis:8.2")
POSTGRES = os.environ.get("K8S_POSTGRES", "")
JAEGER = os.environ.get("K8S_JAEGER", "jaegertracing/jaeger:2.21.0")
TOKEN = "alice-" + secrets.token_hex(8)
# The time in which kube-proxy learns that a replica leaves. `drain` is for streams of a minute. A slow machine needs more.
DRAIN_DELAY = f"{5 * SLOWNESS:.0f}s"
KEYS = {"a-1": "org-a", "b-1": "org-b"}
RESTRICTED = {
    "runAsNonRoot": True,
    "runAsUser": 65532,
    "runAsGroup": 65532,
    "seccompProfile": {"type": "RuntimeDefault"},
}
CONTAINER = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}


# Jaeger with its traces in memory; without a configuration it would trace itself, too.
COLLECTOR = """
service:
  extensions: [jaeger_storage, jaeger_query]
  pipelines:
    traces: {receivers: [otlp], exporters: [jaeger_storage_exporter]}
  telemetry:
    metrics: {level: none}
    logs: {level: warn}
extensions:
  jaeger_storage: {backends: {memory: {memory: {max_traces: 10000}}}}
  jaeger_query:
    storage: {traces: memory}
    enable_tracing: false
    http: {endpoint: "0.0.0.0:16686"}
    grpc: {endpoint: "127.0.0.1:16685"}
receivers:
  otlp:
    protocols:
      grpc: {endpoint: "0.0.0.0:4317"}
exporters:
  jaeger_storage_exporter: {trace_storage: memory}
"""
TELEMETRY = f"""
[telemetry]
otlp_endpoint = "http://jaeger.{NAMESPACE}:4317"
"""


def secret(key, generation):
    return f"simulated-{key}-{generation}"


def sim():
    """The simulator's keys: each key has a second secret, by which it is rotated."""
    keys = [
        f'[[sim.key]]\nid = "{key}#{n}"\nsecret = "{secret(key, n)}"\norganization = "{organization}"\nproject = "one"\n'
        for key, organization in KEYS.items()
        for n in (1, 2)
    ]
    return '[sim]\nexpose = true\nevent_delay = "10ms"\n' + "".join(keys)


def server(name, image, args, ports, node, mounts=()):
    """A Deployment and a Service for something that is no part of the chart, on a node that stays. It is ready by its first port."""
    labels = {"app": name}
    container = {
        "name": name,
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "args": args,
        "ports": [{"containerPort": port} for port in ports],
        "readinessProbe": {"tcpSocket": {"port": ports[0]}, "periodSeconds": 1},
        "securityContext": CONTAINER,
        "volumeMounts": [{"name": one, "mountPath": f"/etc/{one}"} for one in mounts],
    }
    pod = {
        "nodeSelector": {"kubernetes.io/hostname": node},
        "securityContext": RESTRICTED,
        "terminationGracePeriodSeconds": 2,
        "containers": [container],
        "volumes": [{"name": one, "configMap": {"name": one}} for one in mounts],
    }
    template = {"metadata": {"labels": labels}, "spec": pod}
    spec = {"replicas": 1, "selector": {"matchLabels": labels}, "template": template}
    service = {"selector": labels, "ports": [{"name": f"port-{port}", "port": port, "targetPort": port} for port in ports]}
    yield {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": spec}
    yield {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": service}


def build(image, node):
    """A namespace that enforces `restricted`, with Redis, the upstream and the Secret of real use."""
    labels = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn")}
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": labels}}
    config = config_map("simulator", {"warmkey.toml": sim()})
    simulate = ["simulate", "--config", "/etc/simulator/warmkey.toml", "--listen", "0.0.0.0:9100"]
    store = ["--save", "", "--appendonly", "no", "--protected-mode", "no", "--dir", "/tmp"]
    objects = [
        namespace,
        config,
        *server("upstream", image, simulate, [9100], node, ["simulator"]),
        *server("store", REDIS, store, [6379], node),
        real_secret(1),
    ]
    apply(yaml.safe_dump_all(objects))
    for name in ("upstream", "store"):
        kubectl("rollout", "status", f"deployment/{name}", "--timeout=120s", seconds=130)


def config_map(name, data):
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


def collector(node):
    """A Jaeger, where `TELEMETRY` leads traces to."""
    args = ["--config", "/etc/collector/jaeger.yaml"]
    jaeger = server("jaeger", JAEGER, args, [16686, 4317], node, ["collector"])
    apply(yaml.safe_dump_all([config_map("collector", {"jaeger.yaml": COLLECTOR}), *jaeger]))
    kubectl("rollout", "status", "deployment/jaeger", "--timeout=120s", seconds=130)


def real_secret(generation):
    """What an operator makes by hand, with this generation of the keys' secrets."""
    data = {
        "secret": "of-a-test-0123456789abcdef0123456789",
        "admin-token": "admin-of-a-test",
        "store-url": f"redis://store.{NAMESPACE}:6379",
        "clients": f"alice {TOKEN}\n",
        **{f"key-{key}": secret(key, generation) for key in KEYS},
    }
    encoded = {name: base64.b64encode(text.encode()).decode() for name, text in data.items()}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "warmkey"}, "data": encoded}


def values(image, **more):
    """values-ha.yaml, pointed at the simulator, with a drain and an autoscaler that a test can wait for."""
    config = yaml.safe_load((CHART / "values-ha.yaml").read_text())["config"]
    config = config.replace("[server]\n", f'[server]\ndrain_delay = "{DRAIN_DELAY}"\ndrain = "{90 * SLOWNESS:.0f}s"\n')
    config += textwrap.dedent(f"""
        [[upstream]]
        name = "openai"
        base_url = "http://upstream.{NAMESPACE}:9100/v1"
    """)
    repository, tag = image.rsplit(":", 1)
    own = {
        "config": config,
        "image": {"repository": repository, "tag": tag},
        "service": {"type": "NodePort"},
        "minReadySeconds": 5,
        # So much that only the step about it makes the autoscaler move.
        "resources": {"requests": {"cpu": "200m", "memory": "64Mi"}},
        "autoscaling": {"enabled": True, "minReplicas": 3, "maxReplicas": 6, "scaleDownStabilizationSeconds": 5, "scaleDownPeriodSeconds": 5},
    }
    for name, value in more.items():
        own[name] = own[name] | value if isinstance(own.get(name), dict) else value
    return own


def trial_values(image):
    """A release that has all it needs: its own Redis, a PostgreSQL if there is an image, and a Secret made from values."""
    repository, tag = REDIS.rsplit(":", 1)
    own = values(image, autoscaling={"enabled": False}, redis={"enabled": True, "image": {"repository": repository, "tag": tag}})
    if POSTGRES:
        repository, tag = POSTGRES.rsplit(":", 1)
        own["postgresql"] = {"enabled": True, "image": {"repository": repository, "tag": tag}}
    own["config"] = own["config"].replace('url = { file = "/run/secrets/warmkey/store-url" }', 'url = "memory:"')
    own["config"] = own["config"].replace("/run/secrets/warmkey", "/run/secrets/trial")
    own["fullnameOverride"] = "trial"
    data = {name: base64.b64decode(text).decode() for name, text in real_secret(1)["data"].items()}
    return own | {"trialSecret": {"name": "trial-secret", "data": data}, "secrets": [{"name": "trial-secret", "mountPath": "/run/secrets/trial"}]}


def node_port(release):
    """Where clients reach a release, on a node that stays."""
    service = wait_for(f"Service {release}", lambda: found("service", release))
    return service["spec"]["ports"][0]["nodePort"]


def two_nodes():
    """A node that stays, and one that is drained and loses its power."""
    there = nodes()
    check(len(there) >= 2, f"two nodes are needed, not {sorted(there)}")
    usual = json.loads(kubectl("get", "nodes", "-l", "!node-role.kubernetes.io/control-plane", "-o", "json"))["items"]
    first, second, *_ = sorted(node["metadata"]["name"] for node in usual)
    return first, second, there[first]


__all__ = ["DRAIN_DELAY", "KEYS", "POSTGRES", "TELEMETRY", "TOKEN", "build", "collector", "node_port", "real_secret", "trial_values", "two_nodes", "values"]
