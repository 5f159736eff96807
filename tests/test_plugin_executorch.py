"""L3: both operators in ExecuTorch against the torch reference, bit for bit, and what happens when something is wrong.

What no exporter writes (arguments of other types, empty tensors) is in runtime/executorch/tests.
"""

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from executorch.exir import EdgeCompileConfig, ExecutorchBackendConfig, to_edge_transform_and_lower
from executorch.exir.passes import MemoryPlanningPass
from executorch.extension.pybindings import portable_lib
from operator_cases import (
    CASES,
    INPUTS,
    TORCH_NAMES,
    Array,
    Case,
    Layer,
    assert_same_bits,
    random_layer,
    random_matmul,
    random_quantized,
    random_tokens,
    reference,
    tensor,
)
from torch import Tensor

from mote_runtime import get_library_path, library
from mote_runtime.errors import BackendError

MAX_TOKENS = 256
THREADS = [1, 2, 3]
# ExecuTorch 1.5 refuses empty tensors at export, and its Python interface ends the process at an empty input.
NOT_EMPTY = [case for case in CASES if 0 not in case.shape]
PLAIN = random_layer(4, 40, 24, 2)
BF16 = random_layer(4, 40, 24, 2, shared_format="bf16")
INT8 = random_layer(4, 40, 24, 2, shared_format="int8", packing="1.6bit")
INT4 = random_layer(4, 40, 24, 2, shared_format="int4", shared_group_size=32)
MATMUL = random_matmul(40, 21, "1.6bit")
QUANTIZED = random_quantized(40, 21, "int4", 32)
ONE_OF_EACH = [
    pytest.param(layer, id=name)
    for name, layer in (
        ("plain", PLAIN),
        ("bf16", BF16),
        ("int8", INT8),
        ("int4", INT4),
        ("matmul", MATMUL),
        ("quantized", QUANTIZED),
    )
]
OPERATORS = {name: f"mote::{op}" for name, op in TORCH_NAMES.items()}


class OneNode(torch.nn.Module):
    """A program of one node, with the weights inside."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.attributes = layer.torch_attributes()
        for name, weight in layer.weights.items():
            self.register_buffer(name, tensor(weight))
        self.names = [name if name in layer.weights else None for name in INPUTS[layer.op_type]]
        self.operator = getattr(torch.ops.mote, OPERATORS[layer.op_type].removeprefix("mote::"))

    def forward(self, x: Tensor) -> Tensor:
        weights = [name if name is None else self.get_buffer(name) for name in self.names]
        y: Tensor = self.operator(x, *weights, *self.attributes)
        return y


def export(layer: Layer, x: Array, *, dynamic: bool = False) -> torch.export.ExportedProgram:
    shapes = ({0: torch.export.Dim("tokens", min=1, max=MAX_TOKENS)},) if dynamic else None
    return torch.export.export(OneNode(layer), (torch.from_numpy(x),), dynamic_shapes=shapes)


def lower(methods: dict[str, torch.export.ExportedProgram], *, alignment: int = 64) -> bytes:
    edge = to_edge_transform_and_lower(methods, compile_config=EdgeCompileConfig(_check_ir_validity=False))
    planning = MemoryPlanningPass(alloc_graph_input=False)
    config = ExecutorchBackendConfig(memory_planning_pass=planning, constant_tensor_alignment=alignment)
    buffer: bytes = edge.to_executorch(config).buffer
    return buffer


class Program:
    """A loaded program, with the bytes that it reads in place for as long as it lives."""

    def __init__(self, buffer: bytes) -> None:
        library.load_executorch_library()
        self._buffer = buffer
        self._module = portable_lib._load_for_executorch_from_buffer(buffer)

    def run_all(self, inputs: tuple[Tensor, ...], method: str = "forward") -> list[Array]:
        # Copies: the outputs lie in the program's memory, which the next call overwrites.
        return [y.numpy().copy() for y in self._module.run_method(method, inputs)]

    def run(self, x: Array, method: str = "forward") -> Array:
        return self.run_all((torch.from_numpy(x),), method)[0]


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    """ExecuTorch's threads belong to the process, so each test starts with the same number."""
    portable_lib._unsafe_reset_threadpool(2)
    yield
    portable_lib._unsafe_reset_threadpool(2)


