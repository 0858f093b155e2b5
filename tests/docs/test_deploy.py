"""The files in examples/deploy agree with the server, with each other, and with what their tools accept."""

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import dockerfile
import pytest
import yaml
from commands import ptexport

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "examples" / "deploy"
UNIT = (DEPLOY / "ptexport.service").read_text(encoding="utf-8")
NGINX = (DEPLOY / "nginx.conf").read_text(encoding="utf-8")
CPU, GPU = (
    dockerfile.stages_of((DEPLOY / name).read_text(encoding="utf-8")) for name in ("Dockerfile", "Dockerfile.gpu")
)
OBJECTS = list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text(encoding="utf-8")))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
DRAIN_S = 30


def of_kind(kind: str) -> dict[str, Any]:
    (found,) = [document for document in OBJECTS if document is not None and document["kind"] == kind]
    assert isinstance(found, dict)
    return found


def settings(name: str) -> list[str]:
    """Return the values of a setting of the unit."""
    return [line.split("=", 1)[1] for line in UNIT.splitlines() if line.startswith(f"{name}=")]


POD = of_kind("Deployment")["spec"]["template"]
(CONTAINER,) = POD["spec"]["containers"]
COMMANDS = {
    "ptexport.service": shlex.split(settings("ExecStart")[0]),
    "Dockerfile": CPU[-1].command(),
    "Dockerfile.gpu": GPU[-1].command(),
    "kubernetes.yaml": [*dockerfile.exec_form(CPU[-1].settings["ENTRYPOINT"]), *CONTAINER["args"]],
}


def value_of(option: str, words: list[str]) -> str:
    return words[words.index(option) + 1]


def options_in(words: list[str]) -> set[str]:
    return {word for word in words if word.startswith("--")}


@pytest.fixture(scope="module")
def served_options() -> set[str]:
    help_text = ptexport("serve", "--help").stdout
    return set(re.findall(r"^  (--[a-z-]+)", help_text, re.MULTILINE))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_one_of_the_server(name: str, served_options: set[str]) -> None:
    assert COMMANDS[name][:2] == ["/opt/ptexport/bin/ptexport", "serve"]
    assert options_in(COMMANDS[name]) - served_options == set()


def test_an_unknown_option_would_be_found(served_options: set[str]) -> None:
    assert options_in(["serve", "--prot", "8000", "--port", "1"]) - served_options == {"--prot"}


@pytest.mark.parametrize("name", COMMANDS)
def test_bundle_and_ports_are_the_same_everywhere(name: str) -> None:
    words = COMMANDS[name]
    assert "/var/lib/ptexport/bundle" in words
    assert (value_of("--port", words), value_of("--grpc-port", words)) == ("8000", "8001")
    assert value_of("--host", words) == ("127.0.0.1" if name == "ptexport.service" else "0.0.0.0")
    if "--watch" in words:
        assert value_of("--watch", words) == "/var/lib/ptexport/models"


def test_ports_are_those_that_others_connect_to() -> None:
    assert [port["containerPort"] for port in CONTAINER["ports"]] == [8000, 8001]
    names = [port["name"] for port in CONTAINER["ports"]]
    assert [(port["port"], port["targetPort"]) for port in of_kind("Service")["spec"]["ports"]] == list(
        zip((8000, 8001), names, strict=True)
    )
    rules = of_kind("NetworkPolicy")["spec"]["ingress"]
    assert {port["port"] for rule in rules for port in rule["ports"]} == {8000, 8001}
    assert POD["metadata"]["annotations"]["prometheus.io/port"] == "8000"
    assert [stages[-1].settings["EXPOSE"] for stages in (CPU, GPU)] == ["8000 8001"] * 2
    assert re.findall(r"127\.0\.0\.1:(\d+)", NGINX) == ["8000", "8001"]


def test_probes_ask_paths_of_the_server() -> None:
    served = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "runtime" / "server").rglob("*.py"))
    probes = {name: CONTAINER[f"{name}Probe"]["httpGet"] for name in ("startup", "readiness", "liveness")}
    assert {name: probe["path"].rsplit("/", 1)[1] for name, probe in probes.items()} == {
        "startup": "ready",
        "readiness": "ready",
        "liveness": "live",
    }
    health = CPU[-1].health()
    (url,) = re.findall(r"http://127\.0\.0\.1:8000(/[^']*)", health[-1])
    paths = {probe["path"] for probe in probes.values()} | {url, POD["metadata"]["annotations"]["prometheus.io/path"]}
    assert [path for path in sorted(paths) if f'"{path}"' not in served] == []
    compile(health[-1], "HEALTHCHECK", "exec")
    assert health == GPU[-1].health()


def test_the_user_is_the_same_number_everywhere() -> None:
    security = POD["spec"]["securityContext"]
    user = f"{security['runAsUser']}:{security['runAsGroup']}"
    assert [stages[-1].settings["USER"] for stages in (CPU, GPU)] == [user] * 2
    assert int(user.split(":")[0]) >= 1000
    assert security["fsGroup"] == security["runAsGroup"], "reads the token"


