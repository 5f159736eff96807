"""Packed weights stay in the file: opening reads none of them, processes share them, and the system may drop them again."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import memory_worker
import numpy as np
import pytest
import tiny_onnx_export as tiny

from mote_runtime.errors import MoteError
from mote_runtime.profile.memory_limit import LimitedRun, run_limited

MIB = 1 << 20
RUNTIMES = ["onnxruntime", "executorch"]
SIZES = {"HIDDEN": 256, "INTERMEDIATE": 1024, "EXPERTS": 128, "LAYERS": 2, "CONTEXT": 512}
PACKED_BYTES = 2 * 128 * 3 * 256 * 1024 // 4  # 48 MiB
# Beside the weights: the activations of 250 positions, and what the first run of a library allocates.
SCRATCH_BYTES = 16 * MIB

Export = Callable[[str], Path]


def write_onnx(folder: Path) -> None:
    with patch.multiple(tiny, **SIZES):
        tiny.write_export(folder, text_only=True)


def write_executorch(folder: Path) -> None:
    """A decoder of experts alone, with weights of the same bytes."""
    torch = pytest.importorskip("torch")
    exir = pytest.importorskip("executorch.exir")
    from executorch.exir.passes import MemoryPlanningPass

    import mote_export.ops  # noqa: F401  registers the operator

    hidden, intermediate, experts = SIZES["HIDDEN"], SIZES["INTERMEDIATE"], SIZES["EXPERTS"]
    random = np.random.default_rng(7)

    def ternary(*shape: int) -> Any:
        codes = random.integers(0, 3, (4, *shape), np.uint8)
        return torch.from_numpy(codes[0] | codes[1] << 2 | codes[2] << 4 | codes[3] << 6)

    class Decoder(torch.nn.Module):  # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.head = torch.nn.Linear(hidden, tiny.VOCAB, bias=False)
            for layer in range(SIZES["LAYERS"]):
                self.register_buffer(f"router_{layer}", torch.randn(experts, hidden) / 16)
                self.register_buffer(
                    f"gate_up_{layer}", ternary(experts, intermediate // 16, 2, hidden // 16, tiny.LINE)
                )
                self.register_buffer(f"down_{layer}", ternary(experts, hidden // 16, intermediate // 16, tiny.LINE))
            self.register_buffer("scale", torch.full((experts, 2), 0.1))

        def forward(self, inputs_embeds, positions):  # type: ignore[no-untyped-def]
            x = inputs_embeds
            for layer in range(SIZES["LAYERS"]):
                router, gate_up, down = (getattr(self, f"{name}_{layer}") for name in ("router", "gate_up", "down"))
                scales = self.scale, self.scale[:, 0].contiguous()
                weights = (router, gate_up, scales[0], down, scales[1], None, None, None, None)
                x = x + torch.ops.mote.ternary_moe(
                    x, *weights, experts, 1, False, intermediate, "silu", "2bit", 1, "none", 0
                )
            return self.head(x[:, -1] + 0.0 * positions[-1])

    torch.manual_seed(0)
    length = torch.export.Dim("length", min=1, max=64)
    modules = {
        "token_embedding": (torch.nn.Embedding(tiny.VOCAB, hidden), (torch.zeros(1, 5, dtype=torch.int64),)),
        "text_decoder": (Decoder(), (torch.zeros(1, 5, hidden), torch.arange(5))),
    }
    shapes: dict[str, Any] = {
        "token_embedding": ({1: length},),
        "text_decoder": ({1: length}, {0: length}),
    }
    programs = {
        name: torch.export.export(module.eval(), example, dynamic_shapes=shapes[name], strict=False)
        for name, (module, example) in modules.items()
    }
    lengths = {"get_max_seq_len": 64, "get_max_context_len": SIZES["CONTEXT"]}
    edge = exir.to_edge_transform_and_lower(
        programs, constant_methods=lengths, compile_config=exir.EdgeCompileConfig(_check_ir_validity=False)
    )
    config = exir.ExecutorchBackendConfig(memory_planning_pass=MemoryPlanningPass(alloc_graph_input=False))
    with (folder / "model.pte").open("wb") as file:
        edge.to_executorch(config).write_to_file(file)
    tiny.tokenizer().save(str(folder / "tokenizer.json"))
    with patch.multiple(tiny, **SIZES):
        tiny.write_manifest(folder, text_only=True, target="executorch")


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Export:
    writers, made = {"onnxruntime": write_onnx, "executorch": write_executorch}, {}

    def of(runtime: str) -> Path:
        if runtime not in made:
            made[runtime] = tmp_path_factory.mktemp(runtime)
            writers[runtime](made[runtime])
        return made[runtime]

    return of


class Worker:
    """A process that has the model."""

    def __init__(self, folder: Path) -> None:
        command = [sys.executable, memory_worker.__file__, str(folder)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __call__(self, word: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()
        result: dict[str, Any] = json.loads(self.process.stdout.readline())
        return result


@pytest.fixture
def workers(export: Export) -> Iterator[Callable[[str], Worker]]:
    running: list[Worker] = []

    def start(runtime: str) -> Worker:
        running.append(Worker(export(runtime)))
        return running[-1]

    yield start
    for worker in running:
        worker.process.communicate()


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_weights_stay_in_the_file_are_shared_and_may_be_dropped(workers: Callable[[str], Worker], runtime: str) -> None:
    worker, other = workers(runtime), workers(runtime)
    before, opened, answered = worker("wait"), worker("open"), worker("answer")
    # Opening maps them and reads next to nothing; an answer brings in what it needs, as pages of the file.
    assert opened["mapped"]["size"] >= PACKED_BYTES
    assert opened["mapped"]["resident"] < PACKED_BYTES // 4
    assert answered["mapped"]["resident"] > PACKED_BYTES // 2
    assert answered["mapped"]["anonymous"] == answered["mapped"]["locked"] == 0
    assert answered["anonymous"] - before["anonymous"] < SCRATCH_BYTES < PACKED_BYTES // 2

    # A second process finds them there.
    other("open")
    assert other("answer")["tokens"] == answered["tokens"]
    for each in (worker, other):
        mapped = each("wait")["mapped"]
        assert mapped["share"] < 0.6 * mapped["resident"]
    other.process.communicate()

    # Dropped behind its back, they are read again.
    dropped, again = worker("drop"), worker("answer")
    assert dropped["mapped"]["resident"] < PACKED_BYTES // 4
    assert again["mapped"]["resident"] > PACKED_BYTES // 2
    assert again["tokens"] == answered["tokens"]


def run_with(folder: Path, limit: int, *words: str) -> LimitedRun:
    files = [path for path in folder.iterdir() if path.is_file()]
    try:
        return run_limited([sys.executable, memory_worker.__file__, folder, *words], limit, cold=files, timeout=120)
    except MoteError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("runtime", ["onnxruntime", pytest.param("executorch", marks=pytest.mark.long)])
def test_an_answer_with_less_memory_than_weights_is_the_same(export: Export, runtime: str) -> None:
    folder = export(runtime)
    free = run_with(folder, 1 << 40, "open", "answer")
    reports = [json.loads(line) for line in free.stdout.splitlines()]
    # What cannot be dropped, and 60 % of the weights.
    limit = max(report["anonymous"] for report in reports) + 6 * MIB + PACKED_BYTES * 6 // 10
    limited = run_with(folder, limit, "open", "answer", "answer")
    assert (limited.returncode, limited.killed, limited.stderr) == (0, False, "")
    assert limited.peak_bytes <= limit
    lines = [json.loads(line)["tokens"] for line in limited.stdout.splitlines()]
    assert lines[1:] == [reports[1]["tokens"]] * 2
    # The limit is one: a process that copies the files instead does not get far.
    assert run_with(folder, limit, "open", "copy", "answer").killed


def test_a_long_prompt_takes_the_memory_of_a_chunk_and_a_long_context_that_of_what_is_used(tmp_path: Path) -> None:
    context, layers, kv_values = 1 << 17, 2, tiny.KV_HEADS * tiny.HEAD_DIM
    cache = 2 * layers * context * kv_values * 4  # 64 MiB
    with patch.multiple(tiny, HIDDEN=256, INTERMEDIATE=512, EXPERTS=4, LAYERS=layers, CONTEXT=context):
        tiny.write_export(tmp_path, text_only=True)

    def anonymous(*words: str) -> list[int]:
        done = subprocess.run(
            [sys.executable, memory_worker.__file__, tmp_path, "wait", "open", *words],
            stdout=subprocess.PIPE, text=True, check=True,
        )  # fmt: skip
        return [json.loads(line)["anonymous"] for line in done.stdout.splitlines()]

    before, opened, chunk, long = anonymous("prompt=512", "prompt=4000")
    assert opened - before < cache // 4
    embeddings, used = 4000 * 256 * 4, cache * 4000 // context
    growth = long - chunk
    assert growth < embeddings + used + 12 * MIB
    *_, whole = anonymous("chunk=4000", "prompt=4000")
    assert whole - opened > 2 * growth, "in one piece it takes more, or this measures nothing"


@pytest.mark.long
def test_a_prompt_of_4000_tokens_is_answered_as_by_torch(tmp_path: Path) -> None:
    import torch
    from tiny import tiny_text_checkpoint, tiny_text_config
    from transformers import Qwen2Config

    from mote_export.exporter import export
    from mote_runtime import load

    # One expert: among several, a prompt this long would meet ties that rounding decides.
    checkpoint = tiny_text_checkpoint(tiny_text_config(Qwen2Config, max_position_embeddings=4096), num_experts=1)
    export(checkpoint, tmp_path / "export", ["onnx", "executorch"], verify=False)
    ids = np.random.default_rng(0).integers(0, 256, 4000).tolist()
    with torch.no_grad():
        expected = checkpoint.model(input_ids=torch.tensor([ids])).logits[0, -1].float().numpy()
    for runtime in RUNTIMES:
        with load(tmp_path / "export", runtime, threads=2) as pipeline:
            assert pipeline.manifest.model.context_length == 4096
            whole, *_, last = pipeline.step_logits(ids, list(range(90)))
            assert np.sqrt(((whole - expected) ** 2).mean()) < 0.02 * expected.std()
            assert np.array_equal(last, pipeline.step_logits(ids, list(range(90)))[-1])
            for chunk in (64, 300):
                pipeline._backend._chunk = chunk  # type: ignore[union-attr]
                assert np.sqrt(((pipeline.step_logits(ids)[0] - expected) ** 2).mean()) < 0.02 * expected.std()


def test_a_limited_run_says_how_it_ended(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(40 * MIB))

    def python(code: str) -> LimitedRun:
        try:
            return run_limited([sys.executable, "-c", code, str(tmp_path / "file")], 64 * MIB, timeout=60)
        except MoteError as error:
            pytest.skip(str(error))

    failed = python("import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)")
    assert (failed.returncode, failed.stdout, failed.stderr, failed.killed) == (3, "out\n", "err\n", False)
    assert 0 < failed.peak_bytes < 64 * MIB
    greedy = python("kept = bytearray(80 << 20)")
    assert (greedy.returncode, greedy.killed) == (-9, True)
    # Pages of files are dropped for others.
    reader = python(
        "import sys\nwith open(sys.argv[1], 'rb') as file:\n    while file.read(1 << 20): pass\nkept = b'x' * (40 << 20)"
    )
    assert (reader.returncode, reader.killed) == (0, False)
