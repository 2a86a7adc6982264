"""JSON as it lies in a column: large values compressed, small ones as they are.

Pure. A value tells by its first byte which it is: zlib's streams begin with `x` (RFC 1950 §2.2, 32 KiB window), and no
JSON does. Knows no table.
"""

from __future__ import annotations

import zlib
from typing import Any

import orjson

#: zlib's fastest: JSON text shrinks to about a quarter already.
COMPRESSION_LEVEL = 1

#: Below this, what zlib spends on its own set-up (0.1 ms) is more than a write saves.
MIN_COMPRESSED_BYTES = 4096

ZLIB_FIRST_BYTE = b"x"


def pack(value: Any) -> bytes:
    """Raises TypeError for what JSON cannot say."""
    plain = orjson.dumps(value)
    return zlib.compress(plain, COMPRESSION_LEVEL) if len(plain) >= MIN_COMPRESSED_BYTES else plain


def unpack(stored: bytes) -> Any:
    return orjson.loads(zlib.decompress(stored) if stored.startswith(ZLIB_FIRST_BYTE) else stored)
