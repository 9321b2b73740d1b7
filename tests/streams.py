"""A stand-in for CUDA's streams and events, which finds accesses that nothing orders.

Operations run at once, on the CPU. Each stream and each thread of the host is a line with a vector
clock. Launching an operation hands the host's clock to the stream; events and futures hand clocks
on. Two accesses to the same memory, one of which writes, must be ordered by their clocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Clock = dict[str, int]


def _later(one: Mapping[str, int], other: Mapping[str, int]) -> Clock:
    return {name: max(one.get(name, 0), other.get(name, 0)) for name in {*one, *other}}


@dataclass(eq=False)
class Line:
    """A stream, or a thread of the host: what happens there is in order."""

    name: str
    clock: Clock = field(default_factory=dict)

    def tick(self) -> None:
        """Advance to the next operation."""
        self.clock[self.name] = self.clock.get(self.name, 0) + 1

    def follow(self, clock: Mapping[str, int]) -> None:
        """Let what comes next come after a time of other lines."""
        self.clock = _later(self.clock, clock)


@dataclass
class _Access:
    line: str
    at: Clock
    begin: int
    end: int
    writes: bool

    def conflicts(self, earlier: _Access) -> bool:
        """Whether nothing orders this access after an earlier one, though something must."""
        overlaps = earlier.begin < self.end and self.begin < earlier.end
        ordered = self.at.get(earlier.line, 0) >= earlier.at[earlier.line]
        return overlaps and (self.writes or earlier.writes) and not ordered


class Streams(TorchDispatchMode):
    """Within the context, operations run on the current stream, and their accesses are recorded.

    Attributes:
        races: Pairs of accesses that nothing orders.
    """

    def __init__(self) -> None:
        super().__init__()
        self.races: list[tuple[_Access, _Access]] = []
        self._accesses: list[_Access] = []
        self._host = Line("host")
        self._stream = Line("compute")

    def patch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let torch.cuda hand out the stand-ins."""
        streams = self

        class Stream(Line):
            def __init__(self, device: object = None) -> None:
                super().__init__(f"stream {id(self)}")

            def synchronize(self) -> None:
                streams._host.follow(self.clock)

        class Event:
            def __init__(self) -> None:
                self._clock: Clock = {}

            def record(self, stream: Line) -> None:
                self._clock = dict(_later(stream.clock, streams._host.clock))

            def wait(self, stream: Line) -> None:
                stream.follow(self._clock)

            def synchronize(self) -> None:
                streams._host.follow(self._clock)

        for name, stand_in in {
            "Stream": Stream,
            "Event": Event,
            "stream": self._on_stream,
            "current_stream": lambda device=None: self._stream,
            "device": lambda device: nullcontext(),
        }.items():
            monkeypatch.setattr(torch.cuda, name, stand_in)

    def executor(self, *arguments: object, **options: object) -> Executor:
        """A stand-in for a ThreadPoolExecutor of one thread."""
        return Executor(self)

    def written_by_host(self, tensor: torch.Tensor) -> None:
        """Record that the host writes a tensor itself."""
        self._host.tick()
        self._record(self._host, tensor, writes=True)

    @contextmanager
    def host_line(self, line: Line) -> Iterator[None]:
        """Let the host's operations happen on another thread of it."""
        before, self._host = self._host, line
        try:
            yield
        finally:
            self._host = before

    @property
    def host(self) -> Line:
        """The thread of the host that runs."""
        return self._host

    @contextmanager
    def _on_stream(self, stream: Line) -> Iterator[None]:
        before, self._stream = self._stream, stream
        try:
            yield
        finally:
            self._stream = before

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._stream.follow(self._host.clock)
        self._stream.tick()
        written = [
            value
            for value, argument in zip(args, func._schema.arguments, strict=False)
            if argument.alias_info is not None and argument.alias_info.is_write
        ]
        if not func.is_view:
            for tensor in tree_leaves((args, kwargs or {})):
                if isinstance(tensor, torch.Tensor):
                    writes = any(tensor is each for each in written)
                    self._record(self._stream, tensor, writes=writes)
        return func(*args, **(kwargs or {}))

    def _record(self, line: Line, tensor: torch.Tensor, *, writes: bool) -> None:
        begin = tensor.data_ptr()
        access = _Access(line.name, dict(line.clock), begin, begin + tensor.nbytes, writes)
        self.races += [(each, access) for each in self._accesses if access.conflicts(each)]
        self._accesses.append(access)


class Executor:
    """Runs functions at once, on a line of its own."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams
        self._line = Line("reader")

    def submit(self, function: Callable[..., None], *arguments: Any) -> Future:
        """Run a function after what the caller has done so far."""
        self._line.follow(self._streams.host.clock)
        with self._streams.host_line(self._line):
            function(*arguments)
        return Future(self._streams, dict(self._line.clock))

    def shutdown(self) -> None:
        """Nothing runs any more."""


@dataclass
class Future:
    """The end of a function."""

    streams: Streams
    clock: Clock

    def result(self) -> None:
        """Let the host wait for it."""
        self.streams.host.follow(self.clock)

    exception = result
