"""MoTE models in libraries that do not know of them: one file each. `import mote_export` calls `announce` and nothing else of it.

transformers and optimum have no entry points that they would look for models in, so somebody has to import ours. Importing them
takes 5 to 10 s, `mote-export --help` a tenth of one: so the model is registered when they are imported, and not before.
"""

from mote_export.integrations.after_import import import_after


def announce() -> None:
    """MoTE models become known to transformers and optimum, as soon as these are imported."""
    # transformers' own __init__ imports no model, so ours can import whatever it needs of it.
    import_after("transformers", "mote_export.model")
    import_after("optimum.exporters.onnx.convert", "mote_export.integrations.optimum")
