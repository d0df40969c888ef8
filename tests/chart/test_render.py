"""What the chart renders: the same by Helm 3 and 4, valid for Kubernetes, and as the operating page promises."""

import itertools
import tempfile
import unittest

import kubernetes_validate
import yaml

from helm import CHART, HELM, SETS, SWITCHES, VERSIONS, component, gateway, named, only

HA = CHART / "values-ha.yaml"
KUBERNETES = ("1.31", "1.34", "1.37")
# These kinds are not Kubernetes' own.
CUSTOM = {"HTTPRoute", "ServiceMonitor", "PrometheusRule"}
ALL_SETS = [[], [HA], *([one] for one in SETS)]


def switched(**switches):
    return {name: {"enabled": on} for name, on in switches.items()}


def turned_over():
    """Each switch of the default values, alone and all together."""
    default = yaml.safe_load((CHART / "values.yaml").read_text())
    over = {name: not default[name]["enabled"] for name in SWITCHES}
    return [switched(**{name: over[name]}) for name in SWITCHES] + [switched(**over)]


def renders():
    """Every set of values and every switch, rendered by Helm 4."""
    for files in ALL_SETS:
        yield str([file.name for file in files]), HELM.objects("v4", files)
    for values in turned_over():
        yield str(values), HELM.objects("v4", values=values)


def pods(objects):
    for one in objects:
        if one["kind"] == "Pod":
            yield one["metadata"], one["spec"]
        elif one["kind"] == "Deployment":
            yield one["spec"]["template"]["metadata"], one["spec"]["template"]["spec"]


