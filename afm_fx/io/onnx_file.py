"""Reads an ONNX file without its external weights, and refuses what it must not lead a runtime to.

An ONNX file may name other files that hold its weights. A runtime opens them by the names, offsets and lengths that
the file gives, so whoever writes the file chooses what is read. Here they are looked at before anything else reads the
file: every name must lead, symbolic links resolved, to a regular file in the folder of the ONNX file, and every piece
must lie inside that file and be as long as the tensor's shape and type say. Tensors inside the file must be as long as
they say, too. Nothing is executed, and no weight in another file is read.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from afm_fx.errors import FileFormatError
from afm_fx.io.external_file import external_file

_FOUR_BITS = frozenset({onnx.TensorProto.INT4, onnx.TensorProto.UINT4, onnx.TensorProto.FLOAT4E2M1})


def read_onnx(path: Path) -> onnx.ModelProto:
    """The file's graph; weights that lie elsewhere are not read.

    Raises:
        FileFormatError: there is no such file, or it is no ONNX file.
    """
    if not path.is_file():
        raise FileFormatError(f"there is no ONNX file '{path}'")
    try:
        model = onnx.load(path, format="protobuf", load_external_data=False)
    except (DecodeError, OSError, ValueError) as error:
        raise FileFormatError(f"'{path}' is truncated, damaged or not an ONNX file: {error}") from error
    if not model.graph.node and not model.graph.output:
        raise FileFormatError(f"'{path}' is damaged or not an ONNX file: it holds no operators")
    return model


def read_safe_onnx(path: Path) -> onnx.ModelProto:
    """:func:`read_onnx`, after looking at where the weights lie.

    Raises:
        FileFormatError: see :func:`read_onnx`; or a tensor is not as long as its shape says, or its file is missing.
        UnsafeFileError: the file names weights outside its folder.
    """
    model = read_onnx(path)
    for name, error in storage_problems(path, model):
        raise type(error)(f"'{path}' is not opened: tensor '{name}' {error}")
    return model


def storage_problems(path: Path, model: onnx.ModelProto) -> Iterator[tuple[str, FileFormatError]]:
    """Everything that is wrong with where the file's tensors lie and how long they are.

    Yields:
        The tensor's name, and what is wrong as the end of a sentence that begins with the tensor: an
        :class:`UnsafeFileError` where it would make a runtime read what does not belong to the file.
    """
    folder = path.parent.resolve()
    for tensor in all_tensors(model):
        try:
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                _check_outside(folder, tensor)
            else:
                _check_inside(tensor)
        except FileFormatError as error:
            yield tensor.name, error
        except OSError as error:
            yield tensor.name, FileFormatError(str(error))


def all_tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor of a model: initializers and attributes, in its subgraphs and functions too."""
    yield from _graph_tensors(model.graph)
    for function in model.functions:
        for node in function.node:
            yield from _node_tensors(node)


def all_nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Every operator of a model, those of its subgraphs and functions too."""
    yield from _graph_nodes(model.graph.node)
    for function in model.functions:
        yield from _graph_nodes(function.node)


def operator_counts(model: onnx.ModelProto) -> tuple[tuple[str, int], ...]:
    """(operator, count) pairs, the most frequent first."""
    counts = Counter(node.op_type for node in all_nodes(model))
    return tuple(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def external_piece(tensor: onnx.TensorProto) -> tuple[str, int, int | None]:
    """Where an external tensor lies, as its file says: file, first byte, and number of bytes where that is stated.

    Raises:
        FileFormatError: an entry is missing or no number.
    """
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    if not location:
        raise FileFormatError("lies in another file, and the name of that is missing")
    numbers = {}
    for key in ("offset", "length"):
        text = entries.get(key)
        if text is not None and not (text.isascii() and text.isdigit() and len(text) <= 20):
            raise FileFormatError(f"lies in '{location}' with {key} '{text}', which is no number of bytes")
        numbers[key] = None if text is None else int(text)
    return location, numbers["offset"] or 0, numbers["length"]


def tensor_bytes(tensor: onnx.TensorProto) -> int | None:
    """Bytes that a tensor's shape and type ask for, None where its type has no fixed size.

    Raises:
        FileFormatError: a size is negative, or the type is unknown.
    """
    if any(size < 0 for size in tensor.dims):
        raise FileFormatError(f"has the shape {list(tensor.dims)}")
    if tensor.data_type == onnx.TensorProto.STRING:
        return None
    count: int = math.prod(tensor.dims)
    if tensor.data_type in _FOUR_BITS:
        return (count + 1) // 2
    try:
        return count * int(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
    except KeyError:
        raise FileFormatError(f"has the type {tensor.data_type}, which ONNX does not know") from None


def _check_outside(folder: Path, tensor: onnx.TensorProto) -> None:
    """Refuses a tensor in another file that is not there, or not as long as shape and type ask for."""
    location, offset, stated = external_piece(tensor)
    wanted = tensor_bytes(tensor)
    size = external_file(folder, location).stat().st_size
    if wanted is None:
        raise FileFormatError(f"lies in '{location}', but its type cannot lie in another file")
    length = size - offset if stated is None else stated
    if offset + length > size or length < 0:
        raise FileFormatError(f"lies in '{location}' up to byte {offset + max(length, 0):,}, the file ends at {size:,}")
    if length != wanted:
        raise FileFormatError(f"takes {length:,} bytes of '{location}', its shape and type ask for {wanted:,}")


def _check_inside(tensor: onnx.TensorProto) -> None:
    """Refuses a tensor in the ONNX file itself that is not as long as shape and type ask for."""
    wanted = tensor_bytes(tensor)
    if wanted is None:
        found, wanted = len(tensor.string_data), math.prod(tensor.dims)
    elif tensor.HasField("raw_data"):
        found = len(tensor.raw_data)
    else:
        # Numbers in fields of their own type are counted, not measured: protobuf packs them by their size.
        fields = (tensor.float_data, tensor.int32_data, tensor.int64_data, tensor.double_data, tensor.uint64_data)
        found, wanted = sum(map(len, fields)), math.prod(tensor.dims)
        if tensor.data_type in {onnx.TensorProto.COMPLEX64, onnx.TensorProto.COMPLEX128}:
            wanted *= 2
        if tensor.data_type in _FOUR_BITS:
            wanted = (wanted + 1) // 2
    if found != wanted:
        raise FileFormatError(f"holds {found:,} bytes or numbers, its shape and type ask for {wanted:,}")


def _graph_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        yield from _node_tensors(node)


def _node_tensors(node: onnx.NodeProto) -> Iterator[onnx.TensorProto]:
    for attribute in node.attribute:
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        for sparse in (*([attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else ()),
                       *attribute.sparse_tensors):  # fmt: skip
            yield from (sparse.values, sparse.indices)
        for graph in (*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs):
            yield from _graph_tensors(graph)


def _graph_nodes(nodes: Iterator[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in (*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs):
                yield from _graph_nodes(graph.node)