def test_a_pod_has_no_privileges_and_writes_nothing() -> None:
    assert POD["spec"]["securityContext"]["runAsNonRoot"] is True
    assert POD["spec"]["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert POD["spec"]["automountServiceAccountToken"] is False
    assert CONTAINER["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert all(mount["readOnly"] for mount in CONTAINER["volumeMounts"])
    assert not any("hostPath" in volume for volume in POD["spec"]["volumes"])


def test_everybody_waits_longer_than_the_server_drains() -> None:
    assert float(settings("TimeoutStopSec")[0]) > DRAIN_S
    (pause,) = re.findall(r"sleep\((\d+)\)", CONTAINER["lifecycle"]["preStop"]["exec"]["command"][-1])
    assert POD["spec"]["terminationGracePeriodSeconds"] > DRAIN_S + int(pause)
    assert settings("KillSignal") == ["SIGTERM"]
    assert [stages[-1].settings["STOPSIGNAL"] for stages in (CPU, GPU)] == ["SIGTERM"] * 2


def test_paths_of_a_pod_are_mounted() -> None:
    mounts = {mount["name"]: mount["mountPath"] for mount in CONTAINER["volumeMounts"]}
    paths = [word for word in CONTAINER["args"] if word.startswith("/")]
    assert [path for path in paths if not path.startswith(tuple(f"{mount}/" for mount in mounts.values()))] == []
    volumes = {volume["name"]: volume for volume in POD["spec"]["volumes"]}
    assert volumes.keys() == mounts.keys()
    assert (
        volumes["models"]["persistentVolumeClaim"]["claimName"] == of_kind("PersistentVolumeClaim")["metadata"]["name"]
    )
    (item,) = volumes["token"]["secret"]["items"]
    assert volumes["token"]["secret"]["secretName"] == of_kind("Secret")["metadata"]["name"]
    assert item["key"] in of_kind("Secret")["stringData"]
    assert value_of("--token-file", CONTAINER["args"]) == f"{mounts['token']}/{item['path']}"


def test_the_credential_of_the_unit_is_its_token() -> None:
    (credential,) = settings("LoadCredential")
    name, source = credential.split(":")
    assert value_of("--token-file", COMMANDS["ptexport.service"]) == f"%d/{name}"
    assert source == "/etc/ptexport/token"


def test_every_object_selects_the_same_pods() -> None:
    labels = POD["metadata"]["labels"]
    assert of_kind("Deployment")["spec"]["selector"]["matchLabels"] == labels
    assert of_kind("Service")["spec"]["selector"] == labels
    assert of_kind("PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == labels
    assert of_kind("NetworkPolicy")["spec"]["podSelector"]["matchLabels"] == labels
    assert of_kind("PodDisruptionBudget")["spec"]["minAvailable"] < of_kind("Deployment")["spec"]["replicas"]


def test_both_images_differ_by_what_a_gpu_needs() -> None:
    python, cuda = CPU[0].base, GPU[0].base
    for stages, base in ((CPU, python), (GPU, cuda)):
        assert {stage.base for stage in stages} == {base}
        assert re.fullmatch(r"[a-z/]+:\d+\.\d+\.\d+-[a-z0-9.-]+", base), "a version, and no host"
    steps = [[(word, rest) for stage in stages for word, rest, _ in stage.steps] for stages in (CPU, GPU)]
    without_apt = [(word, rest.replace("[gpu,", "[cpu,")) for word, rest in steps[1] if "apt-get" not in rest]
    assert without_apt == steps[0]
    assert GPU[-1].command() == [*CPU[-1].command()[:-1], "--provider", "cuda", CPU[-1].command()[-1]]
    assert GPU[-1].env == CPU[-1].env


@pytest.mark.parametrize("stages", [CPU, GPU], ids=["cpu", "gpu"])
def test_an_image_installs_extras_of_the_project_in_its_version(stages: list[dockerfile.Stage]) -> None:
    (install,) = [rest for _, rest, _ in stages[0].steps if "--constraint constraints.txt" in rest]
    (extras,) = re.findall(r"\[([a-z,]+)\]", install)
    assert set(extras.split(",")) - PROJECT["project"]["optional-dependencies"].keys() == set()
    version = PROJECT["project"]["version"]
    assert f'image.version="{version}"' in stages[-1].settings["LABEL"]
    assert CONTAINER["image"] == f"ptexport:{version}"


def test_the_build_context_holds_what_is_copied_and_nothing_else() -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    kept = {line.removeprefix("!") for line in lines if line.startswith("!")}
    copies = {name for word, rest, _ in CPU[0].steps if word == "COPY" for name in rest.split()[:-1]}
    assert copies == kept
    assert "*" in lines
    assert set(PROJECT["tool"]["setuptools"]["package-dir"].values()) <= kept


def verify(unit: str, folder: Path) -> subprocess.CompletedProcess[str]:
    path = folder / "ptexport.service"
    path.write_text(unit.replace("/opt/ptexport/bin/ptexport", sys.executable), encoding="utf-8")
    command = ["systemd-analyze", "verify", "--man=no", str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")


@needs_systemd
def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    done = verify(UNIT, tmp_path)
    assert (done.returncode, "ptexport.service" in done.stderr) == (0, False), done.stderr
    assert "NoNewPrivilege'" in verify(UNIT.replace("NoNewPrivileges=", "NoNewPrivilege="), tmp_path).stderr


@needs_systemd
@pytest.mark.parametrize(("taken_out", "code"), [("", 0), ("SystemCallFilter=", 1), ("CapabilityBoundingSet=", 1)])
def test_the_exposure_of_the_unit_is_at_most_one(taken_out: str, code: int, tmp_path: Path) -> None:
    kept = [line for line in UNIT.splitlines() if not taken_out or not line.startswith(taken_out)]
    (tmp_path / "ptexport.service").write_text("\n".join(kept), encoding="utf-8")
    command = ["systemd-analyze", "security", "--offline=yes", "--threshold=10", str(tmp_path / "ptexport.service")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout.splitlines()[-1]
