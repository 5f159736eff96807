"""The two functions of optimum that know too little for a MoTE model, and what stands in for them."""

import functools
import inspect
import json
import sys
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from optimum.exporters.onnx import convert
from optimum.exporters.tasks import TasksManager
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from mote_export import api
from mote_export.defaults import DEFAULT_OPSET, DEFAULT_RTOL, OPSETS
from mote_export.integrations.optimum.configuration import (
    IMAGE_TEXT_TO_TEXT,
    TASKS,
    TEXT_GENERATION,
    TEXT_TASKS,
    MoteOnnxConfig,
)
from mote_export.integrations.optimum.text_decoder import export_text_decoder
from mote_export.model import MoteConfig, MoteForCausalLM, MoteModel, MoteTextConfig
from mote_export.passes import PackOptions
from mote_runtime.errors import MoteError

# Of onnx_export_from_model. Graphs are what they are, so anything but these is an error rather than ignored.
UNSUPPORTED = {
    "optimize": None,
    "slim": False,
    "monolith": False,
    "atol": None,
    "no_dynamic_axes": False,
    "custom_onnx_configs": None,
    "fn_get_submodels": None,
    "device": "cpu",
    "_variant": "default",
}
TASKS_BY_TYPE = {MoteConfig.model_type: TASKS, MoteTextConfig.model_type: TEXT_TASKS}
NAME = "onnx_export_from_model"
IMPORTERS = ("optimum.exporters.onnx", "optimum.exporters.onnx.__main__")
# Of model_kwargs and mote_export.export, to the fields of PackOptions.
PACK_OPTIONS = tuple(field.name for field in fields(PackOptions))
# Of a text decoder, whose other layers stay as they are, and whose client makes a cache of floats.
TEXT_OPTIONS = ("packing", "shared_expert", "shared_group_size", "quantizer")
MODEL_KWARGS = (*PACK_OPTIONS, "context_length", "rtol")


def register() -> None:
    """Makes the model types known, and puts ours in front of optimum's functions, for MoTE models only."""
    for model_type, tasks in TASKS_BY_TYPE.items():
        TasksManager.create_register("onnx", overwrite_existing=True)(model_type, *tasks)(MoteOnnxConfig)
    ours = _for_our_models(convert.onnx_export_from_model)
    for module in (convert, *(sys.modules[name] for name in IMPORTERS if name in sys.modules)):
        if NAME in vars(module):  # where it has not been imported to yet, it will be ours
            setattr(module, NAME, ours)
    TasksManager._infer_task_from_model_name_or_path = _for_our_folders(
        TasksManager._infer_task_from_model_name_or_path
    )


def _for_our_models(theirs: Any) -> Any:
    """`onnx_export_from_model`, which `main_export` calls with the model it loaded."""
    signature = inspect.signature(theirs)

    @functools.wraps(theirs)
    def onnx_export_from_model(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        if not isinstance(bound.arguments["model"], MoteModel):
            return theirs(*args, **kwargs)
        bound.apply_defaults()
        return _export(bound.arguments)

    return onnx_export_from_model


def _for_our_folders(theirs: Any) -> Any:
    """`--task auto`: optimum asks the hub about a name, and refuses to guess for a folder."""

    def infer_task(model_name_or_path: str, subfolder: str = "", *args: Any, **kwargs: Any) -> str:
        model_type = _model_type(Path(model_name_or_path, subfolder) / "config.json")
        if isinstance(model_type, str) and model_type in TASKS_BY_TYPE:
            return TASKS_BY_TYPE[model_type][0]
        task: str = theirs(model_name_or_path, subfolder, *args, **kwargs)
        return task

    return infer_task


def _model_type(path: Path) -> object:
    """None where it cannot be read; who opens the model next will say why."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))["model_type"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _export(arguments: Mapping[str, Any]) -> None:
    """What `mote-export --target onnx` does, or a decoder of text."""
    model, output = arguments["model"], Path(arguments["output"])
    tasks = TASKS_BY_TYPE[model.config.model_type]
    task = arguments["task"] or tasks[0]
    opset = DEFAULT_OPSET if arguments["opset"] is None else arguments["opset"]
    _check(arguments, model, opset)
    options = arguments["model_kwargs"] or {}
    kind = PreTrainedTokenizerBase if isinstance(model, MoteForCausalLM) else ProcessorMixin
    processor = next((item for item in arguments["preprocessors"] or () if isinstance(item, kind)), None)
    verify, rtol = arguments["do_validation"], options.get("rtol", DEFAULT_RTOL)
    pack = {name: options[name] for name in PACK_OPTIONS if name in options}
    if task.startswith(TEXT_GENERATION):
        for name, value in pack.items():
            default = getattr(PackOptions(), name)
            if name not in TEXT_OPTIONS and value != default:
                raise MoteError(f"{name} is {value!r}, expected {default!r} for the task {task!r}.")
        export_text_decoder(
            api.checkpoint_of(model, processor),
            output,
            context_length=options.get("context_length"),
            opset=opset,
            pack=PackOptions(**pack),
            verify=verify,
            rtol=rtol,
        )
    elif task.startswith(IMAGE_TEXT_TO_TEXT) and len(tasks) > 1:
        api.export(
            model,
            output,
            target="onnx",
            processor=processor,
            context_length=options.get("context_length"),
            opset=opset,
            verify=verify,
            rtol=rtol,
            **pack,
        )
    else:
        raise MoteError(f"the task is {task!r}, expected {' or '.join(tasks)}.")


def _check(arguments: Mapping[str, Any], model: MoteModel, opset: int) -> None:
    for name, expected in UNSUPPORTED.items():
        if name in arguments and arguments[name] != expected:
            raise MoteError(
                f"{name} is {arguments[name]!r}, which does not apply to a MoTE model: leave this option out."
            )
    unknown = sorted((arguments["model_kwargs"] or {}).keys() - set(MODEL_KWARGS))
    if unknown:
        raise MoteError(f"model_kwargs has {unknown[0]!r}, expected {', '.join(MODEL_KWARGS)}.")
    rtol = (arguments["model_kwargs"] or {}).get("rtol", DEFAULT_RTOL)
    if type(rtol) not in (int, float):
        raise MoteError(f"rtol is {rtol!r}, expected a number.")
    if model.dtype != torch.float32:
        raise MoteError(f"the model is {model.dtype}, expected torch.float32: leave --dtype out.")
    if opset not in OPSETS:
        raise MoteError(f"opset is {opset}, expected {OPSETS[0]} to {OPSETS[-1]}.")
