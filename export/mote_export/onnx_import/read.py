"""A .onnx file that nobody vouches for -> ir.Model, its external data checked and left in the file."""

import itertools
import math
import os
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath

import onnx
import onnx_ir as ir
from google.protobuf.descriptor import FieldDescriptor  # type: ignore[import-untyped]
from google.protobuf.message import DecodeError, Message  # type: ignore[import-untyped]
from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto

from mote_runtime.errors import MoteError

MAX_PROTO_BYTES = (1 << 31) - 1  # of protobuf; larger models keep their weights in external data
MAX_RANK = 16
MAX_DEPTH = 16  # of graphs inside of nodes of graphs
MOST_LINES, MOST_SHOWN = 3, 300  # of what others say of an error
EXTERNAL_KEYS = {"location", "offset", "length", "checksum"}


class OnnxFileError(MoteError):
    """A .onnx file or its external data is damaged, or names what it must not; the message is one sentence."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


def printable(text: str) -> str:
    """A text of a file's own words on one line, without what a terminal would obey."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def read_model(path: Path) -> ir.Model:
    """Reads a graph; weights in external data stay there until they are asked for, and are mapped then.

    Raises:
        OnnxFileError: the file is no valid ONNX model of at most 2 GiB, or a tensor's external data has another size than its type
            and shape, lies outside of the model's folder, or is no regular file.
    """
    proto = _parse(path)
    _check_texts(proto, path)
    for tensor in _of_graph(proto.graph, 0):
        _check_tensor(tensor, path.parent)
    for function in proto.functions:
        for tensor in _of_function(function):
            if tensor.data_location == TensorProto.EXTERNAL:
                raise OnnxFileError(f"function {function.name} has external data, which only graphs can have")
            _check_tensor(tensor, path.parent)
    try:
        onnx.checker.check_model(str(path))  # by its path, which is how it finds external data
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise OnnxFileError(f"{path} is not a valid ONNX model: {_first_line(error)}") from error
    try:
        model = ir.serde.deserialize_model(proto)
    except Exception as error:  # of every kind, around one another: the innermost says most
        raise OnnxFileError(f"{path} cannot be read as a graph: {_first_line(_innermost(error))}") from error
    ir.external_data.set_base_dir(model.graph, path.parent.resolve())
    return model


def _parse(path: Path) -> ModelProto:
    try:
        info = path.stat()
        if not stat.S_ISREG(info.st_mode):
            raise OnnxFileError(f"{path} is not a regular file, expected an ONNX model")
        if info.st_size > MAX_PROTO_BYTES:
            raise OnnxFileError(
                f"{path} has {info.st_size} bytes, a .onnx file has at most {MAX_PROTO_BYTES}: keep the weights in external data"
            )
        proto = ModelProto()
        proto.ParseFromString(path.read_bytes())
    except DecodeError as error:
        raise OnnxFileError(f"{path} is not an ONNX model: it is no protobuf message of that type") from error
    if not proto.HasField("graph") or not proto.opset_import:
        raise OnnxFileError(f"{path} is not an ONNX model: it has no {'graph' if proto.opset_import else 'opset'}")
    return proto


def _check_texts(message: Message, path: Path) -> None:
    """Protobuf gives text that is not UTF-8 as bytes, which nothing that follows expects."""
    waiting = [message]
    while waiting:
        current = waiting.pop()
        if isinstance(current, TensorProto):  # whose other fields are numbers, and many
            texts = [current.name, current.doc_string]
            waiting.extend((*current.external_data, *current.metadata_props))
        else:
            texts = []
            for field, value in current.ListFields():
                is_repeated = not isinstance(value, (str, bytes, Message))
                if field.type == FieldDescriptor.TYPE_STRING:
                    texts.extend(value if is_repeated else [value])
                elif field.type == FieldDescriptor.TYPE_MESSAGE:
                    waiting.extend(value if is_repeated else [value])
        if not all(isinstance(text, str) for text in texts):
            raise OnnxFileError(f"{path} is not an ONNX model: a name in it is not UTF-8")


def _of_function(function: FunctionProto) -> Iterator[TensorProto]:
    yield from _of_nodes(function.node, 0)
    for attribute in function.attribute_proto:
        yield from _of_attribute(attribute, 0)


def _of_graph(graph: GraphProto, depth: int) -> Iterator[TensorProto]:
    if depth > MAX_DEPTH:
        raise OnnxFileError(f"graphs lie {depth} deep inside of each other, at most {MAX_DEPTH} are read")
    yield from graph.initializer
    if graph.sparse_initializer:
        name = graph.sparse_initializer[0].values.name
        raise OnnxFileError(f"{name} is a sparse initializer, which is not read: store it as a tensor")
    yield from _of_nodes(graph.node, depth)


