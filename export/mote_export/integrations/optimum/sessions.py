"""Session options with mote's operators."""

import onnxruntime

from mote_runtime.library import get_library_path


def plugin_options() -> onnxruntime.SessionOptions:
    """For the `session_options` of optimum's classes: fresh options in which the installed plugin is registered."""
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(str(get_library_path("onnxruntime")))
    return options
