"""A step -> why it cannot run here, in one line; asked before it is started."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from ptexport.runtime.bundle.folder import MANIFEST
from ptexport.runtime.errors import ProviderError
from ptexport.runtime.ort.cuda_driver import Gpu, read_gpu
from ptexport.runtime.ort.providers import choose_provider
from ptexport.toolkit.bench.gpu.steps import Step

REFERENCE = "reference.npy"
_PACKAGES = ("torch", "transformers", "peft")


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """What the steps run on.

    Attributes:
        provider: "cuda", or "cpu" for a rehearsal.
        gpu: the GPU; None: there is none, or it is not used.
        lacking: why CUDA does not run here; None: it does.
        no_tensorrt: why TensorRT does not run here; None: it does.
    """

    provider: str
    gpu: Gpu | None
    lacking: str | None
    no_tensorrt: str | None

    @classmethod
    def find(cls, provider: str) -> "Device":
        """Look for the GPU and the libraries."""
        if provider == "cpu":
            return cls(provider=provider, gpu=None, lacking=None, no_tensorrt="a rehearsal on the CPU has no TensorRT")
        gpu = None
        lacking = _refusal(provider)
        if lacking is None:
            try:
                gpu = read_gpu(0)
            except ProviderError as e:
                lacking = str(e)
        return cls(provider=provider, gpu=gpu, lacking=lacking, no_tensorrt=_refusal("tensorrt"))


def why_not(step: Step, device: Device) -> str | None:
    """Say why a step cannot run; None: it can."""
    if device.lacking is not None:
        return device.lacking
    if step.needs_tensorrt and device.no_tensorrt is not None:
        return device.no_tensorrt
    if step.kind == "inputs" or step.needs_run:
        missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
        if missing:
            return f"{', '.join(missing)}: not installed; pip install 'ptexport[train]'"
    if step.job.bundle and not (Path(step.job.bundle) / MANIFEST).is_file():
        return f"{step.job.bundle}: no bundle was made; see the step inputs"
    if step.needs_run and not (Path(step.job.case) / "run").is_dir():
        return f"{step.job.case}: has no run, need the one that the bundles were exported from; put it there"
    if step.needs_reference and not (Path(step.job.out) / REFERENCE).is_file():
        return f"{step.job.out}: has no logits of Transformers; see the step reference"
    return None


def _refusal(provider: str) -> str | None:
    try:
        choose_provider(provider)
    except ProviderError as e:
        return str(e)
    return None
