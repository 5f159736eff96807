"""The whole of an export in one function: load, rewrite, export, lower, verify, describe, and only then put in place."""

import importlib.util
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from tqdm import tqdm

from mote_export.atomic import atomic_folder, check_output, check_room
from mote_export.budget import Budget, choose, estimate_bytes
from mote_export.checkpoint import Checkpoint, open_path
from mote_export.defaults import (
    DEFAULT_CONTEXT,
    DEFAULT_FULL_EXPERTS,
    DEFAULT_KV_CACHE,
    DEFAULT_OPSET,
    DEFAULT_RTOL,
)
from mote_export.kv_cache import KvCache, calibrate, random_prompt
from mote_export.manifest import Source, add_verification, check_manifest, num_image_tokens, write_manifest
from mote_export.model import MoteModel
from mote_export.passes import (
    PackedLinear,
    PackOptions,
    apply_passes,
    pack_ternary_experts,
    pack_ternary_linear,
    quantize_passes,
    stock_moe,
)
from mote_export.passes.pack_ternary_experts import PackedTernaryExperts
from mote_export.passes.pack_ternary_linear import PackedTernaryLinear
from mote_export.passes.quantize_linear import set_activations
from mote_export.report import ExpertMemory, StoredPart, expert_memory, stored_parts
from mote_export.scratch import Scratch, release_heap
from mote_export.targets import TARGETS, ExportSettings, Target
from mote_export.text_tokens import QUESTION
from mote_export.tokens import load_tokenizer, tokenizer_files
from mote_export.verify import Sample, Verification, default_samples, prompt_inputs, verify_folder
from mote_export.weights import shared_copy
from mote_runtime.arrays import FloatArray
from mote_runtime.errors import MoteError
from mote_runtime.library import get_library_path
from mote_runtime.manifest import MANIFEST_NAME, Manifest
from mote_runtime.tokenizer import PromptTokenizer

ROOM_FOR_TEXT = 32  # tokens of the prompt's frame, a short question and a short answer


@dataclass(frozen=True)
class ExportResult:
    """A finished export of one target.

    Attributes:
        target: "onnx" or "executorch".
        folder: where it lies; `mote_runtime.load` opens it.
        files: name to bytes of each file in the folder.
        memory: what the experts take, in bytes.
        verification: what was compared with torch; None where that was switched off.
        stored: linear layers and embedding that are stored as integers.
        kv_cache: how keys and values are stored; None for float32.
    """

    target: str
    folder: Path
    files: dict[str, int]
    memory: ExpertMemory
    verification: Verification | None
    stored: tuple[StoredPart, ...] = ()
    kv_cache: KvCache | None = None


