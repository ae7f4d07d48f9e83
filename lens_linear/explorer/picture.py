"""The model map as a small PNG, for places that run no scripts; no drawing library is needed."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

import numpy as np

# The page's own stops, as in frontend/src/colours.ts.
_VIRIDIS = "440154 482878 3e4989 31688e 26828e 1f9e89 35b779 6ece58 b5de2b fde725".split()
CELL = 28  # pixels a head, less where there are many
_FONT = {  # three columns of five rows, rows from the top
    "0": ("111", "101", "101", "101", "111"),
    "1": ("010", "110", "010", "010", "111"),
    "2": ("111", "001", "111", "100", "111"),
    "3": ("111", "001", "111", "001", "111"),
    "4": ("101", "101", "111", "001", "001"),
    "5": ("111", "100", "111", "001", "111"),
    "6": ("111", "100", "111", "101", "111"),
    "7": ("111", "001", "010", "010", "010"),
    "8": ("111", "101", "111", "101", "111"),
    "9": ("111", "101", "111", "001", "111"),
    ".": ("000", "000", "000", "000", "010"),
    "L": ("100", "100", "100", "100", "111"),
    "H": ("101", "101", "111", "101", "101"),
}


def map_picture(values: Sequence[Sequence[float]]) -> bytes:
    """A PNG of [layer][head] values from 0 to 1: viridis, layers down, heads across, numbers where they fit.

    Returns:
        The file's bytes.
    """
    grid = np.nan_to_num(np.atleast_2d(np.asarray(values, dtype=float))).clip(0, 1)
    rows, columns = grid.shape
    cell = max(10, min(CELL, 1200 // max(1, columns)))
    left, top = 26, 16
    picture = np.full((top + rows * cell + 4, left + columns * cell + 4, 3), 255, dtype=np.uint8)
    for column in range(columns):
        if cell >= 20 or column % 5 == 0:
            _write(picture, f"H{column}", top - 8, left + column * cell + 3, 0)
    for row in range(rows):
        if cell >= 20 or row % 5 == 0:
            _write(picture, f"L{row}", top + row * cell + cell // 2 - 3, 4, 0)
        for column in range(columns):
            y, x = top + row * cell, left + column * cell
            value = float(grid[row, column])
            picture[y : y + cell - 1, x : x + cell - 1] = _viridis(value)
            if cell >= 20:
                ink = 0 if value > 0.6 else 255
                _write(picture, f"{value:.2f}"[:4], y + cell // 2 - 3, x + 5, ink)
    sides = 2 if picture.shape[1] <= 600 else 1  # a map of few heads would be a stamp
    return _png(picture.repeat(sides, axis=0).repeat(sides, axis=1))


def _viridis(value: float) -> np.ndarray:
    place = value * (len(_VIRIDIS) - 1)
    return np.array(
        [round(np.interp(place, range(len(_VIRIDIS)), [int(c[i : i + 2], 16) for c in _VIRIDIS]))
         for i in (0, 2, 4)]
    )  # fmt: skip


def _write(picture: np.ndarray, text: str, y: int, x: int, ink: int) -> None:
    for character in text:
        for dy, line in enumerate(_FONT[character]):
            for dx, dot in enumerate(line):
                if dot == "1" and x + dx < picture.shape[1]:
                    picture[y + dy, x + dx] = ink
        x += 4


def _png(picture: np.ndarray) -> bytes:
    height, width, _ = picture.shape
    lines = np.concatenate([np.zeros((height, 1), np.uint8), picture.reshape(height, -1)], axis=1)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(lines.tobytes(), 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
    )
