"""What a CUDA graph does, on the CPU: record a computation's operations and repeat them on the same memory.

As on a GPU, replaying runs no Python of the recorded code: what that chose once, it has chosen for ever, and a number
that the host asks for in between is an error.
"""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from trainers.step import WARM_UPS, Recording

WAITS_FOR_THE_DEVICE = ("_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "equal")


class Recorder(TorchDispatchMode):
    """Keeps every operation with its arguments and results, which so keep their memory."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if operation.overloadpacket.__name__ in WAITS_FOR_THE_DEVICE:
            raise RuntimeError(f"operation not permitted when stream is capturing: {operation}")
        results = operation(*args, **(kwargs or {}))
        self.calls.append((operation, args, kwargs or {}, results))
        return results

    @torch.no_grad()
    def replay(self):
        for operation, args, kwargs, results in self.calls:
            for old, new in zip(tree_leaves(results), tree_leaves(operation(*args, **kwargs)), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():  # else a view, or in place
                    old.copy_(new)


def record_on_cpu(compute):
    """Stands in for `trainers.step.record_on_cuda`."""
    for _ in range(WARM_UPS):
        compute()
    recorder = Recorder()
    with recorder:
        output = compute()
    return Recording(recorder.replay, output)
