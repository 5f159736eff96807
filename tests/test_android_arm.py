"""The APK's own libraries, on emulated 64-bit ARM processors and on this one: the answers and the bits of the desktop."""

import os
import subprocess
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from android import built, make_shims
from arm import PACKAGES, ROOT, arm_packages, build_arm_runner, qemu_command
from onnx import TensorProto, helper, numpy_helper
from operator_cases import CASES, Array, assert_same_bits, onnx_model, random_tokens, reference
from test_runner import FOLDERS, ORT_LIBRARY, Questions, command, host_runner, read_record

from android_demo.tools import natives
from android_demo.tools.models import export_demo_model
from android_demo.tools.paths import MODELS
from mote_runtime import get_library_path

# What is emulated, and the kernels that are then to be chosen; None is this processor, without emulation.
PROCESSORS = {"cortex-a72": "neon", "cortex-a76": "neon_dotprod", "max": "neon_i8mm", None: ""}
processors = pytest.mark.parametrize("cpu", PROCESSORS, ids=lambda cpu: cpu or "this-processor")
pytestmark = pytest.mark.slow


class Machine:
    """A processor: the APK's plugin for it, the runtime, the runner, a compiler, and how to start a program."""

    def __init__(self, emulated: bool, folder: Path) -> None:
        self.folder, self.emulated = folder, emulated
        abi = "arm64-v8a" if emulated else "x86_64"
        self.plugin = next(path for path in built(lambda: natives.build_android(abi)) if path.name == "libmote_ort.so")
        self.runner = build_arm_runner(folder) if emulated else host_runner()
        self.runtime = ORT_LIBRARY
        if emulated:
            self.runtime = arm_packages() / "onnxruntime" / "capi" / f"libonnxruntime.so.{PACKAGES['onnxruntime']}"
        self.compiler = "aarch64-linux-gnu-g++" if emulated else "g++"
        self.shims = make_shims(folder, self.compiler)

    def run(self, cpu: str | None, program: Path, *arguments: str | Path) -> None:
        """Runs a program for this processor, which must succeed without a word."""
        if self.emulated:
            words = qemu_command(self.folder, program, *arguments)
            words[1:1] = ["-E", f"LD_LIBRARY_PATH={self.shims}"]  # the program's, not the emulator's
            environment = os.environ | {"QEMU_CPU": str(cpu)}
        else:
            words = [str(program), *map(str, arguments)]
            environment = os.environ | {"LD_LIBRARY_PATH": str(self.shims)}
        result = subprocess.run(words, capture_output=True, text=True, env=environment)
        assert (result.returncode, result.stderr) == (0, "")


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Machine]:
    return {emulated: Machine(emulated, tmp_path_factory.mktemp("machine")) for emulated in (True, False)}


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Questions]:
    built(export_demo_model)
    return {name: Questions(MODELS / folder, tmp_path_factory.mktemp(name)) for name, folder in FOLDERS.items()}


@processors
def test_the_answers_are_those_of_the_desktop(
    cpu: str | None, machines: dict[bool, Machine], questions: dict[str, Questions], tmp_path: Path
) -> None:
    machine, asked, output = machines[cpu is not None], questions["onnxruntime"], tmp_path / "record.json"
    for prompt, answer in zip(asked.prompts, asked.answers, strict=True):
        arguments = command(
            "onnxruntime", MODELS / "onnx", prompt, output, "--threads", "2", "--plugin", machine.plugin
        )
        libraries = ("--runtime-library", machine.runtime)
        machine.run(cpu, machine.runner, *arguments, *libraries, "--warmup", "0", "--repetitions", "1")
        _, record = read_record(output)
        assert [list(repetition.token_ids) for repetition in record.repetitions] == [answer]
        assert cpu is None or record.isa == PROCESSORS[cpu]


def test_executorch_on_arm_gives_the_answers_of_the_desktop(
    machines: dict[bool, Machine], questions: dict[str, Questions], tmp_path: Path
) -> None:
    machine, asked, output = machines[True], questions["executorch"], tmp_path / "record.json"
    for prompt, answer in zip(asked.prompts, asked.answers, strict=True):
        arguments = command("executorch", MODELS / "executorch", prompt, output, "--threads", "2")
        machine.run("max", machine.runner, *arguments, "--warmup", "0", "--repetitions", "1")
        _, record = read_record(output)
        assert list(record.repetitions[0].token_ids) == answer


class OneNodeModels:
    """Models of one operator each, with inputs and the bits that must come out: all that is in the tables of cases, by the
    reference in torch, and the layers of the demo model, by the desktop's plugin.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.expected: dict[str, Array] = {}
        for case in CASES:
            x = case.tokens()
            self._add(case.name, onnx_model(case.layer, x.shape), x, reference(case.layer, x))
        options = onnxruntime.SessionOptions()
        options.register_custom_ops_library(str(get_library_path("onnxruntime")))
        decoder = onnx.load(MODELS / "onnx" / "model.onnx")
        for node in decoder.graph.node:
            if node.op_type == "TernaryMoE":
                for num_tokens in (1, 27):
                    self._add_layer_of(decoder, node, num_tokens, options)

    def _add(self, name: str, model: onnx.ModelProto, x: Array, expected: Array) -> None:
        onnx.save(model, self.folder / f"{name}.onnx")
        x.tofile(self.folder / f"{name}.x")
        self.expected[name] = expected

    def _add_layer_of(
        self, decoder: onnx.ModelProto, node: onnx.NodeProto, num_tokens: int, options: onnxruntime.SessionOptions
    ) -> None:
        alone = onnx.NodeProto()
        alone.CopyFrom(node)
        alone.input[0], alone.output[0] = "x", "y"
        weights = [tensor for tensor in decoder.graph.initializer if tensor.name in node.input]
        x = random_tokens(num_tokens, numpy_helper.to_array(weights[0]).shape[1])
        graph = helper.make_graph(
            [alone],
            "layer",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
            weights,
        )
        model = helper.make_model(graph, opset_imports=decoder.opset_import, ir_version=decoder.ir_version)
        session = onnxruntime.InferenceSession(model.SerializeToString(), options)
        expected: Array = session.run(None, {"x": x})[0]
        self._add(f"layer-{len(self.expected)}", model, x, expected)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> OneNodeModels:
    built(export_demo_model)
    return OneNodeModels(tmp_path_factory.mktemp("models"))


@processors
def test_the_operators_give_the_bits_of_the_desktop(
    cpu: str | None, machines: dict[bool, Machine], models: OneNodeModels, tmp_path: Path
) -> None:
    machine, program = machines[cpu is not None], tmp_path / "run_models"
    source = ROOT / "tests" / "run_models.cpp"
    subprocess.run(
        [machine.compiler, "-std=c++17", "-O1", f"-I{ROOT / 'runtime'}", source, "-o", program, "-ldl"], check=True
    )
    outputs = [models.folder / f"{name}.y" for name in models.expected]
    for output in outputs:
        output.unlink(missing_ok=True)
    machine.run(cpu, program, machine.runtime, machine.plugin, "2", models.folder, *models.expected)
    for output, expected in zip(outputs, models.expected.values(), strict=True):
        assert_same_bits(np.fromfile(output, np.float32).reshape(expected.shape), expected)
