"""What is made from something else is as it would be made now; rules and dashboard are fit for Prometheus and Grafana."""

import itertools
import json
import pathlib
import re
import shlex
import subprocess
import tempfile
import tomllib
import unittest

import yaml

import manifests
import values
from helm import CHART, HELM, ROOT, SETS



def dashboard():
    return json.loads((CHART / "files" / "dashboard.json").read_text())


def queries():
    """Each panel's title and query."""
    return [(panel["title"], target["expr"]) for panel in dashboard()["panels"] for target in panel.get("targets", [])]


def promtool(*arguments, **options):
    return subprocess.run(["promtool", *arguments], capture_output=True, text=True, timeout=60, **options)


def size(text):
    """The bytes of a size, as Warmkey or Compose writes it."""
    number, unit = re.fullmatch(r"(\d+)(k|m|g|KiB|MiB|GiB)", text).groups()
    return int(number) * 1024 ** ("kmg".index(unit[0].lower()) + 1)


class Made(unittest.TestCase):
    def test_schema_and_table_follow_from_the_comments(self):
        text = (CHART / "values.yaml").read_text()
        self.assertEqual((CHART / "values.schema.json").read_text(), values.schema(text), "run make chart-docs")
        readme = (CHART / "README.md").read_text()
        self.assertEqual(readme, values.with_table(readme, text), "run make chart-docs")

    def test_a_value_without_a_comment_is_noticed(self):
        with self.assertRaisesRegex(values.Unsaid, "line 3: b has no comment"):
            values.schema("# Said.\na: 1\nb: 2\n")

    def test_every_part_of_the_schema_is_closed_and_described(self):
        def look(schema, path):
            if schema.get("properties") is not None:
                self.assertIs(schema["additionalProperties"], False, path)
                for name, one in schema["properties"].items():
                    self.assertTrue(one.get("description"), f"{path}.{name}")
                    look(one, f"{path}.{name}")
            elif schema.get("type") == "object" and path not in open_parts:
                self.assertIsInstance(schema.get("additionalProperties"), dict, path)
            if "items" in schema:
                look(schema["items"], f"{path}[]")

        # These values are Kubernetes' own, several levels deep, or belong to a parent chart.
        open_parts = {"$.global", *(f"affinity.{kind}" for kind in ("nodeAffinity", "podAffinity", "podAntiAffinity"))}
        schema = json.loads((CHART / "values.schema.json").read_text())
        look(schema, "$")
        for name, one in schema["$defs"].items():
            look(one, name)

    def test_plain_manifests_are_the_chart_s_render(self):
        folder = ROOT / "k8s"
        found = {path.name: path.read_text() for path in folder.iterdir()}
        self.assertEqual(found, manifests.files(), "run make manifests")

    def test_papers_name_the_image_of_the_plain_manifests(self):
        deployment = yaml.safe_load((ROOT / "k8s" / "deployment.yaml").read_text())
        (container,) = deployment["spec"]["template"]["spec"]["containers"]
        name, _ = container["image"].split(":")
        self.assertIn(f"`kustomize edit set image {name}=", (ROOT / "docs" / "kubernetes.md").read_text())

    def test_plain_manifests_say_the_same_as_the_render(self):
        listed = yaml.safe_load((ROOT / "k8s" / "kustomization.yaml").read_text())["resources"]
        plain = [one for name in listed for one in yaml.safe_load_all((ROOT / "k8s" / name).read_text())]
        kinds = lambda objects: sorted(json.dumps(one, sort_keys=True) for one in objects if one["kind"] != "Namespace")
        for version in ("v3", "v4"):
            self.assertEqual(kinds(plain), kinds(HELM.objects(version, [CHART / "values-ha.yaml"], hooks=False)))

    def test_an_image_s_build_is_given_all_that_it_compiles(self):
        """A build has what .dockerignore lets through and the Dockerfile copies; the code reads files beside `src`, too."""
        let_through = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
        copies = re.findall(r"^COPY (?!--)(.+) \S+$", (ROOT / "Dockerfile").read_text(), re.M)
        copied = {name for names in copies for name in names.split()}
        self.assertEqual(copied, let_through)
        included = re.compile(r'include_(?:str|bytes)!\("([^"]+)"\)')
        sources = [path for path in (ROOT / "src").rglob("*.rs") if "tests" not in (path.stem, *path.parts[-3:])]
        files = {(path.parent / name).resolve() for path in sources for name in included.findall(path.read_text())}
        self.assertLessEqual({path.relative_to(ROOT).parts[0] for path in files}, copied)

    def test_five_odd_sets_are_tried(self):
        self.assertGreaterEqual(len(SETS), 5)

    def test_chart_says_what_a_published_one_must(self):
        chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
        self.assertEqual(chart["kubeVersion"], ">=1.31.0-0")
        for name in ("license", "links", "images", "changes"):
            self.assertTrue(chart["annotations"][f"artifacthub.io/{name}"])
        version = re.search(r'^version = "(.+)"$', (ROOT / "Cargo.toml").read_text(), re.M).group(1)
        self.assertEqual(chart["appVersion"], version)


