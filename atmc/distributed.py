"""Several processes that train one model together, as ``torchrun`` starts them.

All run the same program and have the same state, to the bit. Each trains on its share of every
batch; the first alone writes. Gradients on GPUs travel by NCCL, everything else by gloo, which
notices at once that a process has ended. With one process every function here does nothing.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import threading
import time
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from types import FrameType
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from atmc.errors import ProcessError, one_line
from atmc.messages import AtmcWarning, argument

T = TypeVar("T")

_LONGEST = timedelta(days=7)  # that the others wait for what the first does alone
_GRACE = 3.0  # seconds for the first to meet the error that another process has met
_NAMES = "RANK", "MASTER_ADDR", "MASTER_PORT"  # beside WORLD_SIZE, of torchrun and its like
_FAILED, _ENDS, _SHOWN = "failed", "ends", "shown"  # keys of the store
_TRANSPORTS = "gloo", "Gloo", "NCCL", "onnection"  # in the errors of a collective that fails


def size() -> int:
    """The number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this process, from 0 on."""
    return dist.get_rank() if size() > 1 else 0


def is_first() -> bool:
    """Whether this process is the one that writes, warns and calls the user back."""
    return rank() == 0


class _Membership:
    """This process as one of several, from :func:`joined` on."""

    def __init__(self, store: Any) -> None:
        self.store = store  # of the messages about errors; None where the group is the user's
        self.waits = 0  # nested blocks that a signal must not leave
        self.signal: int | None = None  # the first that came
        self.ends = False  # an error or a signal is on its way out

    def handle(self, signum: int, frame: FrameType | None) -> None:
        """Take a signal once: torchrun sends again what the terminal has sent."""
        if self.signal is None:
            self.signal = signum
            if not (self.waits or self.ends):
                raise KeyboardInterrupt


_membership: _Membership | None = None
_broken = False


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Inside, the processes that ``torchrun`` has started work together.

    SIGINT and SIGTERM are Ctrl-C, and a second one changes nothing. Once an error leaves the block
    both are ignored, so that the process ends in order. Blocks may be nested.
    """
    global _membership
    started = int(os.environ.get("WORLD_SIZE", "1")) > 1 and all(n in os.environ for n in _NAMES)
    if _membership is not None or not started:
        yield
        return
    store = None
    if not dist.is_initialized():
        store, number, count = next(iter(rendezvous("env://", timeout=_LONGEST)))
        both = torch.cuda.is_available() and dist.is_nccl_available()
        backend = "cpu:gloo,cuda:nccl" if both else "gloo"
        dist.init_process_group(
            backend, store=store, rank=number, world_size=count, timeout=_LONGEST
        )
    if store is not None:  # torchrun may restart all processes, and its store stays
        restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = PrefixStore(f"atmc/{restart}", store)
    _membership = member = _Membership(store)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_signals(member))
        stack.enter_context(warnings.catch_warnings())
        if not is_first():
            warnings.simplefilter("ignore", AtmcWarning)
        try:
            yield
        except BaseException as error:
            if not isinstance(error, SystemExit):
                leave(error)
            raise
        finally:
            _membership = None
            if store is not None and dist.is_initialized():
                dist.destroy_process_group()


@contextlib.contextmanager
def _signals(member: _Membership) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {s: signal.signal(s, member.handle) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, signal.SIG_IGN if member.ends else handler)


def leave(error: BaseException) -> bool:
    """End this process by an error, of which the others learn.

    Returns:
        Whether the error is to be shown, which one process does: the first, unless another one has
        met it long before.
    """
    member = _membership
    if member is None or member.ends or member.store is None:
        return is_first()
    member.ends = True
    store = member.store
    try:
        if is_first():
            store.set(_ENDS, "1")
        else:
            if not isinstance(error, ProcessError):
                store.set(_FAILED, _pickled(error).hex())
            _within(_GRACE, lambda: store.check([_ENDS]))
        return bool(store.add(_SHOWN, 1) == 1)
    except RuntimeError:  # the store has gone with the first process
        return is_first()


def _within(seconds: float, condition: Callable[[], bool]) -> bool:
    """Whether a condition comes true in time."""
    until = time.monotonic() + seconds
    while not (true := condition()) and time.monotonic() < until:
        time.sleep(0.05)
    return true


def _pickled(error: BaseException) -> bytes:
    """An exception for another process; of one that cannot be pickled the text."""
    try:
        data = pickle.dumps(error)
        pickle.loads(data)
        return data
    except Exception:  # the class may be anything
        return pickle.dumps(RuntimeError(one_line(error)))


@contextlib.contextmanager
def collective() -> Iterator[None]:
    """Inside, processes wait for one another; the end of one is an error of all.

    Raises:
        ProcessError: another process has ended; or the error by which it has.
        KeyboardInterrupt: it has ended by Ctrl-C.
    """
    try:
        yield
    except RuntimeError as error:
        if size() == 1 or not any(word in str(error) for word in _TRANSPORTS):
            raise
        global _broken
        _broken = True
        raise _cause() from error


def broken() -> bool:
    """Whether another process has ended, so that this one is about to."""
    return _broken


