"""The pickles that CIFAR batches are: read without running what a file names, written as Python 2 did.

The reader never calls numpy on what the file says: arrays become stand-ins that are checked first. The writer
emits the opcodes itself (protocol 2, byte strings), so that the files load with `encoding="bytes"` and with
`encoding="latin1"`, under any numpy, and equal content gives equal bytes.
"""

from __future__ import annotations

import math
import pickle
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from miscue.errors import InputError

INTEGERS = {"u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8"}


class _Dtype:
    """Stand-in for numpy.dtype."""

    def __init__(self, name: Any = None, *_: Any) -> None:
        self.name = _text(name)
        self.order = "<"

    def __setstate__(self, state: Any) -> None:
        self.order = ">" if _text(state[1]) == ">" else "<"


class _Array:
    """Stand-in for numpy.ndarray."""

    def __init__(self, *_: Any) -> None:
        self.parts: tuple[Any, ...] = ()

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, raw = state
        self.parts = (shape, dtype, "F" if fortran else "C", raw)

    def value(self) -> NDArray[Any]:
        """The array, if it is one of whole numbers whose size agrees."""
        shape, dtype, order, raw = self.parts
        if dtype.name not in INTEGERS:
            raise ValueError(f"an array of type {dtype.name}")
        if len(raw) != math.prod(shape) * int(dtype.name[1]):
            raise ValueError(f"an array of shape {shape} from {len(raw)} bytes")
        return np.frombuffer(bytearray(raw), dtype=dtype.order + dtype.name).reshape(shape, order=order)


def _rebuilt(*_: Any) -> _Array:
    """Stand-in for numpy's _reconstruct."""
    return _Array()


def _from_buffer(raw: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    """Stand-in for numpy's _frombuffer (protocol 5)."""
    array = _Array()
    array.parts = (shape, dtype, order, raw)
    return array


def _encoded(text: str, *_: Any) -> bytes:
    """Stand-in for _codecs.encode: how Python 3 writes bytes under protocol 2."""
    return text.encode("latin1")


ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("numpy.core.multiarray", "_reconstruct"): _rebuilt,
    ("numpy._core.multiarray", "_reconstruct"): _rebuilt,
    ("numpy.core.numeric", "_frombuffer"): _from_buffer,
    ("numpy._core.numeric", "_frombuffer"): _from_buffer,
    ("_codecs", "encode"): _encoded,
}


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ADMITTED:
            raise InputError(f"it asks for {module}.{name}, which no list of images needs")
        return ADMITTED[module, name]


def load(path: Path) -> dict[str, Any]:
    """The dict in a pickle of containers, strings, numbers and integer arrays; byte strings become str.

    Raises:
        InputError: the pickle is damaged, is no dict, or names anything else (which is then not run).
    """
    try:
        with path.open("rb") as file:
            content = _Reader(file, encoding="bytes").load()
        if not isinstance(content, dict):
            raise InputError(f"it holds a {type(content).__name__} instead of a dict")
        return {_text(key): _plain(value) for key, value in content.items()}
    except FileNotFoundError:
        raise InputError(f"{path} is missing") from None
    except InputError as error:
        raise InputError(f"{path} is refused: {error}") from None
    except Exception as error:  # a damaged pickle may raise anything
        raise InputError(f"{path} is cut short or damaged: {error}") from None


def dumps(content: Mapping[str, Any]) -> bytes:
    """A protocol-2 pickle of a dict of str to str, int, lists of these, or uint8 arrays."""
    return b"\x80\x02" + _dumped(content) + b"."


def _text(value: Any) -> str:
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value)


def _plain(value: Any) -> Any:
    if isinstance(value, _Array):
        return value.value()
    if isinstance(value, bytes):
        return _text(value)
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _dumped(value: Any) -> bytes:
    if isinstance(value, Mapping):
        items = b"".join(_dumped(key) + _dumped(item) for key, item in value.items())
        return b"}(" + items + b"u"  # EMPTY_DICT MARK ... SETITEMS
    if isinstance(value, list):
        return b"](" + b"".join(map(_dumped, value)) + b"e"  # EMPTY_LIST MARK ... APPENDS
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)  # BININT
    if isinstance(value, str):
        return _string(value.encode("utf-8", "surrogateescape"))
    if isinstance(value, np.ndarray):
        return _array(value)
    raise TypeError(f"no way to write a {type(value).__name__}")


def _string(raw: bytes) -> bytes:
    return b"T" + struct.pack("<i", len(raw)) + raw  # BINSTRING


def _array(array: NDArray[np.uint8]) -> bytes:
    """_reconstruct(ndarray, (0,), 'b'), then its state (1, shape, dtype('u1'), False, bytes)."""
    shape = b"(" + b"".join(map(_dumped, array.shape)) + b"t"
    dtype = b"cnumpy\ndtype\n(" + _string(b"u1") + _dumped(0) + _dumped(1) + b"tR"
    dtype += b"(" + _dumped(3) + _string(b"|") + b"NNN" + 2 * _dumped(-1) + _dumped(0) + b"tb"
    blank = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(" + _dumped(0) + b"t" + _string(b"b") + b"tR"
    return blank + b"(" + _dumped(1) + shape + dtype + b"\x89" + _string(array.astype(np.uint8).tobytes()) + b"tb"
