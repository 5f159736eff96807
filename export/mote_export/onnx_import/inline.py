"""Tensors that a new external data file has no place for come into the .onnx file: what they pointed to is another file's bytes."""

import numpy as np
import onnx_ir as ir

from mote_export.targets.onnx.external_data import INLINE_BYTES


def inline_external_tensors(model: ir.Model) -> None:
    """In place: small initializers, and constants in attributes. Large initializers of subgraphs move to the main graph."""
    main = model.graph
    names = {value.name for graph in model.graphs() for value in ir.convenience.create_value_mapping(graph).values()}
    for graph in list(model.graphs()):
        for value in list(graph.initializers.values()):
            tensor = value.const_value
            if not isinstance(tensor, ir.ExternalTensor):
                continue
            if tensor.nbytes < INLINE_BYTES:
                value.const_value = _in_memory(tensor)
            elif graph is not main:
                _move(value, graph, main, names)
        for node in graph:
            for name, attribute in list(node.attributes.items()):
                if attribute.type == ir.AttributeType.TENSOR and isinstance(attribute.value, ir.ExternalTensor):
                    node.attributes[name] = ir.AttrTensor(name, _in_memory(attribute.value))


def _in_memory(tensor: ir.ExternalTensor) -> ir.Tensor:
    return ir.Tensor(np.array(tensor.numpy()), dtype=tensor.dtype, name=tensor.name)


def _move(value: ir.Value, graph: ir.Graph, main: ir.Graph, names: set[str | None]) -> None:
    """An initializer of a subgraph becomes one of the main graph, whose values subgraphs can use."""
    assert value.name is not None
    del graph.initializers[value.name]
    name, number = value.name, 0
    while name in main.initializers or (number and name in names):
        number += 1
        name = f"{value.name}_{number}"
    names.add(name)
    value.name = name
    main.register_initializer(value)
