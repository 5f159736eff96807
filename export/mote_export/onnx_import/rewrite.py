"""One ONNX file in, one with mote's operators out: read, rewrite, write, run both and compare."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
import onnx_ir.passes.common as common
from onnxscript.rewriter import RewriteRuleSet

from mote_export import __version__, onnx_schemas
from mote_export.atomic import atomic_folder, check_output
from mote_export.defaults import DEFAULT_RTOL
from mote_export.onnx_import.compare import Array, Comparison, compare
from mote_export.onnx_import.graph import describe_shape
from mote_export.onnx_import.inline import inline_external_tensors
from mote_export.onnx_import.moe import fuse_experts
from mote_export.onnx_import.progress import looking, writing
from mote_export.onnx_import.read import OnnxFileError, printable, read_model
from mote_export.onnx_import.rules import RULES
from mote_export.onnx_import.state import Left, RewriteOptions, Rewritten, State
from mote_export.onnx_schemas import DOMAIN
from mote_export.targets.onnx.external_data import save_model
from mote_runtime.errors import MoteError

logger = logging.getLogger(__name__)

RULE_NAME = "pkg.onnxscript.rewriter.rule_name"


class NothingToRewriteError(MoteError):
    """No node of the graph can become one of mote's.

    Attributes:
        left: the linear layers of the graph, and why each stays.
    """

    def __init__(self, message: str, left: tuple[Left, ...]) -> None:
        super().__init__(printable(message))
        self.left = left


@dataclass(frozen=True)
class RewriteResult:
    """What `rewrite_onnx` has written.

    Attributes:
        file: the .onnx file.
        rewritten, left: nodes.
        bytes_before, bytes_after: of the .onnx file and all its external data.
        comparison: of both files in ONNX Runtime; None if that was not wanted.
    """

    file: Path
    rewritten: tuple[Rewritten, ...]
    left: tuple[Left, ...]
    bytes_before: int
    bytes_after: int
    comparison: Comparison | None


def rewrite_onnx(
    model: Path,
    output: Path,
    options: RewriteOptions | None = None,
    *,
    rtol: float = DEFAULT_RTOL,
    verify: bool = True,
    inputs: Mapping[str, Array] | None = None,
    progress: bool = False,
) -> RewriteResult:
    """Rewrites the ternary weights of an ONNX file to run in mote's operators.

    Args:
        model: a .onnx file, whose external data, if it has any, lies beside it.
        output: a folder that is absent or empty; the file is written under its own name, with its weights in NAME.onnx.data.
        options: what may be rewritten.
        rtol: greatest `mote_export.verify.relative_difference` of an output between both files in ONNX Runtime.
        verify: run and compare them.
        inputs: by name, what to compare on; by default random values of the shapes and types that the graph declares.
        progress: show bars on stderr if that is a terminal.

    Raises:
        OnnxFileError: the file or its external data is damaged, or names what it must not.
        NothingToRewriteError: no node can be rewritten.
        VerificationError: the outputs differ by more than `rtol`.
        MoteError: `output` cannot be written to, or the model cannot be run.
    """
    check_output(output)
    read = read_model(model)
    had, bytes_before = _count(read), _stored_bytes(read, model)
    with onnx_schemas.registered(), looking(read, progress) as bar:
        state = rewrite_model(read, options or RewriteOptions(), bar.update)
    rewritten, left = _report(state)
    if not rewritten:
        raise NothingToRewriteError(_nothing(model, had, left), left)
    with atomic_folder(output) as folder:
        file = folder / model.name
        with writing(read, file.with_name(f"{file.name}.data"), progress):
            save_model(read, file)
        logger.info("wrote %s", model.name)
        comparison = compare(model, file, rtol, inputs) if verify else None
        bytes_after = sum(part.stat().st_size for part in folder.iterdir())
    return RewriteResult(output / model.name, rewritten, left, bytes_before, bytes_after, comparison)


def rewrite_model(model: ir.Model, options: RewriteOptions, looked: Callable[[], object] | None = None) -> State:
    """Applies all rules to a graph, in place; its packed weights are computed when they are written.

    Args:
        model: of `read_model`.
        options: what may be rewritten.
        looked: called when a weight was looked at.

    Returns:
        What was done, and why not more.
    """
    inline_external_tensors(model)  # before shapes are inferred, which asks for the values of small ones
    common.ShapeInferencePass(check_type=False, strict_mode=False)(model)
    state = State(model, options) if looked is None else State(model, options, looked)
    try:
        for rules in RULES:
            RewriteRuleSet([rule.rule(state) for rule in rules]).apply_to_model(model)
        for graph in list(model.graphs()):
            fuse_experts(state, graph)
    except RecursionError as error:
        raise OnnxFileError("the graph is nested too deeply") from error
    if state.matmuls or state.experts:
        _clean(model)
    return state


def _clean(model: ir.Model) -> None:
    """Without nodes and weights that nobody uses any more; new ones say where they come from."""
    model.graph.opset_imports.setdefault(DOMAIN, onnx_schemas.VERSION)
    common.RemoveUnusedNodesPass()(model)
    common.NameFixPass()(model)
    for graph in model.graphs():
        for node in graph:
            node.metadata_props.pop(RULE_NAME, None)
        for name, value in list(graph.initializers.items()):  # the pass knows those of the main graph
            if not (value.uses() or value.is_graph_output() or value.is_graph_input()):
                del graph.initializers[name]
    model.metadata_props["mote.version"] = __version__


def _report(state: State) -> tuple[tuple[Rewritten, ...], tuple[Left, ...]]:
    nodes = [node for graph in state.model.graphs() for node in graph]
    known = set(nodes)
    rewritten = [*state.experts, *(record for node, (_, record) in state.matmuls.items() if node in known)]
    left = [
        Left(
            node.op_type,
            node.name or "",
            describe_shape(node.inputs[1]) if node.inputs[1] is not None else None,
            reason,
        )
        for node in nodes
        if (reason := state.reasons.get(node)) is not None
    ]
    return tuple(rewritten), tuple(left)


def _count(model: ir.Model) -> int:
    """Of mote's operators in a graph."""
    return sum(node.domain == DOMAIN for graph in model.graphs() for node in graph)


def _nothing(model: Path, had: int, left: tuple[Left, ...]) -> str:
    """One sentence that says what is there."""
    if not had and not left:
        return f"{model} has nothing to rewrite: there is no MatMul or Gemm in it"
    if not left:
        return (
            f"{model} has nothing left to rewrite: it has {had} of mote's operators already, and no other linear layer"
        )
    start = f"nothing left to rewrite: it has {had} of mote's operators already" if had else "nothing to rewrite"
    reasons = {item.reason for item in left}
    if len(reasons) > 1:
        return (
            f"{model} has {start}; {len(left)} linear layers stay, the first ({left[0].name}) because {left[0].reason}"
        )
    count = "its linear layer stays" if len(left) == 1 else f"all {len(left)} linear layers stay"
    return f"{model} has {start}; {count} because {left[0].reason}"


def _stored_bytes(model: ir.Model, path: Path) -> int:
    """Of the .onnx file and the external data that it names."""
    external = {
        str(value.const_value.path)
        for graph in model.graphs()
        for value in graph.initializers.values()
        if isinstance(value.const_value, ir.ExternalTensor)
    }
    return sum(Path(file).stat().st_size for file in {str(path), *external})
