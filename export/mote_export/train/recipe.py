"""The recipe of a run: a YAML file of names and values, checked before anything else is read."""

from __future__ import annotations

import difflib
import reprlib
import types
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml

from mote_export.train.data import Turns
from mote_export.train.settings import Device, FitSettings, Precision, TrainingError
from mote_export.train.stages import Stage

MAX_BYTES = 1 << 20
LEARNING_RATES: Mapping[str, float] = {"connector": 1e-3, "instruction": 2e-5, "mote": 2e-5}


@dataclass(frozen=True)
class Recipe:
    """What `mote-train` is told; paths start from the current folder. Defaults are those of MoE-LLaVA's scripts.

    Attributes:
        model: a dense transformers folder, for stage "mote" a MoTE checkpoint (folder or model.pt).
        stage: "connector", "instruction" or "mote".
        data: one or more .json or .jsonl files of conversations.
        output: a folder; for stage "mote" also a file that ends in .pt, whose run is in a folder NAME-run beside it.
        image_folder: that paths of pictures start from; the folder of each data file by default.
        steps, epochs: the length; one of them, 1 epoch by default.
        learning_rate: 1e-3 for stage "connector", else 2e-5.
        aux_loss_coef: for stage "mote"; 0.01 by default.
        max_length: tokens of a sequence.
        turns: "joint", a conversation as it is, or "independent", every question as if it were the only one about its picture.
        train_vision_tower: in stage "instruction".
        save_dtype: of the result's weights.

    The others are those of `FitSettings`.
    """

    model: Path
    stage: Stage
    data: tuple[Path, ...]
    output: Path
    image_folder: Path | None = None
    steps: int | None = None
    epochs: float | None = None
    batch_size: int = 16
    gradient_accumulation: int = 1
    learning_rate: float | None = None
    warmup_ratio: float = 0.03
    weight_decay: float = 0.0
    adam_beta2: float = 0.999
    max_grad_norm: float = 1.0
    aux_loss_coef: float | None = None
    max_length: int = 2048
    turns: Turns = "joint"
    train_vision_tower: bool = False
    precision: Precision = "bf16"
    gradient_checkpointing: bool = False
    compile: bool = False
    fsdp: bool = False
    device: Device = "auto"
    workers: int = 0
    seed: int = 0
    logging_steps: int | None = None
    save_steps: int | None = None
    keep_checkpoints: int = 2
    save_dtype: Literal["float32", "bf16"] = "float32"

    def __post_init__(self) -> None:
        if not self.data:
            raise TrainingError("data is empty, expected at least one .json or .jsonl file.")
        if self.steps is not None and self.epochs is not None:
            raise TrainingError("steps and epochs are both given, expected one of them.")
        if self.train_vision_tower and self.stage != "instruction":
            raise TrainingError(f"train_vision_tower is true, but stage is {self.stage}; it is for instruction only.")
        if self.aux_loss_coef is not None and self.stage != "mote":
            raise TrainingError(f"aux_loss_coef is given, but stage {self.stage} trains no experts; leave it out.")
        if self.output.suffix == ".pt" and self.stage != "mote":
            raise TrainingError(f"output is {self.output}, but the result of stage {self.stage} is a folder.")
        if self.output.resolve() == self.model.resolve():
            raise TrainingError(f"output and model are both {self.output}: choose another output.")
        if self.max_length < 2:
            raise TrainingError(f"max_length is {self.max_length}, expected at least 2.")
        self.settings()  # checks the ranges of the rest

    @property
    def run_folder(self) -> Path:
        """Of the log and the checkpoints."""
        return self.output.with_name(f"{self.output.stem}-run") if self.output.suffix == ".pt" else self.output

    def settings(self) -> FitSettings:
        """What `fit` is told."""
        rate = self.learning_rate if self.learning_rate is not None else LEARNING_RATES[self.stage]
        default_coefficient = 0.01 if self.stage == "mote" else None
        epochs = 1.0 if self.epochs is None else self.epochs
        own = {name: getattr(self, name) for name in (f.name for f in fields(FitSettings)) if hasattr(self, name)}
        coefficient = default_coefficient if self.aux_loss_coef is None else self.aux_loss_coef
        return FitSettings(**{**own, "learning_rate": rate, "aux_loss_coef": coefficient, "epochs": epochs})


def load_recipe(path: Path) -> Recipe:
    """Reads a recipe. Raises TrainingError, one sentence, where a key or a value is not one of a recipe's."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise TrainingError(f"{path} has more than {MAX_BYTES >> 20} MiB, expected a recipe.")
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        content = yaml.safe_load(text)
    except (OSError, UnicodeError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise TrainingError(f"the recipe {path} cannot be read: {reason}.") from error
    except (yaml.YAMLError, ValueError) as error:
        place = getattr(error, "problem_mark", None)
        where = f" in line {place.line + 1}" if place is not None else ""
        raise TrainingError(f"{path} is no YAML{where}: {getattr(error, 'problem', None) or error}.") from error
    if not isinstance(node, yaml.MappingNode) or not isinstance(content, dict):
        raise TrainingError(f"{path} holds no recipe, expected lines of NAME: VALUE.")
    names = [key.value for key, _ in node.value]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise TrainingError(f"{path} has {twice[0]} twice.")
    return parse_recipe(content)


def parse_recipe(content: Mapping[Any, Any]) -> Recipe:
    """Raises TrainingError for an unknown name, a missing one, a value of another type, or a contradiction."""
    types_of = get_type_hints(Recipe)
    for name in content:
        if name not in types_of:
            close = difflib.get_close_matches(reprlib.repr(name).strip("'"), types_of, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(types_of)}."
            raise TrainingError(f"a recipe has no {reprlib.repr(name)}; {hint}")
    missing = [name for name in ("model", "stage", "data", "output") if content.get(name) is None]
    if missing:
        raise TrainingError(f"the recipe lacks {', '.join(missing)}.")
    return Recipe(**{name: _value(name, value, types_of[name]) for name, value in content.items()})


def _value(name: str, value: Any, kind: Any) -> Any:
    options = get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    if value is None and type(None) in options:
        return None
    wanted = next(option for option in options if option is not type(None))
    if get_origin(wanted) is Literal:
        return _choice(name, value, get_args(wanted))
    if get_origin(wanted) is tuple:
        items = value if isinstance(value, list) else [value]
        return tuple(_value(name, item, Path) for item in items)
    if wanted is Path and isinstance(value, str) and value:
        return Path(value).expanduser()
    if wanted is float:
        return _number(name, value)
    if wanted in (int, bool) and type(value) is wanted:
        return value
    expected = {Path: "a path", int: "an integer", bool: "true or false"}[wanted]
    raise TrainingError(f"{name} is {reprlib.repr(value)}, expected {expected}.")


def _choice(name: str, value: Any, allowed: tuple[str, ...]) -> str:
    if value in allowed:
        return str(value)
    shown = reprlib.repr(value)  # a few lines of YAML can name a value whose text fills the memory
    close = difflib.get_close_matches(shown.strip("'"), allowed, n=1)
    hint = f"; did you mean {close[0]}?" if close else "."
    raise TrainingError(f"{name} is {shown}, expected one of {', '.join(allowed)}{hint}")


def _number(name: str, value: Any) -> float:
    # YAML takes 2e-5, without a point, for a text.
    is_number = type(value) in (int, float) or (isinstance(value, str) and value[:1].isdigit())
    try:
        return float(value if is_number else "")
    except (ValueError, OverflowError):
        raise TrainingError(f"{name} is {reprlib.repr(value)}, expected a number.") from None
