"""Predicts how fast streamed weights arrive at a device: from host memory, or from files."""

from __future__ import annotations

from dataclasses import dataclass

from longtake.configs.fields.weights import StorageDtype, TextPlace
from longtake.engine.planning.plan_input import PlanInput
from longtake.engine.planning.weights.host_memory import HostMemory
from longtake.engine.planning.weights.places import Placement
from longtake.engine.planning.weights.sizes import FILE_BYTES
from longtake.parallel import ParallelDims

_READER_BYTES_PER_S = 7e9
"""Rate at which one thread brings cached files into a slot. Assumption: three quarters of the 9.5
GB/s, of files in float32 converted to bfloat16, that a core of an AMD EPYC reached."""

_ENCODED_PER_S: dict[StorageDtype, float] = {"float8": 0.87e9, "int8": 1.3e9, "nf4": 0.14e9}
"""Weights that a core encodes in fewer bits, which those read from files are each time. Measured on
a loaded core by benchmarks.storage."""

_DECODED_PER_S = 0.44e9
"""Weights that a core decodes from blocks of GGUF: measured with Q4_K, of the usual types the
slowest."""

_SWITCH = "pcie-switch"
"""Name of the level whose devices share one port to the host."""


@dataclass(frozen=True)
class Streaming:
    """The ways of streamed weights in one plan.

    Attributes:
        plan_input: The model, the request and the hardware.
        dims: The layout.
        placement: Where the weights live.
        host: Memory of the host in this plan.
    """

    plan_input: PlanInput
    dims: ParallelDims
    placement: Placement
    host: HostMemory

    def seconds(self, num_bytes: float) -> float:
        """Seconds until a block of this size is on the device, while every rank of the host
        receives one."""
        if self.placement.weights != "disk":
            return num_bytes / self._device_rate(self._ranks)
        plan_input, storage = self.plan_input, self.plan_input.storage_dtype
        parameters = plan_input.costs.transformer_parameters
        values = parameters * num_bytes / plan_input.transformer_bytes()
        files = plan_input.file_element_size * parameters
        read_s = files * values / parameters / self._file_rate(files, self._ranks)
        if plan_input.spec.gguf_value_bytes and storage != "gguf":
            read_s += values / _DECODED_PER_S
        if storage is not None and storage != "gguf":
            read_s += values / _ENCODED_PER_S[storage]
        return max(num_bytes / self._device_rate(self._ranks), read_s)

    def text_seconds(self, num_bytes: float, place: TextPlace) -> float:
        """Seconds until text encoders of this size were on rank 0's device, layer by layer."""
        seconds = num_bytes / self._device_rate(1)
        if place == "disk":
            files = num_bytes * FILE_BYTES / self.plan_input.element_size
            seconds = max(seconds, files / self._file_rate(files, 1))
        return seconds

    @property
    def _ranks(self) -> int:
        """Ranks of one host."""
        return min(self.dims.world_size, self.plan_input.hardware.devices_per_node)

    def _device_rate(self, ranks: int) -> float:
        """Bytes per second from host memory to each of the devices at the same time.

        On a CPU, a copy in memory. Devices below a PCIe switch share its port to the host.
        """
        hardware = self.plan_input.hardware
        if hardware.host_bytes_per_s is None:
            return hardware.memory_bytes_per_s.value * hardware.memory_share.value
        on_a_switch = next((each.spans for each in hardware.links if each.name == _SWITCH), None)
        rate = hardware.host_bytes_per_s.value / min(ranks, on_a_switch or 1)
        if hardware.host_memory_bytes_per_s is not None:
            rate = min(rate, hardware.host_memory_bytes_per_s.value / ranks)
        return rate

    def _file_rate(self, files: float, ranks: int) -> float:
        """Bytes per second of reading files again and again.

        They stay in the page cache if the host has room for all of them. Else each comes from
        storage, once for all ranks, which read at the same time.

        Args:
            files: Bytes of the files.
            ranks: Ranks that read them.
        """
        hardware = self.plan_input.hardware
        if files > self.host.spare_bytes(hardware):
            return min(hardware.storage_bytes_per_s.value, _READER_BYTES_PER_S)
        memory = hardware.host_memory_bytes_per_s
        # a copy reads and writes, and the device then reads once more
        return (
            _READER_BYTES_PER_S
            if memory is None
            else min(_READER_BYTES_PER_S, memory.value / (3 * ranks))
        )
