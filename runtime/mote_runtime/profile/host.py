"""Profiles exports on this machine: finds them, completes the settings, runs the workers, and hands everything to `build`."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from mote_runtime.backends import RUNTIMES
from mote_runtime.errors import ExportFolderError, ImageError, MoteError
from mote_runtime.manifest import MANIFEST_NAME, Manifest, Verification
from mote_runtime.pipeline import find_export
from mote_runtime.preprocess import load_image
from mote_runtime.profile import facts, session
from mote_runtime.profile.bandwidth import measure_bandwidth
from mote_runtime.profile.build import Circumstances, MeasuredRun, Profile, build_profile
from mote_runtime.profile.comparison import compare_records
from mote_runtime.profile.energy import EnergyMeter
from mote_runtime.profile.measures import GREATEST_SLOWDOWN, slowdown
from mote_runtime.profile.record import Record
from mote_runtime.profile.sample import DEFAULT_PROMPT, DEFAULT_TEXT_PROMPT
from mote_runtime.profile.settings import DEFAULT_MAX_NEW_TOKENS, TRACE_SOURCES, Settings
from mote_runtime.tokenizer import PromptTokenizer


@dataclass(frozen=True, slots=True)
class Subject:
    """One run to come: how it is called, and its settings."""

    label: str
    settings: Settings


def find_exports(folder: Path, runtime: str | None) -> dict[str, Path]:
    """The exported folders by runtime: `folder` itself, or all of its subfolders, or the one for `runtime`. Raises MoteError."""
    if runtime is None and not (folder / MANIFEST_NAME).exists():
        found = {name: folder / entry.subfolder for name, entry in RUNTIMES.items()}
        found = {name: path for name, path in found.items() if (path / MANIFEST_NAME).is_file()}
        if found:
            return found
    path = find_export(folder, runtime)
    manifest = Manifest.read(path)
    if runtime not in (None, manifest.target):
        raise ExportFolderError(f"{path} was exported for {manifest.target}, not for {runtime}; leave --runtime out")
    return {manifest.target: path}


def pair_exports(a: Path, b: Path, runtime: str | None) -> list[tuple[Path, Path]]:
    """The exports of both that are compared: those for the same runtime, or the only one of each. Raises MoteError."""
    first, second = find_exports(a, runtime), find_exports(b, runtime)
    common = [name for name in first if name in second]
    if common:
        return [(first[name], second[name]) for name in common]
    if len(first) == len(second) == 1:
        return [(next(iter(first.values())), next(iter(second.values())))]
    raise MoteError(
        f"{a} and {b} have no runtime in common: {', '.join(first)} and {', '.join(second)}; export both for one"
    )


def settings_for(folder: Path, common: Settings, *, verify: bool | None) -> Settings:
    """`common` completed for one export: its folder, the default question, and as many tokens as the context holds.

    Files are verified here once, so that loading, which is measured, does not read them all for their sums. Raises MoteError.
    """
    manifest = Manifest.read(folder)
    manifest.verify(Verification.of(verify))
    image = common.image if manifest.image is not None else None
    if common.image and manifest.image is None:
        raise ImageError(f"model {manifest.model.name!r} is text only; leave the image out")
    if image:
        load_image(image)  # or every worker would say it
        image = str(Path(image).resolve())
    prompt = common.prompt or (DEFAULT_TEXT_PROMPT if image is None else DEFAULT_PROMPT)
    tokenizer = PromptTokenizer(manifest.path("tokenizer.json"), manifest.model, manifest.prompt)
    tokens = len(tokenizer.encode_prompt(prompt, 0 if image is None else 1))
    context = manifest.model.context_length
    room = context - tokens + 1  # the last token is never fed back
    if room < 1:
        raise MoteError(
            f"the prompt is {tokens} tokens long, but the model's context holds {context}; shorten the prompt"
        )
    if common.max_new_tokens > room:
        raise MoteError(
            f"--max-new-tokens is {common.max_new_tokens}, but after a prompt of {tokens} tokens the context of {context} "
            f"has room for {room}; ask for that many or fewer"
        )
    wanted = common.max_new_tokens or min(DEFAULT_MAX_NEW_TOKENS, room)
    return replace(common, folder=str(folder.resolve()), prompt=prompt, image=image, max_new_tokens=wanted)


def profile(
    subjects: Sequence[Subject], command: Sequence[str], progress: session.Progress, *, in_turns: bool
) -> Profile:
    """Measure all subjects, trace them, and build the profile; raises MoteError.

    With `in_turns` the subjects are pairs A, B, A, B, ...: the answers of a pair take turns, and it is compared.
    """
    groups = (
        [subjects[start : start + 2] for start in range(0, len(subjects), 2)]
        if in_turns
        else [[each] for each in subjects]
    )
    device = facts.device_facts()
    runs: list[MeasuredRun] = []
    for group in groups:
        records = session.measure([subject.settings for subject in group], progress)
        for subject, record in zip(group, records, strict=True):
            runs.append(_traced(subject, record, progress))
    settings = subjects[0].settings
    progress("reading memory for its limit")
    circumstances = Circumstances(
        device=device,
        versions=facts.version_facts(),
        command=command,
        memory_limit=measure_bandwidth(facts.thread_count(settings.threads, settings.cores), settings.cores),
        no_energy=EnergyMeter().reason,
    )
    pairs = zip(runs[::2], runs[1::2], strict=True) if in_turns else ()
    comparisons = [compare_records((a.label, b.label), a.record, b.record) for a, b in pairs]
    return build_profile(runs, circumstances, comparisons)


def _traced(subject: Subject, record: Record, progress: session.Progress) -> MeasuredRun:
    """The run with its trace; where the runtime's own profiler slowed it down, phases are recorded once more without it."""
    settings = subject.settings
    manifest = Manifest.read(settings.path)
    model = facts.model_facts(manifest)
    if not settings.trace_sources:
        return MeasuredRun(subject.label, model, settings.to_json(), record)
    traced_record, trace = session.trace(settings, progress)
    light = None
    if (
        manifest.plugin_library is not None
        and set(settings.trace_sources) == set(TRACE_SOURCES)
        and (slowdown(record, traced_record) or 1.0) > GREATEST_SLOWDOWN
    ):
        light = session.trace(replace(settings, trace_sources=("phases",)), progress)
    return MeasuredRun(subject.label, model, settings.to_json(), record, trace, traced_record, light)


@contextlib.contextmanager
def progress(*, quiet: bool) -> Iterator[session.Progress]:
    """Says on stderr what is being done: one line that changes in a terminal, nothing elsewhere."""
    console = Console(stderr=True, quiet=quiet)
    if quiet or not console.is_terminal:
        yield lambda _: None
        return
    with console.status("") as status:
        yield lambda text: status.update(text)
