"""Does what docs/kubernetes.md and the README tell a newcomer to do on a cluster, command by command, as it is written there.

Not as there: no image is built or pushed, Redis and the upstream are those of the test, and names of namespaces and of the
image are the test's.
"""

import json
import os
import re

from kube import HELM, ROOT, Failure, check, run
from world import values

# The values that a reader replaces by his own.
IMAGE, REDIS = "registry.example.com/warmkey", "redis://:PASSWORD@redis.example.com:6379"


def blocks(paper, title):
    """The commands below a heading of a paper, block by block."""
    text = (ROOT / paper).read_text(encoding="utf-8")
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", text, re.M | re.S)
    check(found, f"{paper} has no section {title}")
    return re.findall(r"^```sh\n(.*?)^```$", found.group(1), re.M | re.S)


def one(text, begins):
    """The one block that begins like this."""
    found = [block for block in text if block.startswith(begins)]
    check(len(found) == 1, f"{len(found)} blocks begin with {begins}")
    return found[0]


class Papers:
    """A newcomer with a folder, in which the chart lies as in the repository."""

    def __init__(self, folder, image, namespace):
        self._folder, self._image, self._namespace = os.path.join(folder, "papers"), image, namespace
        os.makedirs(os.path.join(self._folder, "bin"))
        os.symlink(ROOT / "helm", os.path.join(self._folder, "helm"))
        # `helm` of the papers is the one of the test.
        with open(os.path.join(self._folder, "bin", "helm"), "w", encoding="utf-8") as file:
            file.write(f'#!/bin/sh\nexec {HELM} "$@"\n')
        os.chmod(file.name, 0o755)

    def does(self, block, more=""):
        """Runs a block as a shell would, with the test's names in it. `more` is added to each installation."""
        repository, tag = self._image.rsplit(":", 1)
        told = {IMAGE: f"{repository} --set image.tag={tag}{more}", REDIS: f"redis://store.{self._namespace}:6379"}
        for written, ours in told.items():
            block = block.replace(written, ours)
        block = re.sub(r"(-n |create namespace )warmkey\b(-trial)?", lambda found: f"{found[1]}{self.space(found[2])}", block)
        path = os.path.join(self._folder, "bin") + os.pathsep + os.environ["PATH"]
        secrets = "export OPENAI_KEY_A1=simulated-a-1-1 OPENAI_KEY_B1=simulated-b-1-1"
        script = f"set -eu; cd {self._folder}; export PATH={path}; {secrets}\n{block}"
        return run("bash", "-c", script, seconds=300)

    def space(self, suffix=None):
        return f"{self._namespace}-papers{suffix or ''}"

    def writes_values(self):
        """What a reader changes in his copy of the values: here, where the upstream is."""
        path = os.path.join(self._folder, "my-values.yaml")
        config = values(self._image)["config"]
        with open(path, encoding="utf-8") as file:
            text = file.read()
        upstream = config[config.index("[[upstream]]") :]
        indented = "".join(f"  {line}\n" for line in upstream.splitlines())
        check(text.count("\nautoscaling:") == 1, "values-ha.yaml has no autoscaling")
        with open(path, "w", encoding="utf-8") as file:
            file.write(text.replace("\nautoscaling:", f"\n{indented}\nautoscaling:"))

    def plays(self):
        """All of it: the Secret, the installation, its test, the trial, and the way out."""
        # Objects of an earlier run may still be ending.
        self.remove(waits=True)
        paper = "docs/kubernetes.md"
        install = blocks(paper, "Install")
        check(install[0].startswith("docker build"), "the first block builds the image")
        self.does(one(install, "openssl"))
        copied, installs = one(install, "cp ").split("\n", 1)
        self.does(copied)
        self.writes_values()
        written = next(line for line in installs.splitlines() if line.startswith("helm") and " install " in line)
        check(written in blocks("README.md", "Several replicas")[0], f"the README does not say: {written}")
        self.does(installs, more=" --set minReadySeconds=0")
        self.asks_as_the_notes_say()
        told = self.does(one(blocks(paper, "Ask replicas, and command them"), "kubectl"))
        check("a-1" in told and "b-1" in told, told)
        self.does(one(blocks(paper, "Try it"), "ALICE_TOKEN"), more=f" --set redis.image.repository={self.redis()[0]} --set redis.image.tag={self.redis()[1]}")
        self.does("kubectl -n warmkey-trial rollout status deployment/trial-warmkey --timeout=120s")
        return self

    def asks_as_the_notes_say(self):
        """The two commands that Helm prints after the installation, with the token that the reader made."""
        notes = run(HELM, "--namespace", self.space(), "get", "notes", "warmkey")
        lines = [line.strip() for line in notes.splitlines()]
        (forward,) = [line for line in lines if " port-forward " in line]
        (curl,) = [line for line in lines if line.startswith("curl ")]
        check(forward.endswith(" &"), forward)
        with open(os.path.join(self._folder, "clients"), encoding="utf-8") as file:
            _, token = file.readline().split()
        # Only the answer should be printed, and the last command ends the first one.
        begins = f"{forward.removesuffix(' &')} >/dev/null &"
        ends = 'forward=$!; trap "kill $forward" EXIT'
        script = f"set -eu; export WARMKEY_TOKEN={token}\n{begins}\n{ends}\n{curl} --noproxy 127.0.0.1 --max-time 60\n"
        answer = json.loads(run("bash", "-c", script, seconds=120))
        check(answer.get("status") == "completed", f"the notes' command was answered {answer}")

    @staticmethod
    def redis():
        return os.environ.get("K8S_REDIS", "redis:8.2").rsplit(":", 1)

    def leaves(self):
        """`helm uninstall` as it is written; then the test's namespaces go."""
        text = (ROOT / "docs" / "kubernetes.md").read_text(encoding="utf-8")
        (uninstall,) = re.findall(r"`(helm -n warmkey uninstall [^`]+)`", text)
        self.does(uninstall)

    def remove(self, waits=False):
        for suffix in ("", "-trial"):
            try:
                run("kubectl", "delete", "namespace", self.space(suffix), "--ignore-not-found", f"--wait={waits}".lower(), seconds=180)
            except Failure:
                pass  # The cluster is away: what failed before says more.


__all__ = ["Papers"]
