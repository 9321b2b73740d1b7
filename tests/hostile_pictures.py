"""Pictures that are made to exhaust a decoder."""

from __future__ import annotations

import io

from PIL import Image

_SCAN, _END = b"\xff\xda", b"\xff\xd9"


def many_scans(count: int = 20_000, side: int = 1000) -> bytes:
    """A progressive JPEG that repeats its last scan: it takes minutes to decode."""
    content = io.BytesIO()
    Image.new("RGB", (side, side), (200, 30, 40)).save(content, "JPEG", progressive=True)
    whole = content.getvalue().removesuffix(_END)
    return whole + whole[whole.rindex(_SCAN) :] * count + _END
