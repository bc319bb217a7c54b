"""Lints and renders the Helm chart and checks every object against the schemas of Kubernetes.

usage: helm.py render|check CHART VALUES RELEASE NAMESPACE
Prints {"lint": [...], "problems": [...], "objects": [...], "refused": null or why}; `lint` and
`problems` are asked for by `check` alone, which takes longer. Objects of kinds that Kubernetes itself
does not have are printed and not checked here.
"""

import json
import sys
import warnings

import helm_python
import yaml

# The oldest that the chart says it runs on, and the newest known.
VERSIONS = ["1.28", "1.37"]
FOREIGN = ("keda.sh/", "monitoring.coreos.com/")


def main(task, chart, values_file, release, namespace):
    with open(values_file) as text:
        values = yaml.safe_load(text) or {}
    out = {"lint": [], "problems": [], "objects": [], "refused": None}
    try:
        with helm_python.Chart.load(chart) as loaded:
            loaded.validate_schema(loaded.merge_values(values))
            rendered = loaded.render(values, name=release, namespace=namespace)
    except helm_python.HelmError as refused:
        out["refused"] = str(refused)
        print(json.dumps(out))
        return
    for path, text in rendered.items():
        if path.endswith("NOTES.txt"):
            out["notes"] = text
            continue
        for thing in yaml.safe_load_all(text):
            if thing is not None:
                out["objects"].append(thing)
    if task == "check":
        out["lint"] = lint(chart, values, namespace)
        out["problems"] = [problem for thing in out["objects"] for problem in check(thing)]
    print(json.dumps(out))


def lint(chart, values, namespace):
    report = helm_python.lint(chart, values, strict=True, namespace=namespace)
    return report["errors"] + [m["error"] for m in report["messages"] if m["severity"] > 1]


def check(thing):
    import kubernetes_validate

    if thing["apiVersion"].startswith(FOREIGN):
        return
    for version in VERSIONS:
        try:
            kubernetes_validate.validate(thing, version, strict=True)
        except Exception as problem:  # of many kinds, all of which say what is wrong
            name = f"{thing['kind']}/{thing['metadata']['name']}"
            yield f"{name} on {version}: {str(problem)[:500]}"


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(*sys.argv[1:])
