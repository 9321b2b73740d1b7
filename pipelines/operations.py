"""Observes torch's operations, on tensors that need not have values.

The only module of ``pipelines`` that uses private names of torch;
tests/unit/pipelines/test_library_internals.py fails when they move.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@dataclass(frozen=True)
class Operation:
    """One operation, after it ran.

    Attributes:
        function: The overload, such as ``torch.ops.aten.mm.default``.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        result: Its result.
    """

    function: Any
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    result: Any

    @property
    def packet(self) -> Any:
        """The operation without its overload, such as ``torch.ops.aten.mm``."""
        return self.function.overloadpacket

    @property
    def name(self) -> str:
        """Namespace and name without the overload, such as ``aten::mm``."""
        name: str = self.function.name()
        return name.partition(".")[0]

    @property
    def is_view(self) -> bool:
        """Whether the result shares its argument's memory, and nothing is computed."""
        is_view: bool = self.function.is_view
        return is_view

    @property
    def inputs(self) -> list[torch.Tensor]:
        """The tensors among the arguments."""
        return _tensors((self.args, self.kwargs))

    @property
    def outputs(self) -> list[torch.Tensor]:
        """The tensors of the result."""
        return _tensors(self.result)


class Observer(Protocol):
    """What is told of each operation."""

    def observe(self, operation: Operation) -> None:
        """Take note of an operation."""


class LiveBytes:
    """Bytes of the tensors that were created while observed and are still alive.

    Attributes:
        live: Bytes alive now.
        peak: Largest number of bytes alive so far.
    """

    def __init__(self) -> None:
        self.live = self.peak = 0
        self._storages: set[int] = set()

    def observe(self, operation: Operation) -> None:
        """Count the memory that an operation allocates; a view allocates none."""
        if not operation.is_view:
            for tensor in operation.outputs:
                self._count(tensor.untyped_storage())

    def restart_peak(self) -> None:
        """Forget earlier peaks; tensors that are alive still count."""
        self.peak = self.live

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._storages:
            self._storages.add(key)
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._freed, key, size)

    def _freed(self, key: int, size: int) -> None:
        self._storages.discard(key)
        self.live -= size


@contextmanager
def observing(*observers: Observer) -> Iterator[None]:
    """Tell observers of each operation that runs in the context, without gradients."""
    with torch.no_grad(), _Observing(observers):
        yield


def without_values() -> AbstractContextManager[Any]:
    """A context in which new tensors have a device and a shape but no values, and operations
    compute nothing."""
    return FakeTensorMode(allow_non_fake_inputs=True)


class _Observing(TorchDispatchMode):
    def __init__(self, observers: Sequence[Observer]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._observers = observers

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run an operation, then tell the observers."""
        result = func(*args, **(kwargs or {}))
        operation = Operation(func, args, kwargs or {}, result)
        for observer in self._observers:
            observer.observe(operation)
        return result


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [each for each in tree_leaves(tree) if isinstance(each, torch.Tensor)]
