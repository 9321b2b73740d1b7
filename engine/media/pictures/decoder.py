"""The child process that decodes one picture; see :mod:`longtake.engine.media.pictures.process`."""

from __future__ import annotations

import json
import sys
from typing import Any

from longtake.engine.media.pictures.limited_process import limit_this_process
from longtake.engine.media.pictures.picture import decode_picture
from longtake.engine.media.pictures.process import MAX_PIXELS
from longtake.errors import RequestError


def main() -> None:
    """Decode stdin; write the pixels to a file descriptor, and a reply in JSON to stdout."""
    parent, result, cpu_s, memory_bytes = sys.argv[1:]
    content = sys.stdin.buffer.read()
    limit_this_process(int(parent), float(cpu_s), int(memory_bytes), 3 * MAX_PIXELS)
    reply: dict[str, Any]
    try:
        pixels = decode_picture(content, label="")
        with open(int(result), "wb") as file:
            file.write(pixels.data)
        reply = {"shape": pixels.shape}
    except RequestError as error:
        reply = {"refused": str(error).strip()}
    except MemoryError:
        mib = int(memory_bytes) // 2**20
        reply = {"refused": f"takes more than {mib} MiB of memory to decode: make it smaller"}
    print(json.dumps(reply))


if __name__ == "__main__":
    main()
