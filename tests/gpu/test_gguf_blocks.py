"""Blocks of GGUF are decoded on a GPU to the values of a CPU."""

from __future__ import annotations

import pytest
import torch

from longtake.pipelines.checkpoints.formats.gguf_decoding import decode_rows
from longtake.pipelines.checkpoints.formats.gguf_types import BLOCK_TYPES
from tests import checkpoint_files

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize("kind", BLOCK_TYPES)
def test_every_type_to_the_bit(kind: str) -> None:
    blocks = torch.from_numpy(checkpoint_files.random_blocks(64, 512, kind))
    found = decode_rows(blocks.cuda(), kind).cpu()
    torch.testing.assert_close(found, decode_rows(blocks, kind), rtol=0, atol=0)