def export(
    source: Path | Checkpoint,
    output: Path,
    targets: Sequence[str],
    *,
    context_length: int | None = None,
    opset: int = DEFAULT_OPSET,
    rtol: float = DEFAULT_RTOL,
    verify: bool = True,
    samples: Sequence[Sample] = (),
    pack: PackOptions | Budget | None = None,
    portable: bool = False,
    vision_tower: Path | None = None,
) -> list[ExportResult]:
    """Exports a checkpoint to one or more targets; `output` appears complete and verified, or not at all.

    Args:
        source: model.pt, a folder of save_pretrained, or a checkpoint in memory, whose model stays as it is.
        output: the folder itself for one target; with several, each gets a subfolder of its name. Must be absent or empty.
        context_length: positions in the KV cache; default: the model's own limit, at most 4096.
        rtol: see `verify.relative_difference`.
        samples: questions to compare on, and to calibrate a KV cache in int8 on, beside built-in ones.
        pack: how the weights are stored, by default as `mote-export` does without options; or the memory that may be taken.
        portable: the runtime's own operators compute the experts, without the plugin and slowly.
        vision_tower: see `checkpoint.open_moe_llava`.

    Raises:
        MoteError: one sentence; nothing was written.
    """
    chosen = [TARGETS[name] for name in targets]
    check_output(output)
    check_requirements(chosen, portable=portable)
    checkpoint = open_path(source, vision_tower).skeleton() if isinstance(source, Path) else _copy(source)
    settings = ExportSettings(choose_context(checkpoint, context_length), opset, portable)
    if isinstance(pack, Budget):
        name, pack, estimate = choose(checkpoint, pack, settings.context_length)
        tqdm.write(f"mote-export: within the memory budget fits {name}, with {estimate.describe()}.", file=sys.stderr)
    pack = pack or PackOptions()
    check_pack(checkpoint, pack)
    check_kv_cache(pack, chosen)
    # Each weight is once in the scratch file and once in the files of each target.
    held = estimate_bytes(checkpoint, pack, settings.context_length).on_disk * (1 + len(chosen))
    check_room(output, held, "store the weights in fewer bits, such as --preset mobile")
    # Refuse an unusable tokenizer, image processor or sample before the long work.
    manifest = check_manifest(checkpoint, settings.context_length, chosen[0].runtime, pack)
    tokenizer = check_prompt(checkpoint, manifest)
    questions = (*default_samples(checkpoint.has_vision), *check_samples(checkpoint, samples))
    is_calibrated = pack.kv_cache != DEFAULT_KV_CACHE
    prompts: list[tuple[list[int], FloatArray | None]] = []
    if is_calibrated:
        prompts = [(random_prompt(manifest.model), None)]
        prompts += [prompt_inputs(tokenizer, manifest, question) for question in questions]
    with atomic_folder(output) as temporary, Scratch(temporary.parent) as scratch:
        rewrite(checkpoint.model, pack, scratch, stock=portable)
        kv_cache = None
        if is_calibrated:
            kv_cache = calibrate(checkpoint.model, prompts, len(samples), settings.context_length)
            tqdm.write(f"mote-export: {kv_cache.describe()}", file=sys.stderr)
            if kv_cache.warning is not None:
                tqdm.write(f"mote-export: warning: {kv_cache.warning}.", file=sys.stderr)
        settings = replace(settings, has_plugin_operators=has_plugin_operators(checkpoint.model))
        origin = Source.of(source) if isinstance(source, Path) else Source(source.name, None)
        job = _Job(checkpoint, settings, pack, origin, rtol, questions if verify else (), kv_cache)
        folders = {target.name: temporary / target.name if len(chosen) > 1 else temporary for target in chosen}
        with tqdm(total=len(chosen) * (1 + verify), desc="mote-export", unit="step", disable=None) as steps:
            results = [job.run(target, folders[target.name], steps) for target in chosen]
    final = {target.name: output / target.name if len(chosen) > 1 else output for target in chosen}
    return [replace(result, folder=final[result.target]) for result in results]


def rewrite(model: MoteModel, pack: PackOptions, scratch: Scratch, *, stock: bool = False) -> None:
    """Applies all passes that targets share, in place; then no parameter is on the meta device, and all are float32.

    Weights are read, converted and kept one module at a time. `stock`: see `quantize_passes`.
    """
    total = sum(parameter.numel() for parameter in model.parameters())
    with tqdm(total=total, desc="mote-export: weights", unit="weight", unit_scale=True, disable=None) as bar:

        def done(module: torch.nn.Module) -> None:
            bar.update(sum(parameter.numel() for parameter in module.parameters()))

        apply_passes(model, quantize_passes(model, pack, stock=stock), scratch, done)
        passes = (
            stock_moe(pack),
            pack_ternary_experts(pack),
            pack_ternary_linear(pack.packing, ternarize=pack.ternarize),
        )
        apply_passes(model.get_decoder(), passes, scratch, done)
        scratch.load_parameters(model)
        release_heap()
        bar.update(total - bar.n)


def has_plugin_operators(model: torch.nn.Module) -> bool:
    """Whether a model after the passes needs the plugin."""
    return any(
        isinstance(module, PackedTernaryExperts | PackedTernaryLinear | PackedLinear) for module in model.modules()
    )


def _copy(checkpoint: Checkpoint) -> Checkpoint:
    """For the passes, which work in place, on the CPU and in eval mode; the weights are those of the model itself."""
    model = shared_copy(checkpoint.model).eval()
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = buffer.to("cpu", torch.float32 if buffer.is_floating_point() else None)
    return replace(checkpoint, model=model)