def _of_nodes(nodes: "Iterator[NodeProto] | list[NodeProto]", depth: int) -> Iterator[TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            yield from _of_attribute(attribute, depth)


def _of_attribute(attribute: AttributeProto, depth: int) -> Iterator[TensorProto]:
    if attribute.HasField("t"):
        yield attribute.t
    yield from attribute.tensors
    for sparse in (
        *([attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []),
        *attribute.sparse_tensors,
    ):
        yield from (sparse.values, sparse.indices)
    for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
        yield from _of_graph(graph, depth + 1)


def _check_tensor(tensor: TensorProto, folder: Path) -> None:
    """Type, shape and the place of the bytes; nothing is read."""
    name = tensor.name or "a constant"
    try:
        dtype = ir.DataType(tensor.data_type)
    except ValueError as error:
        raise OnnxFileError(f"{name} is of type {tensor.data_type}, which ONNX does not have") from error
    shape = list(tensor.dims)
    if len(shape) > MAX_RANK or any(size < 0 for size in shape):
        raise OnnxFileError(f"{name} has shape {shape}, expected at most {MAX_RANK} sizes of at least 0")
    is_external = tensor.data_location == TensorProto.EXTERNAL
    if dtype == ir.DataType.UNDEFINED or (is_external and dtype == ir.DataType.STRING):
        raise OnnxFileError(f"{name} is of type {dtype.name}, which cannot be stored so")
    if dtype == ir.DataType.STRING:
        return
    size = math.ceil(math.prod(shape) * dtype.bitwidth / 8)
    if is_external:
        _check_place(tensor, size, folder)
    elif tensor.HasField("raw_data") and len(tensor.raw_data) != size:
        raise OnnxFileError(f"{name} has {len(tensor.raw_data)} bytes, expected {size} for {dtype.name} {shape}")
    elif not tensor.HasField("raw_data"):
        _check_count(tensor, name, math.prod(shape), dtype)


def _check_count(tensor: TensorProto, name: str, size: int, dtype: ir.DataType) -> None:
    """Numbers in fields of their own: two to a complex one, and a byte to an entry where several make a byte."""
    expected = size * 2 if dtype in (ir.DataType.COMPLEX64, ir.DataType.COMPLEX128) else size
    if dtype.bitwidth < 8:
        expected = math.ceil(size * dtype.bitwidth / 8)
    fields = (tensor.float_data, tensor.int32_data, tensor.int64_data, tensor.double_data, tensor.uint64_data)
    found = sum(len(field) for field in fields)
    if found != expected:
        raise OnnxFileError(f"{name} has {found} numbers, expected {expected} for {dtype.name} {list(tensor.dims)}")


def _check_place(tensor: TensorProto, size: int, folder: Path) -> None:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    unknown = entries.keys() - EXTERNAL_KEYS
    if unknown or len(entries) != len(tensor.external_data):
        raise OnnxFileError(
            f"{tensor.name}: external data has {sorted(unknown) or 'a key twice'}, which ONNX does not define"
        )
    offset, length = (_number(tensor.name, key, entries.get(key)) for key in ("offset", "length"))
    if length is not None and length != size:
        raise OnnxFileError(f"{tensor.name}: external data has {length} bytes, expected {size} for its type and shape")
    file = _external_file(tensor.name, entries.get("location", ""), folder)
    end = (offset or 0) + size
    if end > file.stat().st_size:
        raise OnnxFileError(
            f"{tensor.name}: external data ends at byte {end} of {file.name}, which has {file.stat().st_size}: it is cut off"
        )


def _number(name: str, key: str, text: str | None) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) < 19):
        raise OnnxFileError(f"{name}: the {key} of external data is {text[:40]!r}, expected a number of bytes")
    return int(text)


def _external_file(name: str, location: str, folder: Path) -> Path:
    """The file of a location, inside of the model's folder after links are followed."""
    parts = PurePosixPath(location).parts
    windows = PureWindowsPath(location)
    if (
        not parts
        or ".." in (*parts, *windows.parts)
        or PurePosixPath(location).is_absolute()
        or windows.anchor
        or "\0" in location
    ):
        raise OnnxFileError(
            f"{name}: external data is in {location[:80]!r}, expected a path inside of the model's folder"
        )
    file = folder / location
    resolved = file.resolve()
    if not resolved.is_relative_to(folder.resolve()):
        raise OnnxFileError(
            f"{name}: external data in {location!r} is a link out of the model's folder: copy the file into it"
        )
    if not resolved.is_file():
        found = "is not a regular file" if os.path.lexists(resolved) else "does not exist"
        raise OnnxFileError(f"{name}: external data is in {file}, which {found}")
    if resolved.stat().st_nlink > 1:
        raise OnnxFileError(
            f"{name}: external data in {file} has several hard links, which ONNX's readers refuse: copy the file"
        )
    return resolved


def _innermost(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _first_line(error: BaseException) -> str:
    """What an error says first; onnx breaks a line where it names a node, and begins with an arrow what it adds."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    own = list(itertools.takewhile(lambda line: not line.startswith("==>"), lines))[:MOST_LINES]
    return " ".join(own)[:MOST_SHOWN] or type(error).__name__
