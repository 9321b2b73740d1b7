"""Brings an encoder's weights from the files to where the plan says that they live."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from longtake.configs.fields.weights import WeightPlace
from longtake.parallel import World
from longtake.pipelines.loading.tensor_source import TensorSource, read_into
from longtake.pipelines.streaming.layout import BlockLayout
from longtake.pipelines.streaming.stores import BlockStore, FileStore, HostStore
from longtake.pipelines.streaming.streamer import BlockStreamer
from longtake.pipelines.text_encoders.encoder import Encoder, ResidentEncoder, StreamedEncoder
from longtake.pipelines.text_encoders.file_tensors import source_name
from longtake.pipelines.text_encoders.layers import layers_of, token_embeddings
from longtake.pipelines.text_encoders.token_table import TokenTable


def place_encoder(
    encoder: Any, source: TensorSource, place: WeightPlace, device: torch.device
) -> Encoder:
    """Load the weights of an encoder, each to its place.

    Args:
        encoder: An encoder of transformers, with stand-ins for the tensors of the files.
        source: The files.
        place: ``resident``: all weights are held in host memory. ``streamed``: the same, and the
            layers are brought to the device one by one. ``disk``: the layers and the rows of the
            token embedding are read from the files whenever they are needed.
        device: Device that encodes.

    Raises:
        ModelError: A tensor cannot be read, or the host has too little memory.
    """
    layers = list(layers_of(encoder))
    if place == "resident" or not layers:
        _read(encoder, source)
        return ResidentEncoder(encoder, device)
    _put_table_on_host(encoder, source, in_memory=place == "streamed")
    files = _files_of(layers, source)
    store: BlockStore = files
    if place == "streamed":
        store = HostStore(files, World(device), "--text-weights")  # on this rank alone
    streamer = BlockStreamer(device)
    streamer.add(layers, store)
    _read(encoder, source)
    return StreamedEncoder(encoder, layers, streamer, device)


def _put_table_on_host(encoder: Any, source: TensorSource, *, in_memory: bool) -> None:
    """Replace the token embedding by a :class:`TokenTable`."""
    places = list(token_embeddings(encoder))
    if not places:
        return
    parent, name = places[0]
    weight = getattr(parent, name).weight
    read_as = source_name(name, weight, source)
    table = TokenTable(source, read_as, weight.dtype, in_memory=in_memory)
    for parent, name in places:
        setattr(parent, name, table.eval())


def _files_of(layers: Sequence[nn.Module], source: TensorSource) -> FileStore:
    """The layers in their files."""
    layouts, names = [], []
    for layer in layers:
        state = layer.state_dict()
        layouts.append(BlockLayout(state))
        names.append({name: source_name(name, each, source) for name, each in state.items()})
    return FileStore(layouts, source, names)


def _read(encoder: nn.Module, source: TensorSource) -> None:
    """Replace the stand-ins that are left by what they stand for, in host memory.

    Parameters that are tied stay so.
    """
    loaded: dict[str, torch.Tensor] = {}
    read: dict[int, torch.Tensor] = {}
    for name, stand_in in encoder.state_dict(keep_vars=True).items():
        if not stand_in.is_meta:
            continue
        if id(stand_in) not in read:
            values = torch.empty(stand_in.shape, dtype=stand_in.dtype)
            read_into(values, source, source_name(name, stand_in, source))
            is_parameter = isinstance(stand_in, nn.Parameter)
            read[id(stand_in)] = nn.Parameter(values, False) if is_parameter else values
        loaded[name] = read[id(stand_in)]
    encoder.load_state_dict(loaded, strict=False, assign=True)
