"""The table of steps, and the inputs that they are expanded for."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from ptexport.runtime.bundle.folder import MANIFEST
from ptexport.runtime.bundle.manifest_json import read_manifest
from ptexport.runtime.errors import BenchError

CASES = {"smollm2": 20, "minilm": 10}
"""Models that inputs are made of where none are given, with the virtual tokens of their prompts."""

VARIANTS = ("fp32-18", "fp16-18", "bf16-18", "fp32-23", "fp16-23", "bf16-23", "int4-18", "int8-18")
"""Bundles of a case: precision and opset. Some may be refused by the export: then that is the finding."""

TENSORRT_VARIANT = "tensorrt-fp32-18"
BATCHES, TOKENS = (1, 8, 32, 128), (28, 100, 250)
RIVALS = ("peft", "peft-fp16", "peft-bf16", "transformers-fp16", "transformers-bf16")
COMPILED = tuple(f"transformers-{dtype}-{mode}" for dtype in ("fp16", "bf16") for mode in ("compiled", "max-autotune"))


class Job(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a step's process is told.

    Attributes:
        provider: "cuda", or "cpu" for a rehearsal.
        case: folder of the case: `run` and its bundles; "": the step needs none.
        bundle: folder of the bundle, likewise.
        model: model that inputs are made of, likewise.
        variants: bundles to make, or to compare.
        rivals: baselines of `bench speed`.
        sizes: texts per call x tokens per text.
        out: folder that the step may write to.
    """

    provider: str
    case: str = ""
    bundle: str = ""
    model: str = ""
    variants: tuple[str, ...] = ()
    rivals: tuple[str, ...] = ()
    sizes: tuple[tuple[int, int], ...] = ()
    out: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step.

    Attributes:
        name: name, and the name of its result.
        kind: module of this room that runs.
        limit_s: seconds after which it is killed.
        job: what it is told.
        essential: whether no GPU is proved unless it passes.
        needs_run: whether it needs the run and the packages of the extra `train`.
        needs_reference: whether it needs the logits of untouched Transformers.
        needs_tensorrt: whether it needs the libraries of TensorRT.
    """

    name: str
    kind: str
    limit_s: float
    job: Job
    essential: bool = False
    needs_run: bool = False
    needs_reference: bool = False
    needs_tensorrt: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A folder with a run and bundles of it.

    Attributes:
        name: name in the names of steps.
        folder: the folder.
        bundles: folders of its bundles, by name; the first is in fp32 if one is.
        fp32: names of those in fp32: without them no GPU is proved.
        model: model that it is made of here; None: it was given.
    """

    name: str
    folder: Path
    bundles: dict[str, Path]
    fp32: frozenset[str]
    model: str | None = None


def made_cases(out: Path) -> list[Case]:
    """List the cases that the proof makes itself."""
    cases = []
    for name in CASES:
        folder = out / "inputs" / name
        bundles = {variant: folder / variant for variant in (*VARIANTS, TENSORRT_VARIANT)}
        fp32 = frozenset(variant for variant in VARIANTS if variant.startswith("fp32"))
        cases.append(Case(name=name, folder=folder, bundles=bundles, fp32=fp32, model=name))
    return cases


def given_case(folder: Path) -> Case:
    """Look into a given folder: a bundle, or a folder with bundles and, beside them, the `run` they were exported from.

    Raises:
        BenchError: it is neither.
        BundleError: a manifest cannot be read.
    """
    folder = folder.resolve()
    alone = (folder / MANIFEST).is_file()
    paths = [folder] if alone else [path.parent for path in sorted(folder.glob(f"*/{MANIFEST}"))]
    if not paths:
        raise BenchError(f"{folder}: has no bundle, need a bundle or a folder of bundles of one run; give another")
    fp32 = frozenset(path.name for path in paths if _precision(path) == "fp32")
    bundles = {path.name: path for path in sorted(paths, key=lambda path: path.name not in fp32)}
    return Case(name=folder.name, folder=folder.parent if alone else folder, bundles=bundles, fp32=fp32)


def _precision(bundle: Path) -> str:
    return read_manifest((bundle / MANIFEST).read_bytes(), str(bundle)).graph.precision


def list_steps(cases: Sequence[Case], provider: str, out: Path) -> list[Step]:
    """List all steps in their order: what is short and says most comes first."""
    steps = [
        Step(name="doctor", kind="doctor", limit_s=60, job=Job(provider=provider), essential=True),
        Step(name="peak", kind="peak", limit_s=60, job=Job(provider=provider)),
    ]
    for case in cases:
        if case.model is not None:
            job = Job(provider=provider, case=str(case.folder), model=case.model, variants=tuple(case.bundles))
            steps.append(Step(name=f"inputs-{case.name}", kind="inputs", limit_s=1800, job=job))
    for case in cases:
        steps += _steps_of_bundles(case, provider, out)
    for case in cases:
        steps += _steps_of_speed(case, provider, out)
    return steps


def _steps_of_bundles(case: Case, provider: str, out: Path) -> Iterator[Step]:
    reference = str(out / f"reference-{case.name}")

    def job(bundle: Path) -> Job:
        return Job(provider=provider, case=str(case.folder), bundle=str(bundle), out=reference)

    bundles = {name: path for name, path in case.bundles.items() if not name.startswith("tensorrt")}
    first = next(iter(bundles.values()), None)
    if first is not None:
        yield Step(
            name=f"reference-{case.name}", kind="reference", limit_s=300, job=job(first), needs_run=True
        )  # on the CPU
    for kind, limit_s in (("place", 90), ("parity", 180), ("graph", 120), ("buffers", 60), ("start", 120)):
        for name, path in bundles.items():
            yield Step(
                name=f"{kind}-{case.name}-{name}",
                kind=kind,
                limit_s=limit_s,
                job=job(path),
                essential=kind in ("place", "parity") and name in case.fp32,
                needs_reference=kind == "parity",
            )
    for name, path in case.bundles.items():
        if name.startswith("tensorrt"):
            yield Step(
                name=f"engine-{case.name}-{name}", kind="engine", limit_s=900, job=job(path), needs_tensorrt=True
            )


def _steps_of_speed(case: Case, provider: str, out: Path) -> Iterator[Step]:
    bundles = [str(path) for name, path in case.bundles.items() if not name.startswith("tensorrt")]
    if not bundles:
        return
    for kind, rivals, variants, limit_s in (
        ("speed", RIVALS, tuple(bundles[1:]), 600),
        ("compiled", COMPILED, (), 1200),
    ):
        for tokens in TOKENS:
            name = f"{kind}-{case.name}-{tokens}"
            job = Job(
                provider=provider,
                case=str(case.folder),
                bundle=bundles[0],
                variants=variants,
                rivals=rivals,
                sizes=tuple((batch, tokens) for batch in BATCHES),
                out=str(out / name),
            )
            yield Step(name=name, kind="speed", limit_s=limit_s, job=job, needs_run=True)
