"""Conversations as a data set in memory: tokens, what is learnt, and pictures read when they are asked for."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from mote_export.model.modeling import IGNORED_LABEL
from mote_export.train.conversations import ChatFormat, Conversation, EntryError, Segment, parse_entry, read_entries
from mote_export.train.settings import TrainingError
from mote_runtime.errors import ImageError
from mote_runtime.manifest import ImageSpec
from mote_runtime.preprocess import IMAGE_FORMATS, MAX_IMAGE_PIXELS, preprocess_image

Turns = Literal["joint", "independent"]
IntArray = npt.NDArray[np.int32]
SHARED, PADDING = 0, -1  # groups; turns of their own are 1, 2, ...

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Row:
    """One sequence.

    Attributes:
        input_ids, labels: int32 [S]; a label is -100 where nothing is learnt.
        image: its picture, or None.
        groups: int32 [S], 0 for what every turn sees, 1, 2, ... for turns that see themselves and group 0; None: a plain sequence.
        positions: int32 [S], as if every turn came right after group 0; None with `groups`.
    """

    input_ids: IntArray
    labels: IntArray
    image: Path | None = None
    groups: IntArray | None = None
    positions: IntArray | None = None


@dataclass(frozen=True)
class LoadedRow:
    """A row with its picture, float32 [3, height, width]."""

    row: Row
    pixels: Tensor | None


@dataclass
class Skipped:
    """What was left out, and why: reasons with their number, and the first of each in full."""

    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, reason: str, sentence: str) -> None:
        self.counts[reason] += 1
        self.first.setdefault(reason, sentence)

    def __str__(self) -> str:
        return "; ".join(f"{count} {reason}, such as: {self.first[reason]}" for reason, count in self.counts.items())


class ConversationData(Dataset[LoadedRow]):
    """Rows in the order of their files. A picture that turns out to be broken is replaced by the next good row, with a warning.

    Args:
        rows: at least one.
        spec: how pictures become pixels; None for a model without pictures.
        strict: a broken picture is an error.
    """

    def __init__(self, rows: Sequence[Row], spec: ImageSpec | None, skipped: Skipped, strict: bool = False) -> None:
        self.rows, self.skipped = rows, skipped
        self._spec, self._strict = spec, strict
        self._broken: set[int] = set()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> LoadedRow:
        for candidate in (*range(index, len(self.rows)), *range(index)):
            row = self.rows[candidate]
            if row.image is None or self._spec is None:
                return LoadedRow(row, None)
            try:
                return LoadedRow(row, torch.from_numpy(preprocess_image(row.image, self._spec)))
            except ImageError as error:
                if self._strict:
                    raise TrainingError(f"{str(error).rstrip('.')} (--strict).") from error
                if candidate not in self._broken:
                    self._broken.add(candidate)
                    log.warning("%s; the next row is taken instead", str(error).rstrip("."))
        raise TrainingError("no picture of the data can be read.")


def load_conversations(
    paths: Sequence[Path],
    chat: ChatFormat,
    *,
    max_length: int,
    image_folder: Path | None = None,
    spec: ImageSpec | None = None,
    turns: Turns = "joint",
    strict: bool = False,
    images_only: bool = False,
) -> ConversationData:
    """Reads files of conversations and makes them into sequences of at most `max_length` tokens.

    Args:
        paths: .json or .jsonl files.
        image_folder: that paths of pictures start from; None: the folder of the file.
        turns: "joint": a sequence a conversation, cut at `max_length`; "independent": turns see the picture and themselves only, as
            many in a sequence as fit.
        strict: what would be skipped is an error.
        images_only: entries without a picture are skipped, for a stage in which they would train nothing.

    Raises:
        TrainingError: a file cannot be read, no row is left, or, if `strict`, an entry cannot be used.
    """
    skipped = Skipped()
    rows: list[Row] = []
    is_quiet = True if os.environ.get("RANK", "0") != "0" else None  # None: where nobody looks
    for path in paths:
        folder = path.parent if image_folder is None else image_folder
        bar = tqdm(read_entries(path), desc=f"reading {path.name}", unit=" entries", disable=is_quiet)
        for where, entry in bar:
            try:
                conversation = parse_entry(where, entry)
            except EntryError as error:
                _skip(skipped, "malformed", f"{where}: {error}", strict)
                continue
            image = None if conversation.image is None else folder / conversation.image
            if problem := _image_problem(image, spec):
                _skip(skipped, "without a usable picture", f"{where}: {problem}", strict)
            elif images_only and image is None:
                skipped.add("without a picture, which train nothing in this stage", where)
            else:
                rows += _rows_or_skip(conversation, image, chat, turns, max_length, skipped, strict)
    if not rows:
        raise TrainingError(f"no entry of {', '.join(map(str, paths))} can be used: {skipped or 'there is none'}.")
    if skipped.counts:
        log.warning("entries left out: %s", skipped)
    return ConversationData(rows, spec, skipped, strict)


def _skip(skipped: Skipped, reason: str, sentence: str, strict: bool) -> None:
    if strict:
        raise TrainingError(f"{sentence.rstrip('.')} (--strict).")
    skipped.add(reason, sentence)


def _image_problem(image: Path | None, spec: ImageSpec | None) -> str | None:
    """What can be seen without decoding it; most of it costs one look at the file's head."""
    if image is None:
        return None
    if spec is None:
        return "it has a picture, but the model takes none"
    try:
        if not image.is_file():
            return f"{image} is not a file"
        with Image.open(image, formats=IMAGE_FORMATS) as opened:
            width, height = opened.size
        return None if width * height <= MAX_IMAGE_PIXELS else f"{image} is {width} x {height} pixels, too large"
    except Exception as error:  # a decoder fed with hostile bytes may raise anything
        return f"{image} is no picture that can be read ({type(error).__name__})"


