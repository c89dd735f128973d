"""Whether Kubernetes would take the manifests in a folder, and whether they fit together: every
object against its schema, and every name that one of them says against the others."""

import pathlib
import sys

import kubernetes_validate
import yaml

VERSION = "1.36"
# Custom resources, whose schemas come with what serves them, and what kustomize itself reads.
OTHERS = {"ScaledObject", "Kustomization"}
# Made by hand, as deploy/README.md says.
SECRETS = {"autoglm-keys", "autoglm-join"}

folder = pathlib.Path(sys.argv[1])
faults = []
objects = []
for path in sorted(folder.rglob("*.yaml")):
    for number, manifest in enumerate(yaml.safe_load_all(path.read_text())):
        where = f"{path.relative_to(folder)} {number} {manifest['kind']}"
        objects.append((where, manifest))
        if manifest["kind"] not in OTHERS:
            try:
                kubernetes_validate.validate(manifest, VERSION, strict=True)
            except kubernetes_validate.ValidationError as fault:
                faults.append(f"{where}: {fault.message} at {'.'.join(map(str, fault.path))}")


def of_kind(kind):
    return [(where, it) for where, it in objects if it["kind"] == kind]


def named(kind):
    return {it["metadata"]["name"]: it for _, it in of_kind(kind)}


def expect(is_right, fault):
    if not is_right:
        faults.append(fault)


(kustomization,) = (it for _, it in of_kind("Kustomization"))
listed = set(kustomization["resources"])
found = {path.name for path in folder.glob("*.yaml")} - {"kustomization.yaml"}
expect(listed == found, f"kustomization.yaml lists {listed}, and there are {found}")
configs = {it["name"]: it["files"] for it in kustomization["configMapGenerator"]}
for files in configs.values():
    for file in files:
        expect((folder / file).is_file(), f"kustomization.yaml: no {file}")

sets = named("StatefulSet")
pods = {name: it["spec"]["template"] for name, it in sets.items()}
services = named("Service")
for name, it in sets.items():
    labels = it["spec"]["template"]["metadata"]["labels"]
    expect(it["spec"]["selector"]["matchLabels"].items() <= labels.items(), f"{name}: selector")
    expect(it["spec"]["serviceName"] in services, f"{name}: no service of that name")
    pod = it["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    claims = {claim["metadata"]["name"] for claim in it["spec"]["volumeClaimTemplates"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    for mount in container["volumeMounts"]:
        expect(mount["name"] in volumes.keys() | claims, f"{name}: no volume {mount['name']}")
    for volume in volumes.values():
        if "configMap" in volume:
            expect(volume["configMap"]["name"] in configs, f"{name}: {volume}")
        if "secret" in volume:
            expect(volume["secret"]["secretName"] in SECRETS, f"{name}: {volume}")
        if "persistentVolumeClaim" in volume:
            claim = volume["persistentVolumeClaim"]["claimName"]
            expect(claim in named("PersistentVolumeClaim"), f"{name}: {volume}")
    ports = {port["name"]: port for port in container.get("ports", [])}
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        if probe in container:
            expect(container[probe]["httpGet"]["port"] in ports, f"{name}: {probe}")
            print("probe", container[probe]["httpGet"]["path"])

selecting = [(where, it["spec"]["selector"], it["spec"].get("ports", []))
             for where, it in of_kind("Service")]
selecting += [(where, it["spec"]["selector"]["matchLabels"], [])
              for where, it in of_kind("PodDisruptionBudget")]
for where, it in of_kind("NetworkPolicy"):
    ports = [{"targetPort": port["port"], "protocol": port["protocol"]}
             for rule in it["spec"]["ingress"] for port in rule.get("ports", [])]
    selecting.append((where, it["spec"]["podSelector"]["matchLabels"], ports))
    peers = [peer for rule in it["spec"]["ingress"] for peer in rule.get("from", [])]
    selecting += [(where, peer["podSelector"]["matchLabels"], []) for peer in peers]
for where, labels, ports in selecting:
    selected = [pod for pod in pods.values() if labels.items() <= pod["metadata"]["labels"].items()]
    expect(len(selected) == 1, f"{where}: {labels} selects {len(selected)} kinds of pods")
    for port in ports:
        theirs = [(it["name"], it["protocol"]) for pod in selected
                  for it in pod["spec"]["containers"][0].get("ports", [])]
        expect((port["targetPort"], port["protocol"]) in theirs, f"{where}: {port}, not {theirs}")

for where, it in of_kind("HorizontalPodAutoscaler") + of_kind("ScaledObject"):
    target = it["spec"]["scaleTargetRef"]
    expect(target["kind"] == "StatefulSet" and target["name"] in sets, f"{where}: {target}")
    expect(target["name"] != "autoglm-coordinator", f"{where}: there is one coordinator")

if faults:
    sys.exit("\n".join(faults))
print(len(objects), "objects")
