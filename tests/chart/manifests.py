"""Renders the plain manifests of k8s/ from the chart: `manifests.py FOLDER`. `files()` is what they should be."""

import pathlib
import re
import sys

from helm import CHART, HELM

SOURCE = re.compile(r"^# Source: warmkey/templates/(\S+)\.yaml$", re.M)
NAMESPACE = """\
apiVersion: v1
kind: Namespace
metadata:
  name: warmkey
  labels:
    pod-security.kubernetes.io/enforce: restricted
"""
HEAD = "# Rendered from helm/warmkey with values-ha.yaml by `make manifests`: change the chart, not this file.\n"


def files():
    """The files of k8s/ by name: the chart with the values for real use, a namespace, and what lists them."""
    found = {"namespace.yaml": [NAMESPACE]}
    for document in HELM.text("v4", [CHART / "values-ha.yaml"], hooks=False).split("\n---\n"):
        source = SOURCE.search(document)
        if source:
            text = SOURCE.sub("", document.removeprefix("---\n")).strip("\n")
            lines = [line.rstrip() for line in text.splitlines()]
            found.setdefault(f"{source.group(1)}.yaml", []).append("\n".join(lines) + "\n")
    texts = {name: HEAD + "---\n".join(documents) for name, documents in found.items()}
    listed = "".join(f"  - {name}\n" for name in texts)
    kind = "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\n"
    return texts | {"kustomization.yaml": f"{HEAD}{kind}namespace: warmkey\nresources:\n{listed}"}


def main(folder):
    folder = pathlib.Path(folder)
    folder.mkdir(exist_ok=True)
    texts = files()
    for old in folder.glob("*.yaml"):
        if old.name not in texts:
            old.unlink()
    for name, text in texts.items():
        (folder / name).write_text(text)


if __name__ == "__main__":
    main(sys.argv[1])
