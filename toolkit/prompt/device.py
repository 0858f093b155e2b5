"""A device name -> the torch device to train on, and whether it computes in bf16."""

import torch

from ptexport.runtime.errors import TrainError, reason
from ptexport.toolkit.prompt import distributed

_LONGEST_REASON = 100


def has_bf16(device: torch.device) -> bool:
    """Return whether a device has bf16 instructions; False if it emulates bf16 in fp32 or torch cannot tell."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        capabilities = getattr(torch.cpu, "get_capabilities", dict[str, bool])()  # older torch does not have it
        return any(has for name, has in capabilities.items() if "bf16" in name)
    return False


def find_device(name: str) -> torch.device:
    """Find a device by name; "auto" is the first accelerator, or the CPU. Each of several processes has its own.

    Raises:
        TrainError: torch has no such device on this machine, or a device is given to several processes.
    """
    if distributed.is_distributed():
        if name != "auto":
            raise TrainError(f"device {name}: each of several processes has its own; leave it out")
        return distributed.device()
    if name == "auto":
        return torch.device(
            "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        )
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as e:  # the type depends on how torch was built
        why = reason(e) if len(reason(e)) < _LONGEST_REASON else "torch knows no device of that name"
        raise TrainError(f"device {name}: not available ({why}); use auto or cpu") from e