class Papers(unittest.TestCase):
    """The commands of the papers that Helm can carry out without a cluster."""

    def commands(self):
        for name in ("README.md", "docs/kubernetes.md"):
            for block in re.findall(r"^```sh\n(.*?)^```$", (ROOT / name).read_text(), re.M | re.S):
                for line in block.replace("\\\n", " ").splitlines():
                    words = shlex.split(line, comments=True)
                    if words[:1] == ["helm"] and {"install", "upgrade"} & set(words):
                        yield name, words

    def test_each_helm_command_renders(self):
        commands = list(self.commands())
        self.assertGreaterEqual(len(commands), 3)
        for name, words in commands:
            with self.subTest(paper=name, command=words):
                self.assertIn("helm/warmkey", words)
                given = {}
                files = []
                for option, value in itertools.pairwise(words):
                    if option == "--values":
                        # This is the reader's own copy of the file.
                        files.append(ROOT / value.replace("my-values.yaml", "helm/warmkey/values-ha.yaml"))
                    elif option in ("--set", "--set-string"):
                        path, _, text = value.partition("=")
                        parse = yaml.safe_load if option == "--set" else str
                        *sections, leaf = path.split(".")
                        inner = given
                        for section in sections:
                            inner = inner.setdefault(section, {})
                        inner[leaf] = parse(text)
                kinds = {one["kind"] for one in HELM.objects("v4", files, values=given)}
                self.assertIn("Deployment", kinds)

    def test_compose_is_started_as_the_readme_says(self):
        readme = (ROOT / "README.md").read_text()
        self.assertIn("\ndocker compose up --build --detach ", readme)
        compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
        # The file uses only what both Compose 1.29 and v2 understand.
        self.assertEqual({name for name in compose if not name.startswith("x-")}, {"services", "volumes"})
        replicas = compose["services"]["warmkey"]
        self.assertEqual(replicas["scale"], 3)
        self.assertFalse({"container_name", "ports"} & replicas.keys())
        for name, service in compose["services"].items():
            self.assertIn("healthcheck", service, name)
            self.assertIn("mem_limit", service, name)
            self.assertFalse({"deploy", "develop", "configs", "secrets", "profiles", "name"} & service.keys(), name)
            self.assertNotRegex(service["image"], r":latest|:-[a-z/]+}$", name)
            for port in service.get("ports", []):
                self.assertTrue(port.startswith("127.0.0.1:"), f"{name}: {port}")

    def test_bodies_in_memory_fit_into_a_replica_of_the_compose_file(self):
        compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
        config = tomllib.loads((ROOT / "compose" / "warmkey.toml").read_text())
        default = tomllib.loads((ROOT / "src" / "config" / "default.toml").read_text())
        held = config["server"].get("replay_total", default["server"]["replay_total"])
        limit = compose["services"]["warmkey"]["mem_limit"]
        # Besides the bodies, a replica needs up to 200 MB.
        self.assertLessEqual(size(held) + 200_000_000, size(limit), f"replay_total {held}, mem_limit {limit}")

    def test_grafana_reads_dashboards_where_compose_puts_them(self):
        compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
        grafana = compose["services"]["grafana"]
        mounts = dict(mount.split(":")[:2] for mount in grafana["volumes"])
        (dashboard,) = [inside for outside, inside in mounts.items() if outside.endswith("files/dashboard.json")]
        provider = ROOT / "compose" / "grafana" / "dashboards" / "dashboards.yaml"
        paths = {one["options"]["path"] for one in yaml.safe_load(provider.read_text())["providers"]}
        self.assertEqual(paths, {str(pathlib.PurePosixPath(dashboard).parent)})
        self.assertEqual(grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"], dashboard)
        for kind in ("dashboards", "datasources"):
            self.assertEqual(mounts[f"./compose/grafana/{kind}"], f"/etc/grafana/provisioning/{kind}")

    def test_grafana_knows_the_sources_of_the_dashboard(self):
        text = (ROOT / "compose" / "grafana" / "datasources" / "datasources.yaml").read_text()
        sources = {one["uid"] for one in yaml.safe_load(text)["datasources"]}
        asked = {panel["datasource"]["uid"] for panel in dashboard()["panels"] if "datasource" in panel}
        self.assertLessEqual(asked, sources)


class Rules(unittest.TestCase):
    def test_promtool_takes_the_rules(self):
        checked = promtool("check", "rules", "--lint-fatal", str(CHART / "files" / "rules.yaml"))
        self.assertEqual(checked.returncode, 0, checked.stdout + checked.stderr)

    def test_each_alert_fires_and_does_not(self):
        tested = promtool("test", "rules", "rules_test.yaml", cwd=ROOT / "tests" / "chart")
        self.assertEqual(tested.returncode, 0, tested.stdout + tested.stderr)
        rules = yaml.safe_load((CHART / "files" / "rules.yaml").read_text())
        alerts = {rule["alert"] for group in rules["groups"] for rule in group["rules"] if "alert" in rule}
        tests = yaml.safe_load((ROOT / "tests" / "chart" / "rules_test.yaml").read_text())["tests"]
        cases = [case for test in tests for case in test["alert_rule_test"]]
        self.assertEqual({case["alertname"] for case in cases if case["exp_alerts"]}, alerts)
        paper = (ROOT / "docs" / "operating.md").read_text()
        rows = [line for line in paper.splitlines() if line.startswith("| `Warmkey")]
        told = [name for row in rows for name in re.findall(r"`(Warmkey\w+)`", row.split("|")[1])]
        self.assertEqual(sorted(told), sorted(alerts))
        self.assertEqual({case["alertname"] for case in cases if not case["exp_alerts"]}, alerts)


class Dashboard(unittest.TestCase):
    def test_panels_have_ids_of_their_own_and_sources_that_are_there(self):
        panels = dashboard()["panels"]
        self.assertEqual(len({panel["id"] for panel in panels}), len(panels))
        for panel in panels:
            for source in [panel.get("datasource"), *(target["datasource"] for target in panel.get("targets", []))]:
                if panel["type"] != "row":
                    self.assertEqual(source, {"type": "prometheus", "uid": "prometheus"})
        boxes = [panel["gridPos"] for panel in panels]
        cells = [(x, y) for box in boxes for x in range(box["x"], box["x"] + box["w"]) for y in range(box["y"], box["y"] + box["h"])]
        self.assertEqual(len(cells), len(set(cells)), "panels overlap")

    def test_every_query_is_one_for_prometheus(self):
        rules = [{"record": f"query:{at}", "expr": query} for at, (_, query) in enumerate(queries())]
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}, file)
            file.flush()
            checked = promtool("check", "rules", file.name)
        self.assertEqual(checked.returncode, 0, checked.stdout + checked.stderr)


if __name__ == "__main__":
    unittest.main()
