"""A Dockerfile -> its stages, and a folder in which its steps were run without Docker.

Only the instructions and forms that our Dockerfiles use. Base images are not fetched: a folder stands in for them.
"""

import json
import os
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

STEPS = ("COPY", "RUN")
SETTINGS = ("CMD", "ENTRYPOINT", "EXPOSE", "HEALTHCHECK", "LABEL", "STOPSIGNAL", "USER")


@dataclass(frozen=True)
class Stage:
    """One `FROM` and what follows it.

    Attributes:
        base: the image that it starts from.
        name: after `AS`; else the empty string.
        steps: (instruction, rest, working directory) of each COPY and RUN, in order.
        settings: instruction -> rest, of those that only describe the image.
        env: name -> value, of ENV.
    """

    base: str
    name: str
    steps: list[tuple[str, str, str]] = field(default_factory=list)
    settings: dict[str, str] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)

    def command(self) -> list[str]:
        """Return ENTRYPOINT and CMD, which must be in exec form."""
        return [word for name in ("ENTRYPOINT", "CMD") for word in exec_form(self.settings[name])]

    def health(self) -> list[str]:
        """Return the command of HEALTHCHECK."""
        return exec_form(self.settings["HEALTHCHECK"].split("CMD ", 1)[1])


def exec_form(rest: str) -> list[str]:
    words = json.loads(rest)
    assert isinstance(words, list)
    return [str(word) for word in words]


def stages_of(text: str) -> list[Stage]:
    """Parse a Dockerfile; an instruction that is not known here fails."""
    kept = "\n".join(line for line in text.splitlines() if line and not line.lstrip().startswith("#"))
    found: list[Stage] = []
    folder = "/"
    for line in kept.replace("\\\n", " ").splitlines():
        word, rest = line.split(maxsplit=1)
        if word == "FROM":
            base, *name = rest.split(" AS ")
            found.append(Stage(base, "".join(name)))
            folder = "/"
        elif word == "WORKDIR":
            folder = rest
        elif word in STEPS:
            found[-1].steps.append((word, rest, folder))
        elif word == "ENV":
            found[-1].env.update(pair.split("=", 1) for pair in rest.split())
        else:
            assert word in SETTINGS, line
            found[-1].settings[word] = rest
    return found


def build(stages: list[Stage], context: Path, base: Path, place: Path) -> Path:
    """Run the steps of all stages, each in a copy of the base; returns the root of the last one."""
    roots: dict[str, Path] = {}
    for stage in stages:
        root = roots[stage.name] = place / (stage.name or "image")
        subprocess.run(["cp", "--archive", "--reflink=auto", str(base), str(root)], check=True)
        for word, rest, folder in stage.steps:
            inside(root, folder).mkdir(parents=True, exist_ok=True)
            if word == "RUN":
                run_step(root, rest, folder)
            else:
                copy(rest, root, folder, context, roots)
    return root


def inside(root: Path, path: str) -> Path:
    return root / path.lstrip("/")


def copy(rest: str, root: Path, folder: str, context: Path, roots: dict[str, Path]) -> None:
    """COPY [--from=STAGE] SOURCE … TARGET, for files into a folder and for folders."""
    words = rest.split()
    source = context
    if words[0].startswith("--from="):
        source = roots[words.pop(0).removeprefix("--from=")]
    *names, target = words
    to = inside(root, os.path.join(folder, target))  # noqa: PTH118  an absolute target replaces the folder
    for name in names:
        path = inside(source, name)
        if path.is_dir():
            shutil.copytree(path, to, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, to)


def run_step(root: Path, command: str, folder: str) -> None:
    """Run a shell command as root of a writable root, with this machine's names, certificates and pip settings."""
    words = ["bwrap", "--bind", str(root), "/", "--dev", "/dev", "--proc", "/proc", "--tmpfs", "/tmp"]
    for path in ("/etc/resolv.conf", "/etc/hosts", "/etc/ssl/certs"):
        words += ["--ro-bind", path, path]
    words += ["--chdir", folder, "--die-with-parent", "/bin/sh", "-c", command]
    kept = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    done = subprocess.run(
        words,
        env={"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/root", **kept},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
