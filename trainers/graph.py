"""A computation recorded once as a CUDA graph and replayed on new values: one launch instead of thousands.

Replaying repeats the recorded kernels on the same memory and runs no Python. So the inputs are copied to where they lay
when the graph was recorded, and all else that Python chose on the way (shapes, tensors of a class list) must still be
the same; where it is not, the computation is recorded again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

WARM_UPS = 3  # runs before recording: what is built lazily is built, as PyTorch's notes on CUDA graphs ask


@dataclass(frozen=True)
class Recording:
    """What was recorded.

    Attributes:
        replay: computes again what ``output`` holds.
        output: always the same tensor.
    """

    replay: Callable[[], Any]
    output: Tensor


Recorder = Callable[[Callable[[], Tensor]], Recording]


def record_on_cuda(compute: Callable[[], Tensor]) -> Recording:
    """Warm up and record a computation that never makes the host wait for the device.

    Raises:
        RuntimeError: CUDA cannot record it.
    """
    side, here = torch.cuda.Stream(), torch.cuda.current_stream()
    side.wait_stream(here)
    with torch.cuda.stream(side):
        for _ in range(WARM_UPS):
            compute()
    here.wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    # Only this thread is held to what can be recorded: a loader's thread pins memory at the same time.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        output = compute()
    return Recording(graph.replay, output)


class RecordedFunction:
    """``function(*inputs)``, recorded at its first call.

    Args:
        function: computes one tensor from tensors; always the same operations.
        reads: objects that it reads beside its inputs and that may be replaced between calls. They are kept alive,
            since a graph reads their memory.
        recorder: how it is recorded.
    """

    def __init__(
        self,
        function: Callable[..., Tensor],
        reads: Callable[[], Sequence[Any]] = tuple,
        recorder: Recorder = record_on_cuda,
    ) -> None:
        self.function, self.reads, self.recorder = function, reads, recorder
        self.inputs: list[Tensor] = []
        self.recording: Recording | None = None
        self._read: Sequence[Any] = ()

    def __call__(self, *inputs: Tensor) -> Tensor:
        """The result; it is overwritten by the next call."""
        if not self._fits(inputs):
            self._record(inputs)
        for kept, new in zip(self.inputs, inputs, strict=True):
            kept.copy_(new, non_blocking=True)
        self.recording.replay()
        return self.recording.output

    def _fits(self, inputs: Sequence[Tensor]) -> bool:
        if self.recording is None or [_kind(t) for t in inputs] != [_kind(t) for t in self.inputs]:
            return False
        return all(now is then for now, then in zip(self.reads(), self._read, strict=True))

    def _record(self, inputs: Sequence[Tensor]) -> None:
        self.recording = None  # gives its memory back before the new one takes some
        self.inputs = [value.clone() for value in inputs]
        self.recording = self.recorder(lambda: self.function(*self.inputs))
        self._read = tuple(self.reads())


def _kind(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.dtype, tensor.device