class ManyNodes(torch.nn.Module):
    """Nodes side by side, each with its own input and output: lowering takes as long as for a program of one node."""

    def __init__(self, layers: list[Layer]) -> None:
        super().__init__()
        self.nodes = torch.nn.ModuleList(map(OneNode, layers))

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(node(x) for node, x in zip(self.nodes, inputs, strict=True))


@pytest.fixture(scope="module")
def results() -> dict[tuple[str, int], Array]:
    """What each case gives with each number of threads."""
    inputs = tuple(torch.from_numpy(case.tokens()) for case in NOT_EMPTY)
    nodes = ManyNodes([case.layer for case in NOT_EMPTY])
    program = Program(lower({"forward": torch.export.export(nodes, inputs)}))
    results = {}
    for threads in THREADS:
        portable_lib._unsafe_reset_threadpool(threads)
        outputs = program.run_all(inputs)
        results |= {(case.name, threads): y for case, y in zip(NOT_EMPTY, outputs, strict=True)}
    return results


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("case", NOT_EMPTY, ids=lambda case: case.name)
def test_bits_equal_the_reference(results: dict[tuple[str, int], Array], case: Case, threads: int) -> None:
    assert_same_bits(results[case.name, threads], reference(case.layer, case.tokens()))


@pytest.mark.parametrize("layer", ONE_OF_EACH)
def test_rows_that_are_not_finite_become_nan_and_no_other(layer: Layer) -> None:
    x = random_tokens(6, 40)
    x[1, 3], x[3, 39], x[4, 0] = np.nan, np.inf, -np.inf
    y = Program(lower({"forward": export(layer, x)})).run(x)
    assert np.isnan(y).all(axis=1).tolist() == [False, True, False, True, True, False]
    assert_same_bits(y, reference(layer, x))


@pytest.mark.parametrize("layer", [INT4, MATMUL, QUANTIZED], ids=["moe", "matmul", "quantized"])
def test_one_program_serves_all_numbers_of_tokens(layer: Layer) -> None:
    module = Program(lower({"forward": export(layer, random_tokens(5, 40), dynamic=True)}))
    for tokens in (1, MAX_TOKENS, 3, 1, 200):
        x = random_tokens(tokens, 40, seed=tokens)
        assert_same_bits(module.run(x), reference(layer, x))
    with pytest.raises(RuntimeError):
        module.run(random_tokens(MAX_TOKENS + 1, 40))


def replaced(name: str, change: Callable[[Array], Array]) -> Callable[[Layer], Layer]:
    return lambda layer: layer.with_weights(**{name: change(layer.weights[name])})


def attributes(**changes: int | str) -> Callable[[Layer], Layer]:
    return lambda layer: layer.with_attributes(**changes)


def without(weight: str) -> Callable[[Layer], Layer]:
    return lambda layer: layer.without_weights(weight)


def filled(value: float) -> Callable[[Array], Array]:
    return lambda w: np.full_like(w, value)