class _Job:
    """One checkpoint with packed experts on its way to its targets; it is also the reference for verification."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        settings: ExportSettings,
        pack: PackOptions,
        source: Source,
        rtol: float,
        samples: Sequence[Sample],
        kv_cache: KvCache | None,
    ) -> None:
        self.checkpoint, self.settings, self.pack, self.source = checkpoint, settings, pack, source
        self.rtol, self.samples, self.kv_cache = rtol, samples, kv_cache
        self.memory, self.stored = expert_memory(checkpoint.model), stored_parts(checkpoint.model)

    def run(self, target: Target, folder: Path, steps: "tqdm[None]") -> ExportResult:
        folder.mkdir(exist_ok=True)
        steps.set_postfix_str(f"{target.name}: export")
        target.write(self.checkpoint, self.settings, folder)
        for name, text in tokenizer_files(self.checkpoint).items():
            (folder / name).write_text(text, encoding="utf-8")
        self._describe(target, folder)
        steps.update()
        verification = None
        if self.samples:
            steps.set_postfix_str(f"{target.name}: verify")
            set_activations(self.checkpoint.model, target.activations)
            verification = verify_folder(folder, self.checkpoint.model, self.samples, self.rtol)
            add_verification(folder, asdict(verification))
            steps.update()
        files = {path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.name != MANIFEST_NAME}
        return ExportResult(target.name, folder, files, self.memory, verification, self.stored, self.kv_cache)

    def _describe(self, target: Target, folder: Path) -> None:
        write_manifest(
            folder,
            target.runtime,
            self.checkpoint,
            self.settings.context_length,
            self.pack,
            self.source,
            target.plugin_library if self.settings.needs_plugin else None,
            asdict(self.memory) | {"total": self.memory.total},
            [asdict(part) for part in self.stored],
            None if self.kv_cache is None else asdict(self.kv_cache),
        )


def check_pack(checkpoint: Checkpoint, pack: PackOptions) -> None:
    """Raises MoteError for a format of experts that the model does not have, which would else be kept in silence."""
    settings = checkpoint.model.config.moe_settings
    if settings is None and pack.full_experts != DEFAULT_FULL_EXPERTS:
        raise MoteError(f"full_experts is {pack.full_experts!r}, but {checkpoint.name!r} has no experts: leave it out.")
    if settings is not None and settings.experts != "full" and pack.full_experts != DEFAULT_FULL_EXPERTS:
        raise MoteError(
            f"full_experts is {pack.full_experts!r}, but the routed experts of {checkpoint.name!r} are ternary: leave it out."
        )


def check_kv_cache(pack: PackOptions, targets: Sequence[Target]) -> None:
    """Raises MoteError for a KV cache in int8 where a target's attention does not take one."""
    for target in targets:
        if pack.kv_cache not in target.kv_caches:
            raise MoteError(
                f"target {target.name} has no KV cache in {pack.kv_cache}: the kernels of attention that mote-runner and the "
                "Android app bring for it take float32 alone, so export with --target onnx, or leave --kv-cache out."
            )


def check_samples(checkpoint: Checkpoint, samples: Sequence[Sample]) -> Sequence[Sample]:
    """Raises MoteError for a sample with a picture where the model takes none."""
    if not checkpoint.has_vision and any(sample.image is not None for sample in samples):
        raise MoteError(f"model {checkpoint.name!r} is text only, but a sample has a picture: leave the picture out.")
    return samples


def check_prompt(checkpoint: Checkpoint, manifest: Manifest) -> PromptTokenizer:
    """The tokenizer of mote_runtime, which encodes a user's text apart from the template.

    Raises:
        MoteError: it makes other ids than clients do.
    """
    prompt = f"{manifest.prompt.user_prefix}{QUESTION}{manifest.prompt.user_suffix}"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        path.write_text(checkpoint.files[path.name], encoding="utf-8")
        tokenizer = PromptTokenizer(path, manifest.model, manifest.prompt)
    if tokenizer.encode_prompt(QUESTION) != load_tokenizer(checkpoint).encode(prompt, add_special_tokens=False).ids:
        raise MoteError(
            "the tokenizer makes other tokens of a text in a prompt than of the text alone, as some of SentencePiece's do: mote "
            "wants a byte-level tokenizer, such as Qwen2's or Llama 3's."
        )
    return tokenizer


def check_requirements(targets: Sequence[Target], *, portable: bool = False) -> None:
    """Raises MoteError where a package or a plugin that a target needs is not installed."""
    for target in targets:
        missing = [name for name in target.requires if not _importable(name)]
        if missing:
            raise MoteError(
                f"target {target.name} needs {', '.join(missing)}, which is not installed: pip install 'mote[{target.extra}]'."
            )
        if not portable:
            get_library_path(target.runtime)


def _importable(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # the parent package is missing
        return False


def choose_context(checkpoint: Checkpoint, requested: int | None) -> int:
    """The KV cache must hold a few words, and a picture if the model takes any, within the model's max_position_embeddings."""
    least = (num_image_tokens(checkpoint) or 0) + ROOM_FOR_TEXT
    limit = checkpoint.model.config.text_config.max_position_embeddings
    chosen = min(limit, DEFAULT_CONTEXT) if requested is None else requested
    if type(chosen) is not int or not least <= chosen <= limit:
        holds = "a picture and a short question" if checkpoint.has_vision else "a short question and its answer"
        raise MoteError(
            f"the context length is {chosen!r}, expected {least} ({holds}) to {limit} (the model's max_position_embeddings)."
        )
    return chosen