class Render(unittest.TestCase):
    def test_helm_3_and_4_render_the_same_and_twice_the_same(self):
        for files, release in itertools.product(ALL_SETS, ("warmkey", "r" * 53)):
            with self.subTest(files=files, release=release):
                three, four, again = (named(HELM.objects(v, files, release=release)) for v in ("v3", "v4", "v4"))
                self.assertEqual(three, four)
                self.assertEqual(four, again)

    def test_lint_has_nothing_to_say(self):
        for version, files in itertools.product(VERSIONS, ALL_SETS):
            with self.subTest(version=version, files=files):
                self.assertNotRegex(HELM.lint(version, files), r"WARNING|ERROR")

    def test_kubernetes_knows_every_field(self):
        for name, objects in renders():
            for one, version in itertools.product(objects, KUBERNETES):
                with self.subTest(values=name, kind=one["kind"], version=version):
                    if one["kind"] not in CUSTOM:
                        kubernetes_validate.validate(one, version, strict=True)

    def test_a_field_that_kubernetes_does_not_know_is_noticed(self):
        deployment = gateway(HELM.objects("v4"))
        deployment["spec"]["template"]["spec"]["gracePeriod"] = 3
        with self.assertRaises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(deployment, "1.34", strict=True)

    def test_names_are_labels_of_dns_and_labels_are_short(self):
        for files, release in itertools.product(ALL_SETS, ("w", "r" * 53)):
            for one in HELM.objects("v4", files, release=release):
                with self.subTest(files=files, release=release, kind=one["kind"]):
                    self.assertRegex(one["metadata"]["name"], r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")
                    for label in one["metadata"]["labels"].values():
                        self.assertLessEqual(len(label), 63)

    def test_pods_are_restricted_and_have_no_token(self):
        for name, objects in renders():
            for _, spec in pods(objects):
                with self.subTest(values=name):
                    self.assertIs(spec["automountServiceAccountToken"], False)
                    self.assertIs(spec["enableServiceLinks"], False)
                    self.assertIs(spec["securityContext"]["runAsNonRoot"], True)
                    self.assertGreater(spec["securityContext"]["runAsUser"], 0)
                    self.assertEqual(spec["securityContext"]["seccompProfile"], {"type": "RuntimeDefault"})
                    for container in spec["containers"]:
                        self.assertIs(container["securityContext"]["allowPrivilegeEscalation"], False)
                        self.assertIs(container["securityContext"]["readOnlyRootFilesystem"], True)
                        self.assertEqual(container["securityContext"]["capabilities"], {"drop": ["ALL"]})
                        self.assertNotIn("command", container)
                        self.assertNotIn("lifecycle", container)
                        self.assertNotIn("cpu", container.get("resources", {}).get("limits") or {})
                        for mount in container["volumeMounts"]:
                            self.assertNotIn("subPath", mount)

    def test_selectors_find_their_pods_and_hold_no_version(self):
        for name, objects in renders():
            found = [metadata["labels"] for metadata, _ in pods(objects)]
            for one in objects:
                selector = one["spec"].get("selector") if one["kind"] in ("Deployment", "Service", "PodDisruptionBudget") else None
                if selector:
                    labels = selector.get("matchLabels", selector)
                    with self.subTest(values=name, kind=one["kind"]):
                        matched = [one for one in found if labels.items() <= one.items()]
                        self.assertEqual(len(matched), 1)
                        self.assertFalse({"app.kubernetes.io/version", "helm.sh/chart"} & labels.keys())

    def test_monitor_selects_the_one_service_with_the_admin_port(self):
        watched = 0
        for name, objects in renders():
            services = [one for one in objects if one["kind"] == "Service"]
            for monitor in (one for one in objects if one["kind"] == "ServiceMonitor"):
                watched += 1
                labels = monitor["spec"]["selector"]["matchLabels"]
                with self.subTest(values=name):
                    (service,) = [one for one in services if labels.items() <= one["metadata"]["labels"].items()]
                    ports = {port["name"] for port in service["spec"]["ports"]}
                    asked = [(one["port"], one["path"]) for one in monitor["spec"]["endpoints"]]
                    self.assertEqual(asked, [("admin", "/metrics")])
                    self.assertLessEqual({"admin"}, ports)
        self.assertGreaterEqual(watched, 3)

    def test_network_policy_lets_the_test_pod_in(self):
        allowed = 0
        for name, objects in renders():
            for policy in (one for one in objects if one["kind"] == "NetworkPolicy" and component(one) is None):
                labels = only(objects, "Pod")["metadata"]["labels"]
                for rule in policy["spec"]["ingress"]:
                    with self.subTest(values=name, ports=rule["ports"]):
                        if "from" in rule:
                            allowed += 1
                            peer = rule["from"][-1]["podSelector"]["matchLabels"]
                            self.assertEqual(peer["app.kubernetes.io/component"], "test")
                            self.assertLessEqual(peer.items(), labels.items())
        self.assertGreaterEqual(allowed, 5)

    def test_service_account_that_the_chart_makes_has_no_token(self):
        made = 0
        for name, objects in renders():
            for one in objects:
                if one["kind"] == "ServiceAccount":
                    made += 1
                    with self.subTest(values=name):
                        self.assertIs(one["automountServiceAccountToken"], False)
        self.assertGreater(made, 10)

    def test_values_of_a_parent_chart_change_nothing(self):
        for version in VERSIONS:
            self.assertEqual(named(HELM.objects(version, values={"global": {"a": 1}})), named(HELM.objects(version)))

    def test_autoscaler_adds_at_once_and_removes_one_replica_every_ten_minutes(self):
        spec = only(HELM.objects("v4", [HA]), "HorizontalPodAutoscaler")["spec"]
        self.assertEqual(spec["scaleTargetRef"], {"apiVersion": "apps/v1", "kind": "Deployment", "name": "warmkey"})
        self.assertEqual(spec["behavior"]["scaleUp"], {"stabilizationWindowSeconds": 0})
        policies = [{"type": "Pods", "value": 1, "periodSeconds": 600}]
        self.assertEqual(spec["behavior"]["scaleDown"], {"stabilizationWindowSeconds": 1800, "policies": policies})
        cpu = {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 55}}}
        self.assertEqual(spec["metrics"], [cpu])
        turns = {"metric": {"name": "warmkey_active_turns"}, "target": {"type": "AverageValue", "averageValue": "40"}}
        both = only(HELM.objects("v4", [CHART / "ci" / "everything-values.yaml"]), "HorizontalPodAutoscaler")["spec"]["metrics"]
        self.assertEqual(both, [cpu, {"type": "Pods", "pods": turns}])

    def test_every_file_of_the_ingress_lets_codex_through(self):
        config = '[server]\nmax_body = "96MiB"\n'
        for values, size in (({}, "64m"), ({"config": config}, "96m")):
            annotations = only(HELM.objects("v4", values=values | switched(ingress=True)), "Ingress")["metadata"]["annotations"]
            prefix = "nginx.ingress.kubernetes.io/"
            told = {name.removeprefix(prefix): value for name, value in annotations.items()}
            self.assertEqual(told["proxy-body-size"], size)
            self.assertEqual((told["proxy-read-timeout"], told["proxy-send-timeout"]), ("3600", "3600"))
            self.assertEqual((told["proxy-buffering"], told["proxy-request-buffering"]), ("off", "off"))
        own = only(HELM.objects("v4", [CHART / "ci" / "everything-values.yaml"]), "Ingress")
        self.assertEqual(own["metadata"]["annotations"][prefix + "proxy-body-size"], "128m")

    def test_a_route_has_no_timeout(self):
        (rule,) = only(HELM.objects("v4", values=switched(httpRoute=True)), "HTTPRoute")["spec"]["rules"]
        self.assertEqual(rule["timeouts"], {"request": "0s", "backendRequest": "0s"})

    def test_tag_that_is_a_number_stays_as_it_is_written(self):
        values = {"tag": 20240101}
        stores = {name: {"enabled": True, "image": values} for name in ("redis", "postgresql")}
        for version in VERSIONS:
            with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
                yaml.safe_dump({"image": values} | stores, file)
                file.flush()
                objects = HELM.objects(version, [file.name])
            images = {container["image"] for _, spec in pods(objects) for container in spec["containers"]}
            self.assertEqual(images, {"warmkey:20240101", "redis:20240101", "postgres:20240101"})

    def test_environment_from_elsewhere_changes_no_grace(self):
        config = '[server]\ndrain = "90s"\n'
        for values, drain in (({}, "1800s"), ({"config": config}, "90s")):
            (container,) = gateway(HELM.objects("v4", values=values))["spec"]["template"]["spec"]["containers"]
            # A variable of `env` wins over the same one of `envFrom`.
            environment = {one["name"]: one.get("value") for one in container["env"]}
            self.assertEqual(environment["WARMKEY__SERVER__DRAIN"], drain)
            self.assertEqual(environment["WARMKEY__SERVER__DRAIN_DELAY"], "15s")

    def test_replicas_is_not_written_where_an_autoscaler_decides(self):
        self.assertEqual(gateway(HELM.objects("v4"))["spec"]["replicas"], 1)
        self.assertNotIn("replicas", gateway(HELM.objects("v4", [HA]))["spec"])

    def test_budget_is_for_several_replicas_alone(self):
        kinds = lambda **values: {one["kind"] for one in HELM.objects("v4", values=values)}
        self.assertNotIn("PodDisruptionBudget", kinds(replicaCount=1))
        self.assertIn("PodDisruptionBudget", kinds(replicaCount=2))
        self.assertIn("PodDisruptionBudget", kinds(autoscaling={"enabled": True, "minReplicas": 1}))
        self.assertNotIn("PodDisruptionBudget", kinds(autoscaling={"enabled": True, "minReplicas": 1, "maxReplicas": 1}, replicaCount=5))

    def test_ha_spreads_by_preference_and_by_the_replicas_own_labels(self):
        objects = HELM.objects("v4", [HA])
        self.assertFalse(CUSTOM & {one["kind"] for one in objects})
        template = gateway(objects)["spec"]["template"]
        for constraint in template["spec"]["topologySpreadConstraints"]:
            self.assertEqual(constraint["whenUnsatisfiable"], "ScheduleAnyway")
            self.assertEqual(constraint["labelSelector"]["matchLabels"], template["metadata"]["labels"])
            self.assertEqual(constraint["matchLabelKeys"], ["pod-template-hash"])

    def test_network_policy_leads_where_the_configuration_does(self):
        policy = lambda files, **values: named(HELM.objects("v4", files, values=values))["NetworkPolicy", "warmkey"]["spec"]
        ports = lambda spec: [port["port"] for rule in spec["egress"] for port in rule["ports"]]
        self.assertEqual(ports(policy([HA])), [53, 53, 443, 4317, 5432, 6379, 26379])
        self.assertEqual(ports(policy([CHART / "ci" / "egress-values.yaml"])), [53, 53, 3128, 6390, 9100])
        closed = {"redis": {"enabled": True}, "postgresql": {"enabled": True}, "networkPolicy": {"enabled": True, "egressPorts": []}}
        self.assertEqual(ports(policy([], **closed)), [53, 53, 443, 5432, 6379])
        entry = {rule["ports"][0]["port"]: rule.get("from") for rule in policy([HA])["ingress"]}
        self.assertIsNone(entry["http"])
        self.assertEqual(len(entry["admin"]), 2)
        peers = {"enabled": True, "clients": [{"podSelector": {}}]}
        closed = {rule["ports"][0]["port"]: rule.get("from") for rule in policy([HA], networkPolicy=peers)["ingress"]}
        self.assertEqual([list(peer) for peer in closed["http"]], [["podSelector"], ["podSelector"]])

    def test_the_admin_port_is_on_no_service_of_clients(self):
        services = named(HELM.objects("v4", [CHART / "ci" / "everything-values.yaml"], release="w"))
        client = services["Service", "w-gateway"]["spec"]
        self.assertEqual([(port["port"], port["nodePort"]) for port in client["ports"]], [(80, 30080)])
        self.assertEqual(services["Service", "w-gateway-admin"]["spec"]["clusterIP"], "None")

    def test_clients_are_spoken_to_as_the_configuration_says(self):
        url = lambda files: next(word for word in only(HELM.objects("v4", files), "Pod")["spec"]["containers"][0]["args"] if ":8080" in word)
        self.assertEqual(url([HA]), "http://warmkey:8080")
        self.assertEqual(url([CHART / "ci" / "egress-values.yaml"]), "https://warmkey:8080")
        tls = '[server]\ntls = { cert_file = "/a", key_file = "/b" }\n'
        for config, protocol in (("", "HTTP"), (tls, "HTTPS")):
            annotations = only(HELM.objects("v4", values={"config": config} | switched(ingress=True)), "Ingress")["metadata"]["annotations"]
            self.assertEqual(annotations["nginx.ingress.kubernetes.io/backend-protocol"], protocol)

    def test_trial_stores_say_where_they_are(self):
        objects = HELM.objects("v4", [CHART / "ci" / "trial-values.yaml"])
        (container,) = gateway(objects)["spec"]["template"]["spec"]["containers"]
        environment = {one["name"]: one.get("value") for one in container["env"]}
        self.assertEqual(environment["WARMKEY__STORE__URL"], "redis://warmkey-redis:6379")
        # Kubernetes puts the password in, which comes from the trial Secret and stands before the address.
        address = "postgres://warmkey:$(WARMKEY_POSTGRESQL_PASSWORD)@warmkey-postgresql:5432/warmkey"
        self.assertEqual(environment["WARMKEY__LEDGER__URL"], address)
        self.assertLess(list(environment).index("WARMKEY_POSTGRESQL_PASSWORD"), list(environment).index("WARMKEY__LEDGER__URL"))
        for service in ["warmkey-redis", "warmkey-postgresql"]:
            self.assertIn(("Service", service), named(objects))
        policies = [component(one) for one in objects if one["kind"] == "NetworkPolicy"]
        self.assertEqual(sorted(policies), ["postgresql", "redis"])

    def test_trial_secret_is_kept_and_nothing_else_is(self):
        for name, objects in renders():
            kept = {(one["kind"], one["metadata"]["name"]) for one in objects if "helm.sh/resource-policy" in one["metadata"].get("annotations", {})}
            with self.subTest(values=name):
                self.assertEqual(kept, {("Secret", "warmkey")} if "trial" in name else set())
        secrets = {one["metadata"]["name"]: one for one in HELM.objects("v4", [CHART / "ci" / "trial-values.yaml"]) if one["kind"] == "Secret"}
        # The password of a trial PostgreSQL is removed together with its data.
        self.assertEqual(secrets.keys(), {"warmkey", "warmkey-postgresql"})
        self.assertEqual(secrets["warmkey"]["metadata"]["annotations"], {"helm.sh/resource-policy": "keep"})
        self.assertNotIn("Secret", {one["kind"] for one in HELM.objects("v4", [HA])})
        for template in CHART.glob("templates/**/*"):
            if template.is_file():
                self.assertNotRegex(template.read_text(), r"\b(rand\w+|lookup|gen\w+Cert|uuidv4|derivePassword)\b")

    def test_nothing_but_switches_decides_on_custom_resources(self):
        for template in CHART.glob("templates/**/*"):
            if template.is_file():
                self.assertNotIn("Capabilities", template.read_text())


