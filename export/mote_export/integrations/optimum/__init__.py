"""MoTE models in optimum: `optimum-cli export onnx`, `main_export`, and ONNX Runtime classes. Importing this registers them.

optimum's ONNX exporter traces with TorchScript and then opens the graph in a session of its own, to which no library of operators
can be given. Neither works with an operator that is not ONNX's. So the registered configuration says what optimum asks of a model
type (tasks, names of inputs and outputs), and what follows the loading of the model is done by mote's own exporter.
"""

from mote_export.integrations.optimum.export import register

register()