def _cause() -> BaseException:
    """Why another process has ended."""
    member = _membership
    if member is not None and member.store is not None:
        store = member.store
        with contextlib.suppress(RuntimeError):  # the store has gone with the first process
            interrupted = member.signal == signal.SIGINT
            if _within(0.0 if interrupted else _GRACE / 6, lambda: store.check([_FAILED])):
                return cast(BaseException, pickle.loads(bytes.fromhex(store.get(_FAILED).decode())))
        if member.signal == signal.SIGINT:
            return KeyboardInterrupt()
    return ProcessError(
        f"another process of the run has ended: go on with {argument('resume', True)}"
    )


@contextlib.contextmanager
def unstopped() -> Iterator[Callable[[], bool]]:
    """Inside, signals wait; whether one has come to any process, which all must ask together."""
    member = _membership
    if member is None:  # of a group of the user's
        yield lambda: any_of(False)
        return
    member.waits += 1
    try:
        yield lambda: any_of(member.signal is not None)
    finally:
        member.waits -= 1


def from_first(function: Callable[[], T]) -> T:
    """What a function returns, or raises, in the first process, where alone it is called."""
    if size() == 1:
        return function()
    box: list[Any] = [None, None]
    error: BaseException | None = None
    if is_first():
        try:
            box[0] = function()
        except BaseException as raised:
            error = raised
            box[1] = _pickled(raised)
    with collective():
        dist.broadcast_object_list(box)
    if error is None and box[1] is not None:
        error = pickle.loads(box[1])
    if error is not None:
        raise error
    return cast(T, box[0])


def first_before_others(function: Callable[[], T]) -> T:
    """What a function returns, called in the first process, then in all others (for downloads)."""
    result: list[T] = []
    from_first(lambda: result.append(function()))
    return result[0] if result else function()


def share(batch: Tensor) -> Tensor:
    """This process's part of a batch: one of :func:`size` that are as equal as may be."""
    return batch if size() == 1 else torch.tensor_split(batch, size())[rank()]


def total(values: Sequence[float]) -> list[float]:
    """The sum of each value over all processes."""
    if size() == 1:
        return list(values)
    sums = torch.tensor(values, dtype=torch.float64)
    with collective():
        dist.all_reduce(sums)
    return sums.tolist()


def any_of(flag: bool) -> bool:
    """Whether a flag is set in any process."""
    return total([float(flag)])[0] > 0


def gathered(part: Tensor) -> Tensor:
    """The parts of all processes, which may differ in length, one after the other."""
    if size() == 1:
        return part
    with collective():
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(size())]
        dist.all_gather(lengths, torch.tensor([len(part)]))
        longest = max(map(int, lengths))
        padded = torch.cat([part, part.new_zeros(longest - len(part), *part.shape[1:])])
        parts = [torch.empty_like(padded) for _ in lengths]
        dist.all_gather(parts, padded)
    return torch.cat([each[: int(n)] for each, n in zip(parts, lengths, strict=True)])


@torch.no_grad()
def broadcast(tensors: Iterable[Tensor]) -> None:
    """Give all processes the tensors of the first, in place; one message for each type."""
    if size() == 1:
        return
    kinds: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for tensor in tensors:
        kinds.setdefault((tensor.dtype, tensor.device), []).append(tensor.detach())
    with collective():
        for group in kinds.values():
            flat = torch.cat([tensor.reshape(-1) for tensor in group])
            dist.broadcast(flat, 0)
            if not is_first():
                parts = torch.split(flat, [tensor.numel() for tensor in group])
                for tensor, part in zip(group, parts, strict=True):
                    tensor.copy_(part.view(tensor.shape))


class _Pass(nn.Module):
    """A training pass as a module of parameters alone: buffers are the caller's."""

    def __init__(self, model: nn.Module, function: Callable[..., Any]) -> None:
        super().__init__()
        parameters = [p for p in model.parameters() if p.requires_grad]
        # One that is never used: DDP warns where it has looked for such and finds none.
        unused = nn.Parameter(parameters[0].detach().new_zeros(1))
        self.moved = nn.ParameterList([*parameters, unused])
        self.function = function

    def forward(self, *arguments: Any) -> Any:
        return self.function(*arguments)


def averaging(model: nn.Module, function: Callable[..., T]) -> Callable[..., T]:
    """A training pass after whose backward pass gradients are the mean over all processes.

    W = U V + C may be formed outside of the pass: DDP waits at the parameters themselves. Make it
    anew when the model has other parameters, or others of them require gradients.

    Args:
        model: holds the parameters.
        function: runs the model and returns tensors, the loss among them.
    """
    if size() == 1:
        return function
    # A batch need not use all parameters. And buckets stay as they are then: otherwise the order of
    # sums would depend on where a run was resumed.
    return nn.parallel.DistributedDataParallel(_Pass(model, function), find_unused_parameters=True)


def differing(state: object) -> list[int]:
    """The processes whose state is not that of the first, by a checksum over all its tensors."""
    if size() == 1:
        return []
    sums = gathered(torch.tensor([_checksum(state)])).tolist()
    return [number for number, each in enumerate(sums) if each != sums[0]]


def _checksum(state: object, start: int = 0) -> int:
    """CRC-32 of tensors and numbers in nested dicts and sequences."""
    if isinstance(state, Tensor):
        flat = state.detach().cpu().contiguous().flatten()
        return zlib.crc32(flat.view(torch.uint8).numpy().data, start)
    if isinstance(state, Mapping):
        state = [part for item in state.items() for part in item]
    if isinstance(state, (list, tuple)):
        for part in state:
            start = _checksum(part, start)
        return start
    return zlib.crc32(repr(state).encode(), start)
