"""The learner's end of `sync.backend: nccl`: buckets go to all engines of a group at once. Not verified on a GPU.

    worker.publish ──► manifest, which the driver hands to the engines ──► NcclSender.send ═broadcast═► their receivers

| who waits | for what | who ends the wait |
|---|---|---|
| `send`, joining | every engine of the group at the rendezvous | the engines; or `sync.timeout_s` |
| `send`, sending | every engine in each broadcast | the engines; or `sync.timeout_s`, which aborts the communicator |
| an engine | the learner, at the rendezvous and in each broadcast | the learner; or the pool's deadline kills it |

NCCL itself waits for ever, so joining runs in a thread that is given up, and sending is watched through an event. A
send that fails does not fail the learner: engines that did not attest are restarted by the pool, are new members, and
get the version in full from a new generation of the group.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from protocol.errors import SyncError
from protocol.sync_group import layout
from protocol.weights import Bucket, SyncGroup


class SendingEnd(Protocol):
    """A communicator of one group, rank 0."""

    def broadcast(self, buffer: npt.NDArray[np.uint8]) -> None:
        """Starts to send; the buffer may be used again after `wait`."""
        ...

    def wait(self, timeout_s: float) -> bool:
        """Whether everything that was started has arrived within the time."""
        ...

    def close(self) -> None:
        """Gives the communicator up, also while something is under way."""
        ...


class NcclSender:
    """Keeps the communicator of the present generation."""

    def __init__(self, open_end: Callable[[SyncGroup], SendingEnd] | None = None) -> None:
        self._open = open_end or _VllmEnd
        self._end: SendingEnd | None = None
        self._generation = 0

    def send(self, group: SyncGroup, buckets: Sequence[Bucket]) -> str:
        """Empty when every engine has received every bucket, else why not."""
        if group.world_size == 1:
            return ""
        deadline = time.monotonic() + group.timeout_s
        try:
            end = self._joined(group, deadline)
            for number, bucket in enumerate(buckets):
                end.broadcast(_flat(bucket))
                if not end.wait(deadline - time.monotonic()):
                    raise SyncError(_late(group, f"bucket {number} of {len(buckets)} was not received by all"))
        except (SyncError, RuntimeError, OSError) as error:  # NCCL and its store raise RuntimeError and OSError
            self.close()
            return f"{type(error).__name__}: {error}"
        return ""

    def close(self) -> None:
        """Leaves the group; the next send joins anew."""
        if self._end is not None:
            self._end.close()
        self._end, self._generation = None, 0

    def _joined(self, group: SyncGroup, deadline: float) -> SendingEnd:
        if self._end is None or self._generation != group.generation:
            self.close()
            self._end = _within(lambda: self._open(group), deadline - time.monotonic(), group)
            self._generation = group.generation
        return self._end


def _within(call: Callable[[], SendingEnd], timeout_s: float, group: SyncGroup) -> SendingEnd:
    """The call's result; SyncError after the time, whatever the call is stuck in."""
    results: list[SendingEnd] = []
    failures: list[BaseException] = []

    def run() -> None:
        try:
            results.append(call())
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run, name=f"join-sync-group-{group.generation}", daemon=True)
    thread.start()
    thread.join(max(0.0, timeout_s))
    if failures:
        raise failures[0]
    if not results:
        raise SyncError(_late(group, "not every engine came to the rendezvous"))
    return results[0]


def _late(group: SyncGroup, what: str) -> str:
    return (
        f"sync group {group.generation} of {sorted(group.offsets)}: {what} within {group.timeout_s:.0f} s; the pool "
        "restarts engines that did not attest; raise sync.timeout_s if they were only slow"
    )


def _flat(bucket: Bucket) -> npt.NDArray[np.uint8]:
    offsets, total = layout([array.nbytes for array in bucket])
    buffer = np.zeros(total, dtype=np.uint8)
    for offset, array in zip(offsets, bucket, strict=True):
        buffer[offset : offset + array.nbytes] = array
    return buffer


class _VllmEnd:
    """vLLM's communicator and rendezvous, which its engines use too."""

    def __init__(self, group: SyncGroup) -> None:
        from vllm.distributed.weight_transfer.nccl_common import trainer_init

        place = {"master_address": group.address, "master_port": group.port, "world_size": group.world_size}
        self._group: Any = trainer_init(place)
        self._sent = torch.cuda.Event()
        self._buffer: torch.Tensor | None = None

    def broadcast(self, buffer: npt.NDArray[np.uint8]) -> None:
        self._buffer = torch.from_numpy(buffer).to(torch.cuda.current_device())
        self._group.broadcast(self._buffer, src=0)
        self._sent.record()

    def wait(self, timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        while not self._sent.query():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.002)
        return True

    def close(self) -> None:
        self._group.destroy()  # aborts what is under way
