"""What a graph says of itself: producer, settings, and names of nodes and values that tell which module they come from.

torch's exporter numbers nodes, and keeps with each of them the lines of source code it came from, with the paths of the machine
that exported: most of the bytes of a .onnx file, and nobody's business. The modules' names, which are among these notes, become the
names of nodes; the rest is dropped. Types and shapes of all values stay, so Netron shows them without knowing the operators.
"""

import ast
import re
from collections import Counter

import onnx_ir as ir
import torch

from mote_export import __version__
from mote_export.onnx_schemas import DOMAIN, OPERATORS

PRODUCER = "mote"
MODEL_VERSION = 1  # of the interface in docs/export-format.md
NAME_SCOPES = "pkg.torch.onnx.name_scopes"
# Settings of a TernaryMoE node that are the same in all layers and tell users what they have.
SETTINGS = ("packing", "layout_version", "shared_format", "shared_group_size", "num_experts", "top_k")


def describe(model: ir.Model, name: str, doc: str) -> None:
    """Names and documents a graph of torch's exporter, in place; inputs, outputs and named weights keep their names."""
    model.producer_name, model.producer_version, model.model_version = PRODUCER, __version__, MODEL_VERSION
    model.graph.name = name
    model.doc_string = model.graph.doc_string = doc
    model.metadata_props.clear()
    model.metadata_props.update({"mote.version": __version__, "torch.version": torch.__version__, **_settings(model)})
    _name_nodes(model)
    _name_values(model)
    for value in (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()


def _settings(model: ir.Model) -> dict[str, str]:
    node = next((node for node in model.graph if (node.domain, node.op_type) == (DOMAIN, "TernaryMoE")), None)
    return {} if node is None else {f"mote.{name}": str(node.attributes[name].value) for name in SETTINGS}


def _scope(node: ir.Node) -> str:
    """The module that a node computes, as in `named_modules`; "" for the graph's own code."""
    scopes = ast.literal_eval(node.metadata_props.get(NAME_SCOPES, "[]"))
    return scopes[-2] if len(scopes) > 1 else ""


def _name_nodes(model: ir.Model) -> None:
    """/decoder/layers.3/mlp/experts/TernaryMoE, and with a number behind where a module has several."""
    used: Counter[str] = Counter()
    docs = {operator.name: operator.doc for operator in OPERATORS}
    for node in model.graph.all_nodes():
        path = re.sub(r"\.(?!\d)", "/", _scope(node))
        name = f"/{path}/{node.op_type}" if path else f"/{node.op_type}"
        node.name = f"{name}_{used[name]}" if used[name] else name
        used[name] += 1
        if node.domain == DOMAIN:
            node.doc_string = docs[node.op_type]


def _name_values(model: ir.Model) -> None:
    outputs = set(model.graph.outputs)
    for node in model.graph.all_nodes():
        for index, value in enumerate(node.outputs):
            if value not in outputs:
                value.name = f"{node.name}_output_{index}"
    for node in model.graph.all_nodes():
        weight = node.inputs[1] if node.op_type == "MatMul" else None
        # Weights that the exporter has transposed lost their names.
        if weight is not None and weight.name in model.graph.initializers and re.fullmatch(r"val_\d+", weight.name):
            weight.name = f"{_scope(node) or node.op_type}.weight_transposed"
