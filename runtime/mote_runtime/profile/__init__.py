"""Measures an exported model and shows where its time goes (docs/profiling.md).

From a folder to a report: `session` runs workers (`worker`, one process for each runtime), which measure repetitions
(`measure`, `memory`, `energy`) into a `record`; one more repetition is traced, and `timeline` lays what the runtime's own
profiler (`ort_trace`, `etdump`) and the operators (`inner`) recorded into one. `build` makes the files of both, wherever the
records and traces came from.
"""
