"""A name -> the torch device to train on, and what it computes in."""

from typing import TYPE_CHECKING

import torch

from ptexport.runtime.errors import TrainError, reason
from ptexport.toolkit.prompt import distributed

if TYPE_CHECKING:
    pass


def has_bf16(device: torch.device) -> bool:
    """Whether a device computes in bf16 itself, rather than slowly by way of fp32; false where torch cannot tell."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        capabilities = getattr(torch.cpu, "get_capabilities", dict[str, bool])()  # older torch cannot tell
        return any(has for name, has in capabilities.items() if "bf16" in name)
    return False


def find_device(name: str) -> torch.device:
    """Find a device: `auto` is the first accelerator there is, or the CPU; of several processes, each has its own.

    Raises:
        TrainError: torch has no such device here, or several processes are to share one.
    """
    if distributed.several():
        if name != "auto":
            raise TrainError(f"device {name}: each of several processes has its own; leave it out")
        return distributed.device()
    if name == "auto":
        return torch.device(
            "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        )
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as e:  # which of the two depends on how this torch was built
        why = reason(e) if len(reason(e)) < 100 else "torch knows no device of that name"
        raise TrainError(f"device {name}: not to be had ({why}); use auto or cpu") from e