class Restart(unittest.TestCase):
    """Which changes of `config` restart the replicas, and how long one may drain."""

    def template(self, config, **values):
        return gateway(HELM.objects("v4", values={"config": config, **values}))["spec"]["template"]

    def test_only_what_a_replica_does_not_reload_restarts_it(self):
        config = yaml.safe_load(HA.read_text())["config"]
        before = self.template(config)
        key = '[[key]]\nid = "c-1"\nupstream = "openai"\norganization = "org-c"\nsecret = { file = "/run/secrets/warmkey/c" }\n'
        price = '[[price]]\nmodel = "gpt-6-own"\ninput = 1.25\ncached = 0.125\noutput = 10\n'
        for same in (config + key, config + price, config.replace("b-1", "b-2"), config + "# said\n", config + '[[client]]\nid = "b"\ntoken = { env = "B" }\n'):
            self.assertEqual(self.template(same), before)
        for other in (config.replace("[server]", '[server]\ndrain = "3m"'), config.replace("[store]", '[store]\nprefix = "p"'), config + '[binding]\nttl = "1h"\n'):
            self.assertNotEqual(self.template(other), before)

    def test_new_replica_is_ready_before_an_old_one_leaves(self):
        for name, objects in renders():
            with self.subTest(values=name):
                strategy = gateway(objects)["spec"]["strategy"]
                self.assertEqual(strategy, {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}})
        for files in ([], [HA]):
            spec = gateway(HELM.objects("v4", files))["spec"]
            self.assertEqual((spec["minReadySeconds"], spec["progressDeadlineSeconds"]), (30, 630))

    def test_probes_ask_the_admin_listener_alone(self):
        asked = {"startupProbe": "/livez", "livenessProbe": "/livez", "readinessProbe": "/readyz"}
        for name, objects in renders():
            (container,) = gateway(objects)["spec"]["template"]["spec"]["containers"]
            with self.subTest(values=name):
                probes = {probe: container[probe]["httpGet"] for probe in asked}
                self.assertEqual(probes, {probe: {"path": path, "port": "admin"} for probe, path in asked.items()})
                self.assertIn({"name": "admin", "containerPort": 9090}, container["ports"])

    def test_grace_is_what_draining_may_take(self):
        for server, seconds in (
            ("", 1830),
            ('drain = "5s"\ndrain_delay = "0s"', 20),
            ('drain = "1500ms"\ndrain_delay = "250ms"', 17),
            ('drain = "1h"\ndrain_delay = "1m"', 3675),
            ('drain = "010s"', 40),
        ):
            with self.subTest(server=server):
                self.assertEqual(self.template(f"[server]\n{server}\n")["spec"]["terminationGracePeriodSeconds"], seconds)
        longer = self.template("", terminationGracePeriodSeconds=4000)
        self.assertEqual(longer["spec"]["terminationGracePeriodSeconds"], 4000)

    def test_configuration_arrives_byte_for_byte(self):
        for files in ALL_SETS:
            values = yaml.safe_load((files[0] if files else CHART / "values.yaml").read_text())
            config = values.get("config") or yaml.safe_load((CHART / "values.yaml").read_text())["config"]
            for version in VERSIONS:
                with self.subTest(files=files, version=version):
                    maps = [one for one in HELM.objects(version, files) if one["kind"] == "ConfigMap" and "warmkey.toml" in one["data"]]
                    self.assertEqual([one["data"]["warmkey.toml"] for one in maps], [config])
        for config in ("\n\n# first\n\n\n", "a = 1", "  [server]  \n", "#\r\n#\r\n", "# \u2028 \U0001f525\n", ""):
            rendered = [one for one in HELM.objects("v4", values={"config": config}) if one["kind"] == "ConfigMap"]
            self.assertEqual(rendered[0]["data"]["warmkey.toml"], config)

    def test_dashboard_and_rules_are_the_files(self):
        objects = HELM.objects("v4", values=switched(dashboard=True, prometheusRule=True))
        dashboard = next(one for one in objects if one["kind"] == "ConfigMap" and "warmkey.json" in one["data"])
        self.assertEqual(dashboard["data"]["warmkey.json"], (CHART / "files" / "dashboard.json").read_text())
        self.assertEqual(dashboard["metadata"]["labels"]["grafana_dashboard"], "1")
        rules = yaml.safe_load((CHART / "files" / "rules.yaml").read_text())
        self.assertEqual(only(objects, "PrometheusRule")["spec"], rules)


if __name__ == "__main__":
    unittest.main()
