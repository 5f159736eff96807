"""The native runner: the answers of mote_runtime, a complete record, and one sentence where something is wrong."""

import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import tiny_onnx_export as tiny
from arm import build_arm_runner, qemu_command

import mote_runtime
from mote_runtime import get_library_path
from mote_runtime.preprocess import preprocess_image
from mote_runtime.profile.prompt import write_prompt
from mote_runtime.profile.record import Record
from mote_runtime.profile.trace.inner import read_events

IMAGES = Path(__file__).parents[1] / "examples" / "digits_vqa" / "images"
FOLDERS = {"onnxruntime": "onnx", "executorch": "executorch"}
RUNTIMES = sorted(FOLDERS)
QUESTIONS = [
    ("What is the sum of the digits?", ["scene-5.png"]),
    ("Is there a 7?", ["scene-3.png"]),
    ("How many digits are there?", ["scene-0.png", "scene-1.png"]),
    ("What is the sum of the digits?", []),
]
MAX_NEW_TOKENS = 12
ORT_LIBRARY = next((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*"))


def host_runner() -> Path:
    program = Path(str(metadata.distribution("mote").locate_file("mote_runtime/bin/mote-runner")))
    assert program.is_file(), "run `make build`"
    return program


class Questions:
    """The prompts' files of one export, and the answers of mote_runtime to them."""

    def __init__(self, export: Path, folder: Path) -> None:
        self.prompts: list[Path] = []
        self.answers: list[list[int]] = []
        with mote_runtime.load(export, threads=1) as model:
            assert model.manifest.image is not None
            for question, names in QUESTIONS:
                ids = model.tokenizer.encode_prompt(question, len(names))
                pixels = None
                if names:
                    pixels = np.stack([preprocess_image(IMAGES / name, model.manifest.image) for name in names])
                self.prompts.append(folder / f"prompt-{len(self.prompts)}.bin")
                write_prompt(self.prompts[-1], model.manifest, ids, pixels, ignore_eos=False)
                self.answers.append(model.generate_ids(ids, pixels, MAX_NEW_TOKENS))


@pytest.fixture(scope="module")
def questions(demo_export: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Questions]:
    made: dict[str, Questions] = {}

    def of(runtime: str) -> Questions:
        if runtime not in made:
            made[runtime] = Questions(demo_export / FOLDERS[runtime], tmp_path_factory.mktemp(runtime))
        return made[runtime]

    return of


def command(runtime: str, model: Path, prompt: Path, output: Path, *more: str | Path) -> list[str | Path]:
    """The arguments after the program's name, without those that say where libraries are."""
    return [
        *("--runtime", runtime, "--model", model, "--prompt", prompt, "--output", output),
        *("--max-new-tokens", str(MAX_NEW_TOKENS), *more),
    ]


def run(runtime: str, *arguments: str | Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    libraries = ["--runtime-library", str(ORT_LIBRARY), "--plugin", str(get_library_path(runtime))]  # type: ignore[arg-type]
    return subprocess.run([host_runner(), *arguments, *libraries], capture_output=True, text=True, env=env)


def read_record(path: Path) -> tuple[dict[str, Any], Record]:
    document = json.loads(path.read_text())
    return document, Record.from_json(document)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_answers_are_those_of_mote_runtime(
    runtime: str, demo_export: Path, questions: Callable[[str], Questions], tmp_path: Path
) -> None:
    asked = questions(runtime)
    assert len({tuple(answer) for answer in asked.answers}) > 2, "the questions tell answers apart"
    for threads, (prompt, answer) in enumerate(zip(asked.prompts, asked.answers, strict=True), start=1):
        output = tmp_path / "record.json"
        arguments = command(runtime, demo_export / FOLDERS[runtime], prompt, output, "--repetitions", "2")
        result = run(runtime, *arguments, "--threads", str(threads))
        assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
        _, record = read_record(output)
        assert [list(repetition.token_ids) for repetition in record.repetitions] == [answer, answer]
        assert record.threads == threads


@pytest.mark.parametrize("int8_cache", [False, True])
def test_prompts_longer_than_a_chunk_and_caches_in_int8(
    int8_cache: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny, "INT8_CACHE", int8_cache)
    monkeypatch.setattr(tiny, "CONTEXT", 1200)
    export = tiny.write_export(tmp_path / "export")
    ids = np.random.default_rng(0).integers(0, 256, 1100).tolist()
    ids[500:504], ids[1030:1034] = [tiny.IMAGE_PAD] * 4, [tiny.IMAGE_PAD] * 4
    pixels = np.random.default_rng(1).standard_normal((2, 3, tiny.SIDE, tiny.SIDE)).astype(np.float32)
    with mote_runtime.load(export, threads=1) as model:
        expected = model.generate_ids(ids, pixels, MAX_NEW_TOKENS)
        write_prompt(tmp_path / "prompt.bin", model.manifest, ids, pixels, ignore_eos=False)
    assert len(set(expected)) > 1
    result = run("onnxruntime", *command("onnxruntime", export, tmp_path / "prompt.bin", tmp_path / "record.json"))
    assert (result.returncode, result.stderr) == (0, "")
    _, record = read_record(tmp_path / "record.json")
    assert list(record.repetitions[0].token_ids) == expected


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_record_is_complete(
    runtime: str, demo_export: Path, questions: Callable[[str], Questions], tmp_path: Path
) -> None:
    output, trace, profile = tmp_path / "record.json", tmp_path / "trace.bin", tmp_path / "profile"
    core = sorted(os.sched_getaffinity(0))[0]
    files = ["--trace", trace, "--runtime-trace", profile]
    prompt, answer = questions(runtime).prompts[0], questions(runtime).answers[0]
    arguments = command(runtime, demo_export / FOLDERS[runtime], prompt, output, *files)
    result = run(runtime, *arguments, "--cores", str(core), "--warmup", "0", "--repetitions", "3")
    assert (result.returncode, result.stderr) == (0, "")
    document, record = read_record(output)

    assert document["tool"] == f"mote-runner {metadata.version('mote')}"
    assert record.runtime_version == metadata.version(runtime)
    assert record.isa is not None
    assert (record.runtime, record.cores, record.threads, record.warmup) == (runtime, (core,), 1, 0)
    assert record.model_load_start_ms < record.model_load_end_ms <= record.repetitions[0].inference_start_ms
    assert len(record.repetitions) == 3
    for repetition in record.repetitions:
        steps = len(answer) + (len(answer) < MAX_NEW_TOKENS)  # the last one chose the end
        assert repetition.decode_steps == steps - 1
        assert repetition.prompt_tokens == struct.unpack_from("<I", prompt.read_bytes(), 8)[0]
        assert repetition.image_encode_end_ms > repetition.token_encode_end_ms
        assert repetition.token_ms[0] == repetition.first_token_ms
        assert repetition.decode_token_per_sec > 0
    samples = record.memory.samples
    assert [sample[0] for sample in samples] == sorted(sample[0] for sample in samples)
    assert record.memory.peak_anonymous_bytes == max(sample[1] for sample in samples) > 1 << 20
    assert record.memory.peak_file_bytes > 1 << 20

    check_trace(trace, record)
    written = sorted(path.name for path in tmp_path.iterdir())
    if runtime == "onnxruntime":
        assert written == ["profile", "profile.embedding", "profile.vision", "record.json", "trace.bin"]
        names = {
            event["args"].get("op_name") for event in json.loads(profile.read_text()) if event.get("cat") == "Node"
        }
        assert {"TernaryMoE", "GroupQueryAttention"} <= names
    else:
        assert written == ["profile", "record.json", "trace.bin"]
        content = profile.read_bytes()
        assert content[8:12] == b"ED00"
        assert b"mote::ternary_moe.out" in content
        assert b"llama::custom_sdpa.out" in content


def check_trace(path: Path, record: Record) -> None:
    """The inner phases: every layer in every pass of the measured repetitions, at their times."""
    events = read_events(path, "trace")
    assert record.monotonic_to_epoch_ms is not None
    passes = sum(1 + repetition.decode_steps for repetition in record.repetitions)
    layers = np.unique(events["layer"]).size
    assert layers == 4
    assert np.unique(events["call"]).size == passes * layers
    first, last = (
        edge / 1e6 + record.monotonic_to_epoch_ms for edge in (events["begin_ns"].min(), events["end_ns"].max())
    )
    assert record.repetitions[0].inference_start_ms <= first
    assert last <= record.repetitions[-1].inference_end_ms


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_one_sentence_says_what_is_wrong(
    runtime: str, demo_export: Path, questions: Callable[[str], Questions], tmp_path: Path
) -> None:
    good, prompt = demo_export / FOLDERS[runtime], questions(runtime).prompts[0]
    content = prompt.read_bytes()
    damaged = tmp_path / "damaged"
    shutil.copytree(good, damaged)
    name = "model.onnx" if runtime == "onnxruntime" else "model.pte"
    (damaged / name).write_bytes((good / name).read_bytes()[:5000])
    files = {
        "cut": content[:-1],
        "other": b"MOTEPRM2" + content[8:],
        "id": content[:40] + struct.pack("<q", 100_000) + content[48:],
        "context": content[:36] + struct.pack("<I", 1 << 19) + content[40:],
        "height": content[:24] + struct.pack("<2I", 24, 96) + content[32:],  # as many pixels
        "places": content[:32] + struct.pack("<I", 7) + content[36:],
    }
    for key, bytes_of_file in files.items():
        (tmp_path / key).write_bytes(bytes_of_file)
    many = "model.pte: get_max_context_len" if runtime == "executorch" else ""
    cases = [
        (good, tmp_path / "none", "none cannot be read: No such file or directory"),
        (good, tmp_path, "is not a file"),
        (good, tmp_path / "cut", "its header says"),
        (good, tmp_path / "other", "does not begin with MOTEPRM1"),
        (good, tmp_path / "id", "token id 100000 is not in the model's vocabulary of"),
        (good, tmp_path / "height", "24"),
        (good, tmp_path / "places", "image tokens, expected 16 for 1 images"),
        (damaged, prompt, f"cannot load {name}"),
        (tmp_path, prompt, f"{name} does not exist"),
        *([(good, tmp_path / "context", many)] if many else []),
    ]
    for model, file, sentence in cases:
        output = tmp_path / "record.json"
        result = run(runtime, *command(runtime, model, file, output, "--repetitions", "1", "--warmup", "0"))
        assert result.returncode == 1, sentence
        assert sentence in result.stderr
        assert result.stderr.startswith("mote-runner: ")
        assert result.stderr.count("\n") == 1, result.stderr
        assert not output.exists()
    assert not [path for path in tmp_path.iterdir() if "unfinished" in path.name]


def test_a_damaged_program_is_refused(demo_export: Path, questions: Callable[[str], Questions], tmp_path: Path) -> None:
    """ExecuTorch, left to itself, follows damaged offsets out of the file."""
    program = (demo_export / "executorch" / "model.pte").read_bytes()
    (structure,) = struct.unpack_from("<Q", program, 16)  # bytes before the weights
    generator = np.random.default_rng(1)
    for _ in range(12):
        damaged = bytearray(program)
        for place in generator.integers(32, structure, 20):
            damaged[place] = generator.integers(256)
        (tmp_path / "model.pte").write_bytes(damaged)
        arguments = command("executorch", tmp_path, questions("executorch").prompts[3], tmp_path / "record.json")
        result = run("executorch", *arguments)
        assert result.returncode == 1, result.stderr
        assert result.stderr.startswith("mote-runner: ")


def test_what_cannot_be_is_found_before_the_model_is_opened(
    questions: Callable[[str], Questions], tmp_path: Path
) -> None:
    prompt, output = questions("onnxruntime").prompts[3], tmp_path / "record.json"
    cases = [
        (tmp_path / "none" / "record.json", [], "none/record.json cannot be written: No such file or directory"),
        (tmp_path, [], "cannot be written: it is there, and not a file"),
        (Path("/dev/null"), [], "/dev/null cannot be written: it is there, and not a file"),
        (output, ["--trace", str(tmp_path)], "cannot be written: it is there, and not a file"),
        (output, ["--runtime-trace", str(tmp_path / "none" / "p")], "none/p cannot be written"),
        (output, ["--cores", "0,1023"], "core 1023 of --cores does not exist or may not be used"),
    ]
    for file, more, sentence in cases:
        result = run("onnxruntime", *command("onnxruntime", tmp_path / "no-model", prompt, file, *more))
        assert (result.returncode, result.stderr.count("\n")) == (1, 1), result.stderr
        assert sentence in result.stderr
    assert not list(tmp_path.iterdir())
    assert not Path("/dev/null").is_file()


def test_a_failure_leaves_no_profile_half_written(
    demo_export: Path, questions: Callable[[str], Questions], tmp_path: Path
) -> None:
    (tmp_path / "profile.embedding").mkdir()
    arguments = command("onnxruntime", demo_export / "onnx", questions("onnxruntime").prompts[0], tmp_path / "o.json")
    result = run("onnxruntime", *arguments, "--repetitions", "1", "--runtime-trace", tmp_path / "profile")
    assert result.returncode == 1
    assert "profile.embedding cannot be written: Is a directory" in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["profile", "profile.embedding"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "--runtime is missing"),
        (["--runtime", "tflite"], '--runtime is "tflite", expected onnxruntime or executorch'),
        (["--threads", "0"], '--threads is "0", expected a number from 1 to 1024'),
        (["--threads", "-1"], '--threads is "-1"'),
        (["--repetitions", "1e3"], '--repetitions is "1e3"'),
        (["--repetitions", "99999999999999999999"], '--repetitions is "99999999999999999999"'),
        (["--cores", "0,,1"], '--cores is ""'),
        (["--color", "red"], "--color is no option"),
        (["--model"], "--model is no option, or has no value"),
        (["--model", ""], "--model is empty"),
        (["--runtime", "onnxruntime", "--model", "m", "--prompt", "p"], "--output is missing"),
    ],
)
def test_usage_errors(arguments: list[str], sentence: str) -> None:
    result = subprocess.run([host_runner(), *arguments], capture_output=True, text=True)
    assert result.returncode == 2
    assert sentence in result.stderr
    assert result.stderr.count("\n") == 1


def test_it_says_its_version_and_its_options() -> None:
    version = subprocess.run([host_runner(), "--version"], capture_output=True, text=True)
    assert (version.returncode, version.stdout) == (0, f"mote-runner {metadata.version('mote')}\n")
    usage = subprocess.run([host_runner(), "--help"], capture_output=True, text=True)
    assert usage.returncode == 0
    assert {"--model", "--runtime", "--prompt", "--output", "--trace"} <= set(usage.stdout.split())


def test_a_missing_runtime_is_one_sentence(
    demo_export: Path, questions: Callable[[str], Questions], tmp_path: Path
) -> None:
    arguments = command("onnxruntime", demo_export / "onnx", questions("onnxruntime").prompts[3], tmp_path / "o.json")
    result = subprocess.run([host_runner(), *arguments, "--runtime-library", "none.so"], capture_output=True, text=True)
    assert result.returncode == 1
    assert "ONNX Runtime cannot be loaded (none.so: cannot open shared object file" in result.stderr
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(host_runner(), alone)
    prompt = questions("onnxruntime").prompts[3]
    arguments = command("executorch", demo_export / "executorch", prompt, tmp_path / "o.json")
    result = subprocess.run([alone / "mote-runner", *arguments], capture_output=True, text=True)
    assert result.returncode == 1
    assert "the runner's half for ExecuTorch cannot be loaded" in result.stderr
    assert result.stderr.count("\n") == 1


ATTENTION = """
import ctypes, sys
import numpy as np
import torch
import executorch.extension.pybindings.portable_lib as portable_lib
from mote_runtime.library import load_executorch_library
whose, library, program, output = sys.argv[1:]
if whose == "ours":
    ctypes.CDLL(library)
else:
    import executorch.extension.llm.custom_ops.custom_ops
load_executorch_library()
module = portable_lib._load_for_executorch(program)
hidden = module.method_meta("text_decoder").input_tensor_meta(0).sizes()[2]
generator = torch.Generator().manual_seed(1)
position, logits = 0, []
for length in (30, 1, 1, 7, 65, 1):
    x = torch.randn(1, length, hidden, generator=generator)
    logits.append(module.run_method("text_decoder", (x, torch.arange(position, position + length)))[0].numpy().copy())
    position += length
np.save(output, np.concatenate(logits))
"""


def test_attention_agrees_with_executorchs_own_kernels(demo_export: Path, tmp_path: Path) -> None:
    """The same program in two processes, which differ in who registered llama::custom_sdpa and llama::update_cache."""
    library = host_runner().with_name("libmote_runner_executorch.so")
    logits = []
    for whose in ("ours", "theirs"):
        output = tmp_path / f"{whose}.npy"
        arguments = [whose, library, demo_export / "executorch" / "model.pte", output]
        result = subprocess.run([sys.executable, "-c", ATTENTION, *arguments], capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        logits.append(np.load(output))
    ours, theirs = logits
    assert not np.array_equal(ours, theirs), "two implementations never agree to the last bit"
    # Differences of 1e-6 can carry an int8 code of an expert's input over a rounding boundary (docs/architecture.md).
    error = np.sqrt(np.mean((ours - theirs) ** 2, axis=1)) / theirs.std(axis=1)
    assert error.max() < 0.02
    assert np.median(error) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_answers_on_arm_are_the_same(
    runtime: str, demo_export: Path, questions: Callable[[str], Questions], tmp_path: Path
) -> None:
    program = build_arm_runner(tmp_path)
    asked, output = questions(runtime), tmp_path / "record.json"
    arguments = command(runtime, demo_export / FOLDERS[runtime], asked.prompts[0], output, "--threads", "2")
    emulated = qemu_command(tmp_path, program, *arguments, "--repetitions", "1", "--warmup", "0")
    result = subprocess.run(emulated, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    _, record = read_record(output)
    assert list(record.repetitions[0].token_ids) == asked.answers[0]
    assert record.isa is not None
    assert record.isa.startswith("neon")
