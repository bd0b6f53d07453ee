"""The files under configs/deploy/ run commands that there are, and the pods of a group find each other. Nothing is started."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest
import typer
import yaml

from nanollm_jax.cli.app import app

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "configs" / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text().replace("\\\n", "")
DOCUMENTS = list(yaml.safe_load_all((DEPLOY / "leader-worker-set.yaml").read_text()))
GIVEN = {"LWS_LEADER_ADDRESS": "nanollm-0.nanollm.default", "LWS_GROUP_SIZE": "2", "LWS_WORKER_INDEX": "1"}  # by LWS


def parsed(words):
    """What the command line makes of a command: every option and its value. Raises for what it does not know."""
    name, *rest = words
    with typer.main.get_command(app()).commands[name].make_context(name, rest) as context:
        return name, context.params


def instruction(name):
    """What stands behind an instruction of the Dockerfile, its last one."""
    return re.findall(rf"^{name} +(.*)$", DOCKERFILE, re.MULTILINE)[-1]


def containers(document):
    """Every container of a document, with the labels of its pod and what else the pod says."""
    if isinstance(document, list):
        for entry in document:
            yield from containers(entry)
    elif isinstance(document, dict):
        if "containers" in document.get("spec", {}):
            for container in document["spec"]["containers"]:
                yield document["metadata"]["labels"], document["spec"], container
        for entry in document.values():
            yield from containers(entry)


def test_the_image():
    words = [*json.loads(instruction("ENTRYPOINT")), *json.loads(instruction("CMD"))]
    assert words[0] == "nanollm"
    name, values = parsed(words[1:])
    assert (name, values["host"], values["port"]) == ("serve", "0.0.0.0", int(instruction("EXPOSE")))
    check = json.loads(re.search(r"HEALTHCHECK.*?CMD (.*)", DOCKERFILE)[1])
    ast.parse(check[2])
    assert check[:2] == ["python", "-c"] and f"127.0.0.1:{values['port']}/health" in check[2]
    copied = {word for line in re.findall(r"^COPY (.*) \S+$", DOCKERFILE, re.MULTILINE) for word in line.split()}
    for path in copied:
        assert (ROOT / path).exists(), path
    project = (ROOT / "pyproject.toml").read_text()
    assert {
        "README.md",
        "LICENSE",
        "pyproject.toml",
        "constraints.txt",
        "configs",
        "nanollm_jax",
    } <= copied  # a build needs
    extras = re.findall(r"EXTRAS=([\w,]+)", DOCKERFILE)
    assert extras and all(
        re.search(rf"^{extra} = \[", project, re.MULTILINE) for one in extras for extra in one.split(",")
    )


def test_a_group_of_pods():
    """Leader and workers run one command, differ by what LeaderWorkerSet tells them, and are probed where process 0 listens."""
    group, service = DOCUMENTS
    found = list(containers(group))
    assert [labels["role"] for labels, _, _ in found] == ["leader", "worker"]
    commands = []
    for _, pod, container in found:
        assert "command" not in container  # the image's entry point is nanollm
        asked = {name for word in container["args"] for name in re.findall(r"\$\((\w+)\)", word)}
        assert asked == set(GIVEN)
        name, values = parsed(
            [re.sub(r"\$\((\w+)\)", lambda match: GIVEN[match[1]], word) for word in container["args"]]
        )
        assert name == "serve" and values["distributed"]
        assert values["coordinator"].startswith(GIVEN["LWS_LEADER_ADDRESS"] + ":")
        assert (values["num_processes"], values["process_id"]) == (2, 1)
        assert values["tp"] == group["spec"]["leaderWorkerTemplate"]["size"] * int(
            container["resources"]["limits"]["nvidia.com/gpu"]
        )
        assert pod["terminationGracePeriodSeconds"] > values["drain"]
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert set(mounts) == {volume["name"] for volume in pod["volumes"]} and "/home/nanollm" in mounts.values()
        assert f"--uid {pod['securityContext']['fsGroup']}" in DOCKERFILE
        assert "NANOLLM_API_KEY" in {entry["name"] for entry in container["env"]}
        commands.append(container["args"])
    assert commands[0] == commands[1]
    _, _, leader = found[0]
    (port,) = leader["ports"]
    assert port["containerPort"] == values["port"] and leader["readinessProbe"]["httpGet"] == {
        "path": "/health",
        "port": port["name"],
    }
    assert service["spec"]["selector"] == {
        "leaderworkerset.sigs.k8s.io/name": group["metadata"]["name"],
        "leaderworkerset.sigs.k8s.io/worker-index": "0",
    }
    assert (
        service["spec"]["ports"][0]["targetPort"] == port["name"]
        and service["metadata"]["name"] != group["metadata"]["name"]
    )


def test_what_is_no_option_would_be_seen():
    with pytest.raises(Exception, match="No such option"):
        parsed(["serve", "--no-such-option"])
