"""The processes that train one thing together, as `accelerate launch` or `torchrun` starts them; usually one.

All do the same with the same seed, each on its share of every batch; sums over all shares make them agree bit for bit.
Who is not the first writes nothing. Free of torch until there are several.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import torch

_Item = TypeVar("_Item")


def several() -> bool:
    """Whether there are more than this one."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_first() -> bool:
    """Whether this is the one that writes and is watched."""
    return not several() or int(os.environ["RANK"]) == 0


def share(items: Sequence[_Item]) -> Sequence[_Item]:
    """Take what this process is to do; all shares together are the whole."""
    return items[_state().process_index :: _state().num_processes] if several() else items


def device() -> "torch.device":
    """The device of this process among several."""
    found: torch.device = _state().device
    return found


def add(tensors: Iterable["torch.Tensor"]) -> None:
    """Sum each tensor over all processes, in place."""
    if several():
        for tensor in tensors:
            _reduce(tensor)


def add_number(number: float) -> float:
    """Sum a number over all processes."""
    if not several():
        return number
    import torch

    total = torch.tensor([number], dtype=torch.float64, device=device())
    _reduce(total)
    return total.item()


def add_gradients(parameters: Sequence["torch.nn.Parameter"]) -> None:
    """Sum gradients over all processes; one that no process reached stays absent, as it would for one alone."""
    if not several():
        return
    import torch

    reached = torch.tensor([float(parameter.grad is not None) for parameter in parameters], device=device())
    _reduce(reached)
    for parameter, by in zip(parameters, reached.tolist(), strict=True):
        if by:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            _reduce(parameter.grad)


def told_by_first(value: _Item | None) -> _Item:
    """Learn what the first process knows, and wait for it until it does."""
    if several():
        from accelerate.utils import broadcast_object_list

        _state()
        (value,) = broadcast_object_list([value])
    assert value is not None, "the first process knows"
    return value


@contextmanager
def first_then_others() -> Iterator[None]:
    """Let the first go first, so that what it puts into a cache is made once."""
    if several():
        with _state().main_process_first():
            yield
    else:
        yield


@cache
def _state() -> Any:
    import torch
    from accelerate import PartialState

    return PartialState(cpu=not torch.cuda.is_available())


def _reduce(tensor: "torch.Tensor") -> None:
    import torch.distributed

    torch.distributed.all_reduce(tensor)