def _rows_or_skip(
    conversation: Conversation,
    image: Path | None,
    chat: ChatFormat,
    turns: Turns,
    max_length: int,
    skipped: Skipped,
    strict: bool,
) -> list[Row]:
    try:
        if turns == "joint":
            rows = [joint_row(chat.joint(conversation), image, max_length)]
        else:
            rows = independent_rows(*chat.independent(conversation), image, max_length)
    except EntryError as error:
        _skip(skipped, "malformed", f"{conversation.where}: {error}", strict)
        return []
    kept = [row for row in rows if row is not None]
    if len(kept) < len(rows) or not kept:
        sentence = f"{conversation.where}: an answer begins only after max_length, {max_length} tokens"
        _skip(skipped, "longer than max_length", sentence, strict)
    return kept


def joint_row(segments: Sequence[Segment], image: Path | None, max_length: int) -> Row | None:
    """The segments one after the other, cut at `max_length`; None where nothing learnt is left."""
    ids = [token for segment in segments for token in segment.ids][:max_length]
    labels = [label for segment in segments for label in _labels(segment)][:max_length]
    # A label at position 0 is no target: nothing precedes it. The picture stands before all that is learnt, so none is cut.
    if not any(label != IGNORED_LABEL for label in labels[1:]):
        return None
    return Row(_array(ids), _array(labels), image)


def independent_rows(
    shared: Sequence[int], turns: Sequence[Sequence[Segment]], image: Path | None, max_length: int
) -> list[Row | None]:
    """Turns packed behind `shared`, in order; None for each that has nothing learnt within `max_length`."""
    rows: list[Row | None] = []
    packed: list[tuple[list[int], list[int]]] = []
    length = len(shared)
    for turn in turns:
        ids = [token for segment in turn for token in segment.ids][: max(0, max_length - len(shared))]
        labels = [label for segment in turn for label in _labels(segment)][: len(ids)]
        if not any(label != IGNORED_LABEL for label in labels[0 if shared else 1 :]):
            rows.append(None)
            continue
        if length + len(ids) > max_length:
            rows.append(_packed_row(shared, packed, image))
            packed, length = [], len(shared)
        packed.append((ids, labels))
        length += len(ids)
    if packed:
        rows.append(_packed_row(shared, packed, image))
    return rows


def _packed_row(shared: Sequence[int], turns: Sequence[tuple[list[int], list[int]]], image: Path | None) -> Row:
    ids, labels = list(shared), [IGNORED_LABEL] * len(shared)
    groups, positions = [SHARED] * len(shared), list(range(len(shared)))
    for number, (turn_ids, turn_labels) in enumerate(turns, start=1):
        ids += turn_ids
        # transformers' loss compares a token with the next one's label; the first of a turn follows another turn.
        labels += turn_labels if number == 1 and shared else [IGNORED_LABEL, *turn_labels[1:]]
        groups += [number] * len(turn_ids)
        positions += range(len(shared), len(shared) + len(turn_ids))
    return Row(_array(ids), _array(labels), image, _array(groups), _array(positions))


def _labels(segment: Segment) -> list[int]:
    return segment.ids if segment.learnt else [IGNORED_LABEL] * len(segment.ids)


def _array(values: Sequence[int]) -> IntArray:
    return np.asarray(values, dtype=np.int32)


@dataclass(frozen=True)
class ConversationCollator:
    """Batches padded on the right to their longest row.

    input_ids, labels: int64 [B, S]. attention_mask: int64 [B, S], or with groups bool [B, 1, S, S] and position_ids [B, S].
    pixel_values: float32 [pictures, 3, height, width], absent without pictures.
    """

    pad_token_id: int

    def __call__(self, rows: list[LoadedRow]) -> dict[str, Tensor]:
        plain = [loaded.row for loaded in rows]
        batch = {
            "input_ids": _padded([row.input_ids for row in plain], self.pad_token_id),
            "labels": _padded([row.labels for row in plain], IGNORED_LABEL),
        }
        groups = [row.groups for row in plain if row.groups is not None]
        positions = [row.positions for row in plain if row.positions is not None]
        if groups:
            batch["attention_mask"] = turn_mask(_padded(groups, PADDING))
            batch["position_ids"] = _padded(positions, 0)
        else:
            batch["attention_mask"] = _padded([np.ones_like(row.input_ids) for row in plain], 0)
        pixels = [loaded.pixels for loaded in rows if loaded.pixels is not None]
        return {**batch, "pixel_values": torch.stack(pixels)} if pixels else batch


def turn_mask(groups: Tensor) -> Tensor:
    """Who may look at whom: bool [B, 1, S, S], True where the query (row) may look at the key (column).

    Tokens look back at group 0 and at their own group. Padding, group -1, looks at the first token only: a row has to look at
    something, and what does not see itself is how the model knows padding (mote_export.model.modeling.token_mask).
    """
    query, key = groups[:, :, None], groups[:, None, :]
    causal = torch.ones(groups.shape[1], groups.shape[1], dtype=torch.bool).tril()
    mask = causal & ((key == SHARED) | (key == query)) & (query != PADDING)
    mask[:, :, 0] |= groups == PADDING
    return mask[:, None]


def _padded(arrays: Sequence[IntArray], value: int) -> Tensor:
    padded = np.full((len(arrays), max(map(len, arrays))), value, dtype=np.int64)
    for row, array in zip(padded, arrays, strict=True):
        row[: len(array)] = array
    return torch.from_numpy(padded)