DAMAGES: list[tuple[Layer, Callable[[Layer], Layer], str]] = [
    (PLAIN, attributes(layout_version=2), "layout_version is 2"),
    (PLAIN, attributes(num_experts=3), "router has size 4 in dimension 0"),
    (PLAIN, attributes(top_k=5), "top_k is 5, but must be 1 to 4"),
    (PLAIN, attributes(intermediate_size=48), "gate_up_packed has size 2 in dimension 1"),
    (PLAIN, attributes(activation="gelu"), 'activation is "gelu"'),
    (PLAIN, attributes(packing="5trit"), 'packing is "5trit"'),
    (PLAIN, attributes(packing="x" * 100), "packing is 100 bytes long"),
    (PLAIN, replaced("router", lambda w: w.reshape(-1)), "router has rank 1, expected 2"),
    (PLAIN, replaced("router", lambda w: w[:, :32]), "gate_up_packed has size 3 in dimension 3"),
    (PLAIN, replaced("router", lambda w: w.astype(np.float64)), "router has dtype Double, expected Float"),
    (PLAIN, replaced("gate_up_packed", lambda w: w[..., :63]), "gate_up_packed has size 63 in dimension 4"),
    (PLAIN, replaced("gate_up_packed", lambda w: w.view(np.int8)), "gate_up_packed has dtype Char, expected Byte"),
    (PLAIN, replaced("down_packed", lambda w: w[:3]), "down_packed has size 3 in dimension 0"),
    (PLAIN, replaced("gate_up_scale", filled(np.inf)), "gate_up_scale has the value inf"),
    (PLAIN, replaced("down_scale", lambda w: -w), "down_scale has the value -"),
    (PLAIN, attributes(shared_format="int8"), "shared_gate_up is missing"),
    (PLAIN, attributes(shared_format="int2"), 'shared_format is "int2"'),
    (PLAIN, attributes(shared_format="x" * 64), "shared_format is 64 bytes long, expected less than 64"),
    (PLAIN, attributes(shared_group_size=32), "shared_group_size is 32, but must be 0 for shared_format none"),
    (INT8, attributes(shared_format="none"), "shared_gate_up is given, but shared_format none has none"),
    (INT8, attributes(shared_group_size=32), "shared_group_size is 32, but must be 0 for shared_format int8"),
    (INT4, attributes(shared_group_size=48), "shared_group_size is 48, but must be 32, 64, 128 or 256 for int4"),
    (INT4, attributes(shared_group_size=64), "shared_gate_up_scale has size 2 in dimension 2"),
    (INT4, without("shared_gate_up"), "shared_gate_up is missing"),
    (INT4, without("shared_gate_up_scale"), "shared_gate_up_scale is missing"),
    (INT4, without("shared_down"), "shared_down is missing"),
    (INT4, without("shared_down_scale"), "shared_down_scale is missing"),
    (INT4, replaced("shared_gate_up", lambda w: w[0]), "shared_gate_up has rank 3, but must have rank 4"),
    (INT4, replaced("shared_gate_up", lambda w: w.view(np.int8)), "shared_gate_up has dtype Char, expected Byte"),
    (INT4, replaced("shared_down", lambda w: w.view(np.int8)), "shared_down has dtype Char, expected Byte"),
    (
        INT4,
        replaced("shared_gate_up_scale", lambda w: w.astype(np.float16)),
        "shared_gate_up_scale has dtype Half, expected BFloat16",
    ),
    (
        INT4,
        replaced("shared_down_scale", lambda w: w.astype(np.float32)),
        "shared_down_scale has dtype Float, expected BFloat16",
    ),
    (INT4, replaced("shared_gate_up_scale", filled(np.nan)), "shared_gate_up_scale has the value nan"),
    (INT4, replaced("shared_down_scale", filled(-1)), "shared_down_scale has the value -1"),
    (
        BF16,
        lambda layer: layer.with_weights(shared_down_scale=INT8.weights["shared_down_scale"]),
        "shared_down_scale is given, but shared_format bf16 has none",
    ),
    (MATMUL, attributes(layout_version=0), "layout_version is 0"),
    (MATMUL, attributes(in_features=41), "packed has size 2 in dimension 1"),
    (MATMUL, attributes(out_features=33), "packed has size 2 in dimension 0"),
    (MATMUL, attributes(out_features=1 << 18), "out_features is 262144, but must be 1 to 131072"),
    (MATMUL, attributes(packing="3bit"), 'packing is "3bit"'),
    (MATMUL, replaced("packed", lambda w: w.view(np.int8)), "packed has dtype Char, expected Byte"),
    (MATMUL, replaced("scale", lambda w: w.astype(np.float64)), "scale has dtype Double, expected Float"),
    (MATMUL, replaced("scale", filled(np.nan)), "scale has the value nan"),
    (MATMUL, replaced("scale", filled(-0.5)), "scale has the value -0.5"),
    (MATMUL, replaced("scale", lambda w: np.repeat(w, 2)), "scale has size 2 in dimension 0"),
    (QUANTIZED, attributes(layout_version=0), "layout_version is 0"),
    (QUANTIZED, attributes(in_features=41), "weight has size 5 in dimension 1"),
    (QUANTIZED, attributes(out_features=1 << 21), "out_features is 2097152, but must be 1 to 1048576"),
    (QUANTIZED, attributes(format="2bit"), 'format is "2bit"'),
    (QUANTIZED, attributes(group_size=16), "group_size is 16, but must be 32, 64, 128 or 256 for int4"),
    (QUANTIZED, replaced("weight", lambda w: w.view(np.int8)), "weight has dtype Char, expected Byte"),
    (QUANTIZED, replaced("scale", lambda w: w.astype(np.float32)), "scale has dtype Float, expected BFloat16"),
    (QUANTIZED, replaced("scale", filled(np.nan)), "scale has the value nan"),
    (QUANTIZED, replaced("bias", filled(np.inf)), "bias has the value inf at index 0, but must be finite"),
    (QUANTIZED, replaced("bias", lambda w: w[:20]), "bias has size 20 in dimension 0"),
]


