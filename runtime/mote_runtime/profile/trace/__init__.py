"""From what profilers and operators recorded to one trace; nothing here measures.

`ort_trace`, `etdump` (with `flatbuffer` and `program`) and `inner` read what was recorded into `events` and a `raw_trace`;
`timeline` lays it on one clock (`alignment`) under the names of `vocabulary`; `breakdown` sums it up, `chrome` writes it.
"""
