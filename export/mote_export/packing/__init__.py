"""Packed layouts as pure functions: pack, unpack, and nothing else. A new packing is one file here and one line below."""

from mote_export.packing.two_bit import LAYOUT_VERSION, TILE, pack_2bit, pack_gate_up, unpack_2bit, unpack_gate_up

__all__ = ["LAYOUT_VERSION", "TILE", "pack_2bit", "pack_gate_up", "unpack_2bit", "unpack_gate_up"]
