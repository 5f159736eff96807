"""BitNet b1.58 without experts: a decoder of transformers whose linear layers are ternary (transformers.integrations.bitnet)."""

from dataclasses import asdict, dataclass
from typing import Any

from torch import nn
from transformers.integrations.bitnet import AutoBitLinear

MAX_NAMES = 1024
ALWAYS_FULL = "lm_head"
DECODER = (
    "model."  # in front of a decoder's names in transformers' causal language models, by which layers are left out
)


@dataclass(frozen=True)
class BitnetSettings:
    """What the ternary linear layers of a decoder are.

    Attributes:
        online: master weights, made ternary in every forward pass; else ternary weights and a scale of their own.
        modules_to_not_convert: parts of the names of linear layers that stay as they are.
        rms_norm_eps: of a norm before every ternary layer's activations are quantized; None where there is none.
    """

    online: bool
    modules_to_not_convert: tuple[str, ...] = ()
    rms_norm_eps: float | None = None

    @classmethod
    def from_dict(cls, values: Any) -> "BitnetSettings":
        """Checks types as well as values: the dictionary may come from a file of unknown origin. Raises ValueError."""
        known = {"online", "modules_to_not_convert", "rms_norm_eps"}
        if not isinstance(values, dict) or "online" not in values or not values.keys() <= known:
            raise ValueError(f"bitnet is {values!r:.200}, expected a dictionary of {', '.join(sorted(known))}")
        names, eps = values.get("modules_to_not_convert", ()), values.get("rms_norm_eps")
        if type(values["online"]) is not bool:
            raise ValueError(f"bitnet.online is {values['online']!r}, expected true or false")
        if not isinstance(names, list | tuple) or len(names) > MAX_NAMES or not all(isinstance(n, str) for n in names):
            raise ValueError(f"bitnet.modules_to_not_convert is {names!r:.200}, expected a list of names")
        if eps is not None and (isinstance(eps, bool) or not isinstance(eps, float | int) or not 0 < eps < 1):
            raise ValueError(f"bitnet.rms_norm_eps is {eps!r}, expected null or a small positive number")
        return cls(values["online"], tuple(names), None if eps is None else float(eps))

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "modules_to_not_convert": list(self.modules_to_not_convert)}

    def converts(self, name: str) -> bool:
        """Whether the linear layer `name` of a decoder is ternary: by substrings of its whole name, as transformers decides."""
        return not any(part in DECODER + name for part in self.modules_to_not_convert)


def replace_linears(decoder: nn.Module, settings: BitnetSettings) -> list[str]:
    """Replaces, in place, the linear layers of a decoder by ternary ones with random weights.

    Returns:
        Their names in the decoder.

    Raises:
        ValueError: none is left to be replaced.
    """
    names = [name for name, module in decoder.named_modules() if type(module) is nn.Linear and settings.converts(name)]
    if not names:
        raise ValueError(
            f"no linear layer of {type(decoder).__name__} is ternary: modules_to_not_convert leaves all out"
        )
    for name in names:
        old = decoder.get_submodule(name)
        new = AutoBitLinear(
            old.in_features,
            old.out_features,
            bias=old.bias is not None,
            online_quant=settings.online,
            use_rms_norm=settings.rms_norm_eps is not None,
            rms_norm_eps=settings.rms_norm_eps or 0.0,
        )
        decoder.set_submodule(name, new)
    return names
