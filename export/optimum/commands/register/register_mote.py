"""optimum-cli imports every file of this namespace when it starts (PEP 420: no __init__.py on the way here).

`optimum-cli export onnx` knows MoTE checkpoints from then on; nothing big is imported, see mote_export.integrations.
"""

import mote_export  # noqa: F401  imported for what it announces

REGISTER_COMMANDS: list[object] = []  # no command of our own
