"""What Kubernetes understands below some values: the parts of values.schema.json that no default tells."""

INTEGER, TEXT, FLAG = {"type": "integer"}, {"type": "string"}, {"type": "boolean"}
NAME = {"type": "string", "minLength": 1}
PORT = {"type": "integer", "minimum": 1, "maximum": 65535}
TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}


def said(schema, description):
    return {"description": description, **schema}


def closed(required=(), **properties):
    """An object of just these properties, each `(schema, description)`."""
    body = {name: said(*property) for name, property in properties.items()}
    schema = {"type": "object", "additionalProperties": False, "properties": body}
    return schema | ({"required": list(required)} if required else {})


def listed(items):
    return {"type": "array", "items": items}


def reference(name):
    return {"$ref": f"#/$defs/{name}"}


KEY_OF = closed(["name", "key"], name=(NAME, "Its name."), key=(NAME, "The entry."), optional=(FLAG, "Whether it may be missing."))
SOURCE = closed(["name"], name=(NAME, "Its name."), optional=(FLAG, "Whether it may be missing."))
QUANTITY = {"type": ["string", "number"], "pattern": "^[0-9]+([.][0-9]+)?(m|[kMGTPE]i?)?$"}
QUANTITIES = {"type": "object", "additionalProperties": QUANTITY}
EXPRESSION = closed(
    ["key", "operator"],
    key=(NAME, "The label."),
    operator=({"enum": ["In", "NotIn", "Exists", "DoesNotExist"]}, "How it is compared."),
    values=(listed(TEXT), "With what."),
)

DEFINITIONS = {
    "texts": TEXTS,
    "reference": closed(["name"], name=(NAME, "Its name.")),
    "mountedSecret": closed(
        ["name", "mountPath"],
        name=(NAME, "The Secret's name."),
        mountPath=({"type": "string", "pattern": "^/."}, "The folder in which its entries are files."),
    ),
    "variable": closed(
        ["name"],
        name=(NAME, "The variable."),
        value=(TEXT, "Its value. A secret comes by valueFrom."),
        valueFrom=(
            closed(
                secretKeyRef=(KEY_OF, "An entry of a Secret."),
                configMapKeyRef=(KEY_OF, "An entry of a ConfigMap."),
                fieldRef=(
                    closed(["fieldPath"], apiVersion=(NAME, "Its version."), fieldPath=(NAME, "The field.")),
                    "A field of the pod.",
                ),
                resourceFieldRef=(
                    closed(
                        ["resource"],
                        containerName=(NAME, "The container."),
                        resource=(NAME, "The resource."),
                        divisor=(QUANTITY, "The unit."),
                    ),
                    "A resource of the container.",
                ),
            ),
            "Where its value is.",
        ),
    ),
    "variables": closed(
        prefix=(TEXT, "Before each name."),
        secretRef=(SOURCE, "A Secret."),
        configMapRef=(SOURCE, "A ConfigMap."),
    ),
    "resources": closed(requests=(QUANTITIES, "What is set aside."), limits=(QUANTITIES, "What is the most.")),
    "toleration": closed(
        key=(TEXT, "The taint."),
        operator=({"enum": ["Exists", "Equal"]}, "How its value is compared."),
        value=(TEXT, "The taint's value."),
        effect=({"enum": ["", "NoSchedule", "PreferNoSchedule", "NoExecute"]}, "The taint's effect."),
        tolerationSeconds=(INTEGER, "For how long."),
    ),
    "affinity": closed(
        nodeAffinity=({"type": "object"}, "As in a Pod."),
        podAffinity=({"type": "object"}, "As in a Pod."),
        podAntiAffinity=({"type": "object"}, "As in a Pod; required rules leave replicas pending."),
    ),
    "selector": closed(
        matchLabels=(TEXTS, "Labels that it must have."),
        matchExpressions=(listed(EXPRESSION), "What its labels must fulfil."),
    ),
    "topologySpread": closed(
        ["maxSkew", "topologyKey", "whenUnsatisfiable"],
        maxSkew=({"type": "integer", "minimum": 1}, "How uneven it may be."),
        minDomains=({"type": "integer", "minimum": 1}, "How many places there must be."),
        topologyKey=(NAME, "The nodes' label that says where they are."),
        whenUnsatisfiable=({"enum": ["ScheduleAnyway", "DoNotSchedule"]}, "What becomes of one replica too many."),
        labelSelector=(reference("selector"), "The pods that count."),
        matchLabelKeys=(listed(NAME), "Labels in which they agree with the new pod."),
        nodeAffinityPolicy=({"enum": ["Honor", "Ignore"]}, "Whether nodes out of reach count."),
        nodeTaintsPolicy=({"enum": ["Honor", "Ignore"]}, "Whether tainted nodes count."),
    ),
    "peer": closed(
        podSelector=(reference("selector"), "These pods."),
        namespaceSelector=(reference("selector"), "Those in these namespaces."),
        ipBlock=(
            closed(["cidr"], cidr=(NAME, "The addresses."), **{"except": (listed(NAME), "But for these.")}),
            "These addresses.",
        ),
    ),
    "ingressTls": closed(hosts=(listed(NAME), "Host names."), secretName=(NAME, "The Secret with the certificate.")),
    "parentRef": closed(
        ["name"],
        group=(TEXT, "Its group."),
        kind=(NAME, "Its kind."),
        namespace=(NAME, "Its namespace."),
        name=(NAME, "Its name."),
        sectionName=(NAME, "Its listener."),
        port=(PORT, "Its port."),
    ),
}