@pytest.fixture(scope="module")
def all_damages() -> Program:
    """One program with a method for each damage."""
    x = random_tokens(3, 40)
    return Program(lower({f"m{i}": export(damage(layer), x) for i, (layer, damage, _) in enumerate(DAMAGES)}))


@pytest.mark.parametrize("index", range(len(DAMAGES)))
def test_a_wrong_attribute_or_weight_gives_a_sentence(
    all_damages: Program, index: int, capfd: pytest.CaptureFixture[str]
) -> None:
    layer, _, sentence = DAMAGES[index]
    with pytest.raises(RuntimeError, match="0x12"):  # Error::InvalidArgument
        all_damages.run(random_tokens(3, 40), f"m{index}")
    assert f"{OPERATORS[layer.op_type]}.out: {sentence}" in "".join(capfd.readouterr())


@pytest.mark.parametrize(
    ("x", "sentence"),
    [
        (np.zeros((3, 39), np.float32), "the last dimension of x is 39, expected 40, "),
        (np.zeros((1, 1, 1, 1, 40), np.float32), "x has rank 5, expected 1 to 4"),
        (np.zeros((3, 40), np.float64), "x has dtype Double, expected Float"),
    ],
)
@pytest.mark.parametrize("layer", [PLAIN, MATMUL, QUANTIZED], ids=["moe", "matmul", "quantized"])
def test_tokens_of_a_wrong_shape_or_type_give_a_sentence(
    layer: Layer, x: Array, sentence: str, capfd: pytest.CaptureFixture[str]
) -> None:
    module = Program(lower({"forward": export(layer, x)}))
    with pytest.raises(RuntimeError, match="0x12"):
        module.run(x)
    assert f"{OPERATORS[layer.op_type]}.out: {sentence}" in "".join(capfd.readouterr())


@pytest.mark.parametrize("layer", ONE_OF_EACH)
def test_weights_may_lie_at_any_address(layer: Layer) -> None:
    """A program without alignment of its own for constants: 16 bytes are the least that its format gives."""
    x = random_tokens(3, 40)
    program = lower({"forward": export(layer, x)}, alignment=1)
    assert_same_bits(Program(program).run(x), reference(layer, x))


def test_programs_of_one_process_do_not_disturb_each_other() -> None:
    layers = [random_layer(4, 64, 96, 1), INT8, random_layer(8, 33, 50, 8, 1, seed=8), MATMUL, QUANTIZED]

    def work(job: int) -> None:
        layer = layers[job % 4]
        x = random_tokens(1 + job % 20, layer.hidden_size, seed=job)
        expected = reference(layer, x)
        for _ in range(20):
            assert_same_bits(modules[job].run(x), expected)

    programs = [
        lower({"forward": export(layer, random_tokens(5, layer.hidden_size), dynamic=True)}) for layer in layers
    ]
    modules = [Program(programs[job % 4]) for job in range(12)]
    with ThreadPoolExecutor(12) as pool:
        list(pool.map(work, range(12)))


