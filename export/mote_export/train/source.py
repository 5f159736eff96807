"""The model that a recipe starts from, and the model that a run leaves."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from mote_export.atomic import atomic_folder
from mote_export.checkpoint import (
    Checkpoint,
    DenseCheckpoint,
    is_dense,
    load_checkpoint,
    load_dense,
    save_folder,
    save_model_pt,
)
from mote_export.manifest import image_spec, num_image_tokens
from mote_export.text_tokens import NAMED_TOKENS, token_text
from mote_export.tokens import chat_template, load_tokenizer
from mote_export.train.conversations import ChatFormat
from mote_export.train.settings import TrainingError
from mote_export.train.stages import Stage
from mote_runtime.manifest import ImageSpec

Source = Checkpoint | DenseCheckpoint
CONFIG = "config.json"


def load_source(path: Path, stage: Stage) -> Source:
    """A MoTE checkpoint for stage "mote", else a dense transformers folder; float32, on the CPU.

    Raises:
        MoteError: the path holds something else, or is damaged.
    """
    if not path.exists():
        raise TrainingError(f"model is {path}, which does not exist.")
    if stage != "mote":
        return load_dense(path)
    if is_dense(path):
        raise TrainingError(
            f"{path} is a dense model, stage mote trains a MoTE checkpoint: mote-upcycle makes one of it."
        )
    checkpoint = load_checkpoint(path)
    if checkpoint.model.config.moe_settings is None:
        raise TrainingError(f"{path} is a BitNet model without experts, stage mote trains a MoTE checkpoint.")
    return checkpoint


def chat_format(source: Source) -> ChatFormat:
    """How conversations are put to the model. Raises MoteError where tokenizer or template cannot be used."""
    checkpoint = cast(Checkpoint, source)  # a dense one has all that these ask for
    tokenizer, config = load_tokenizer(checkpoint), _tokenizer_config(source)
    named = {name: token_text(config.get(name)) or "" for name in NAMED_TOKENS}
    image_token = None
    if source.has_vision:
        image_token = tokenizer.id_to_token(source.model.config.image_token_id)
        if image_token is None:
            raise TrainingError(
                f"config.image_token_id is {source.model.config.image_token_id}, which is no token of the tokenizer."
            )
    return ChatFormat(tokenizer, chat_template(checkpoint), named, image_token, num_image_tokens(checkpoint) or 0)


def picture_format(source: Source) -> ImageSpec | None:
    """How a picture becomes pixels, as in the export; None without a vision tower. Raises MoteError."""
    return image_spec(cast(Checkpoint, source))


def pad_token_id(source: Source) -> int:
    """Of the tokenizer, or any token where it names none: padding is masked."""
    text = token_text(_tokenizer_config(source).get("pad_token"))
    found = None if text is None else load_tokenizer(cast(Checkpoint, source)).token_to_id(text)
    return found or 0


def _tokenizer_config(source: Source) -> dict[str, Any]:
    try:
        config = json.loads(source.files["tokenizer_config.json"])
    except (ValueError, RecursionError) as error:
        raise TrainingError(f"tokenizer_config.json cannot be read: {error}.") from error
    if not isinstance(config, dict):
        raise TrainingError(f"tokenizer_config.json holds a JSON {type(config).__name__}, expected an object.")
    return config


def save_result(source: Source, output: Path, run_folder: Path, dtype: torch.dtype) -> None:
    """Writes the trained model: a model.pt where `output` ends so, else a transformers folder into `output`.

    The folder is that of the run, too: config.json comes last, so that there is no model there before all of it is.

    Raises:
        MoteError: the model is not one that can be saved so. OSError: the disk is full; what was there stays.
    """
    model: nn.Module = source.model.to(dtype)
    if output.suffix == ".pt":
        assert isinstance(source, Checkpoint)
        save_model_pt(output, source.model, source.files)
        return
    ready = run_folder / "model"
    shutil.rmtree(ready, ignore_errors=True)  # of a start that was killed as it moved files
    if isinstance(source, Checkpoint):
        save_folder(ready, source)
    else:
        with atomic_folder(ready) as temporary:
            cast(Any, model).save_pretrained(temporary)
            for name, content in source.files.items():
                (temporary / name).write_text(content, encoding="utf-8")
    for file in sorted(ready.iterdir(), key=lambda file: file.name == CONFIG):
        file.replace(output / file.name)
    ready.rmdir()
