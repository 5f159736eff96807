"""Measures an exported model and shows where its time goes (docs/profiling.md).

From a folder to a report: `host` runs workers by `session` (`worker`, one process for each runtime), which measure repetitions
(`measure`, `memory`, `energy`) into a `record`; `devices` has the native runner measure on a phone instead. One more repetition
is traced and laid out by `trace`. `build` makes the files of all this, `report` the page among them, wherever the records and
traces came from.
"""