RUN_PROGRAM = """
import ctypes, sys
import numpy as np
import torch
for path in sys.argv[3:]:
    ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
from executorch.extension.pybindings import portable_lib

def anonymous_bytes():
    for line in open("/proc/self/status"):
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024

x = torch.from_numpy(np.load(sys.argv[2]))
before = anonymous_bytes()
module = portable_lib._load_for_executorch(sys.argv[1])
y = module.forward((x,))[0]
print(anonymous_bytes() - before)
np.save(sys.argv[2] + ".y.npy", y.numpy())
"""


def run_in_new_process(program: bytes, x: Array, folder: Path, *libraries: Path) -> tuple[Array, int]:
    """Output, and how much the process grew by loading and running."""
    (folder / "model.pte").write_bytes(program)
    np.save(folder / "x.npy", x)
    command = [sys.executable, "-c", RUN_PROGRAM, folder / "model.pte", folder / "x.npy", *libraries]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return np.load(folder / "x.npy.y.npy"), int(result.stdout.splitlines()[-1])


def test_a_second_copy_of_the_library_is_harmless(tmp_path: Path) -> None:
    """Also: the library finds ExecuTorch by itself when it is loaded first."""
    path = get_library_path("executorch")
    copy = Path(shutil.copy(path, tmp_path / "libcopy.so"))
    layer, x = random_layer(4, 40, 24, 2), random_tokens(3, 40)
    y, _ = run_in_new_process(lower({"forward": export(layer, x)}), x, tmp_path, path, path, copy)
    assert_same_bits(y, reference(layer, x))


def test_weights_are_read_where_the_program_is_mapped(tmp_path: Path) -> None:
    """A copy of the weights would be anonymous memory; a mapped file is not."""
    experts, hidden, intermediate = 4, 2048, 8192
    tiles = (intermediate // 16, hidden // 16)
    scale = random_layer(1, 16, 16, 1, shared_format="int8").weights["shared_down_scale"]
    layer = random_layer(experts, 16, 16, 1, shared_format="int8").with_weights(
        router=random_tokens(experts, hidden),
        gate_up_packed=np.full((experts, tiles[0], 2, tiles[1], 64), 0x55, np.uint8),
        down_packed=np.full((experts, tiles[1], tiles[0], 64), 0x55, np.uint8),
        shared_gate_up=np.zeros((tiles[0], 2, hidden // 4, 64), np.uint8),
        shared_gate_up_scale=np.tile(scale, (tiles[0], 2, 1, 1)),
        shared_down=np.zeros((tiles[1], intermediate // 4, 64), np.uint8),
        shared_down_scale=np.tile(scale, (tiles[1], 1, 1)),
    )
    x = random_tokens(1, hidden)
    program = lower({"forward": export(layer.with_attributes(intermediate_size=intermediate), x)})
    weights = sum(weight.nbytes for weight in layer.weights.values())
    assert weights > 96e6
    y, grown = run_in_new_process(program, x, tmp_path, get_library_path("executorch"))
    assert not y.any()
    assert grown < weights / 8, f"{weights} bytes of weights grew the process by {grown} bytes of its own memory"


def test_loading_is_once(monkeypatch: pytest.MonkeyPatch) -> None:
    library.load_executorch_library()
    monkeypatch.setattr(library, "get_library_path", lambda runtime: pytest.fail("loaded twice"))
    library.load_executorch_library()


def test_a_missing_library_or_runtime_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(library, "_executorch_library", None)
    monkeypatch.setattr(library, "_library_folders", lambda: [tmp_path])
    with pytest.raises(BackendError, match=r"^libmote_executorch.so is not installed with mote_runtime: .*make build"):
        library.load_executorch_library()
    (tmp_path / "libmote_executorch.so").write_bytes(b"not a library")
    with pytest.raises(BackendError, match=r"^libmote_executorch.so cannot be loaded .*reinstall mote"):
        library.load_executorch_library()
    for name in ("_C", "portable_lib"):
        monkeypatch.setitem(sys.modules, f"executorch.extension.pybindings.{name}", None)
    with pytest.raises(BackendError, match=r"^ExecuTorch cannot be imported .*pip install 'mote\[executorch\]'"):
        library.load_executorch_library()
