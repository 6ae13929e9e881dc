"""The steps of an attack on memory that stays where it is, captured as one CUDA graph.

On a GPU an attack on small maps waits for the host, which launches each kernel of each step anew. A
CUDA graph is launched as a whole, but it reads and writes the memory that it was captured on: so
inputs are copied to where they lay, and so are the weights that are formed for each attack.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from atmc.messages import argument, warn

Steps = Callable[..., Tensor]

_MOVES = 20  # of a model's tensors, after which capturing anew does not pay
_WARM_UP = 3  # passes before a capture, as torch asks for

# Where the formed weights of each module lie.
_weights: MutableMapping[nn.Module, dict[str, Tensor]] = WeakIdKeyDictionary()


@dataclass
class _State:
    """What is known of a model: its captured attacks, the memory they read, what was run last."""

    memory: list[Hashable] | None = None
    moves: int = 0
    last: Hashable = None
    largest: int = 0  # batch so far
    captured: dict[Hashable, _Captured] = field(default_factory=dict)
    failed: bool = False


_states: MutableMapping[nn.Module, _State] = WeakIdKeyDictionary()


def run_compiled(
    model: nn.Module, compiled: Steps, eager: Steps, inputs: Sequence[Tensor], settings: Hashable
) -> Tensor:
    """The steps of an attack by their compiled form, on a GPU as one CUDA graph.

    A batch smaller than the largest before it is captured only if its shape comes twice in a row:
    the last of an epoch, and the few examples that a check takes, run eagerly. Where anything
    fails, there is one warning, and the model's attacks run eagerly.

    Args:
        model: frozen, in plain weights.
        compiled: the steps; they draw no random numbers.
        eager: the same.
        inputs: their arguments; only the values may differ between calls of equal settings.
        settings: all that the steps depend on besides.
    """
    state = _states.setdefault(model, _State())
    if state.failed:
        return eager(*inputs)
    try:
        if not _captures(inputs[0]):
            return compiled(*inputs)
        shapes = tuple((each.shape, each.dtype, each.device) for each in inputs)
        with _fixed_weights(model):
            return _run_captured(model, state, compiled, eager, inputs, (settings, shapes))
    except Exception as error:
        state.captured.clear()
        result = eager(*inputs)  # raises what is an error of the model
        state.failed = True
        warn(
            f"the attack cannot be compiled for this model ({type(error).__name__}), and runs as "
            f"it is: leave out {argument('compiled', True)}"
        )
        return result


def _captures(x: Tensor) -> bool:
    return x.device.type == "cuda"


def _run_captured(
    model: nn.Module,
    state: _State,
    compiled: Steps,
    eager: Steps,
    inputs: Sequence[Tensor],
    settings: Hashable,
) -> Tensor:
    memory = _memory(model)
    if memory != state.memory:
        state.memory, state.last = memory, None
        state.captured.clear()
        state.moves += 1
        if state.moves > _MOVES:
            raise RuntimeError("the model's tensors move in memory from one attack to the next")
    again, state.last = settings == state.last, settings
    batch = len(inputs[0])
    if settings not in state.captured:
        if batch < state.largest and not again:
            return eager(*inputs)
        state.largest = max(state.largest, batch)
        state.captured[settings] = _Captured(compiled, inputs)
    return state.captured[settings](compiled, inputs)


class _Captured:
    """Steps with the memory of their inputs; on a GPU, their graph.

    Args:
        steps: of an attack.
        inputs: of the first run, whose shapes and strides stay.
    """

    def __init__(self, steps: Steps, inputs: Sequence[Tensor]) -> None:
        self.inputs = [value.clone() for value in inputs]
        self.graph: torch.cuda.CUDAGraph | None = None
        if self.inputs[0].device.type == "cuda":
            with torch.cuda.device(self.inputs[0].device):
                self._capture(steps)

    def _capture(self, steps: Steps) -> None:
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP):
                steps(*self.inputs)
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.output = steps(*self.inputs)

    def __call__(self, steps: Steps, inputs: Sequence[Tensor]) -> Tensor:
        """Run the steps, or the graph of them, on other values."""
        for memory, value in zip(self.inputs, inputs, strict=True):
            memory.copy_(value)
        if self.graph is None:
            return steps(*self.inputs)
        self.graph.replay()
        return self.output.clone()


def _formed(module: nn.Module) -> dict[str, Tensor]:
    """The tensors that stand before a module's parameters while its weights are plain."""
    names = {*module._parameters, *getattr(module, "parametrizations", ())}
    values = {name: module.__dict__.get(name) for name in names}
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}


@contextlib.contextmanager
def _fixed_weights(model: nn.Module) -> Iterator[None]:
    """Inside, the weights formed for an attack lie where those of the last attack lay."""
    formed = {module: tensors for module in model.modules() if (tensors := _formed(module))}
    here: list[Tensor] = []
    there: list[Tensor] = []
    try:
        for module, tensors in formed.items():
            fixed = _weights.setdefault(module, {})
            for name, tensor in tensors.items():
                if name not in fixed or _kind(fixed[name]) != _kind(tensor):
                    fixed[name] = torch.empty_like(tensor, requires_grad=False)
                here.append(tensor)
                there.append(fixed[name])
                module.__dict__[name] = fixed[name]
        if here:
            with torch.no_grad():
                torch._foreach_copy_(there, here)
        yield
    finally:
        for module, tensors in formed.items():
            module.__dict__.update(tensors)


def _kind(tensor: Tensor) -> Hashable:
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device


def _memory(model: nn.Module) -> list[Hashable]:
    """Where the tensors lie that a pass may read, and of what kind they are."""
    formed = (tensor for module in model.modules() for tensor in _formed(module).values())
    tensors = (*model.parameters(), *model.buffers(), *formed)
    return [(type(module), id(module)) for module in model.modules()] + [
        (tensor.data_ptr(), _kind(tensor)) for tensor in tensors
    ]
