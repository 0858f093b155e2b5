"""Data parallelism: several processes, started by `accelerate launch` or `torchrun`, train one model together.

All processes run the same code with the same seed, each on its shard of every batch. Gradients and sums are reduced
over all processes, so that their weights stay equal bit for bit. Only rank 0 writes files and shows progress. With one
process, these functions do nothing and do not import torch.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import torch

_Item = TypeVar("_Item")


def is_distributed() -> bool:
    """Return whether there is more than one process."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_rank_0() -> bool:
    """Return whether this process has rank 0, which writes files and shows progress."""
    return not is_distributed() or int(os.environ["RANK"]) == 0


def shard(items: Sequence[_Item]) -> Sequence[_Item]:
    """Select the items of this process; the shards of all processes together are all items."""
    return items[_state().process_index :: _state().num_processes] if is_distributed() else items


def device() -> "torch.device":
    """Return the device of this process; call it only with several processes."""
    found: torch.device = _state().device
    return found


def add(tensors: Iterable["torch.Tensor"]) -> None:
    """Sum each tensor over all processes, in place."""
    if is_distributed():
        for tensor in tensors:
            _reduce(tensor)


def add_number(number: float) -> float:
    """Sum a number over all processes."""
    if not is_distributed():
        return number
    import torch

    total = torch.tensor([number], dtype=torch.float64, device=device())
    _reduce(total)
    return total.item()


def add_gradients(parameters: Sequence["torch.nn.Parameter"]) -> None:
    """Sum gradients over all processes; a gradient that is None in all of them stays None."""
    if not is_distributed():
        return
    import torch

    reached = torch.tensor([float(parameter.grad is not None) for parameter in parameters], device=device())
    _reduce(reached)
    for parameter, by in zip(parameters, reached.tolist(), strict=True):
        if by:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            _reduce(parameter.grad)


def broadcast_from_rank_0(value: _Item | None) -> _Item:
    """Return the value that rank 0 passes, in every process; wait for rank 0 if necessary."""
    if is_distributed():
        from accelerate.utils import broadcast_object_list

        _state()
        (value,) = broadcast_object_list([value])
    assert value is not None, "rank 0 passes a value"
    return value


@contextmanager
def rank_0_first() -> Iterator[None]:
    """Run the block in rank 0 first and then in the other processes, so that they find its cache entries."""
    if is_distributed():
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
