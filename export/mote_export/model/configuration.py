"""Configuration of a MoTE model: a LLaVA configuration plus what its MoE layers are."""

from dataclasses import asdict, dataclass
from typing import Any

from transformers import LlavaConfig

MAX_EXPERTS = 256  # the operator's limit, docs/operator.md


@dataclass(frozen=True)
class MoeSettings:
    """Hyper-parameters shared by all MoE layers of a model.

    Attributes:
        num_experts: routed ternary experts per layer (E), 1 to 256.
        top_k: experts computed for a token, 1 to E. MoTE uses 1.
        normalize_topk: divide the selected probabilities by their sum (MoE-LLaVA's top-2) instead of using them raw (MoTE).
        layers: indices of the decoder layers that have experts, ascending.
        router_aux_loss_coef: weight of the load-balancing loss, 0.01 in MoE-LLaVA.
    """

    num_experts: int
    top_k: int
    normalize_topk: bool
    layers: tuple[int, ...]
    router_aux_loss_coef: float = 0.01

    def __post_init__(self) -> None:
        if not 1 <= self.num_experts <= MAX_EXPERTS:
            raise ValueError(f"num_experts is {self.num_experts}, expected 1 to {MAX_EXPERTS}")
        if not 1 <= self.top_k <= self.num_experts:
            raise ValueError(f"top_k is {self.top_k}, expected 1 to num_experts ({self.num_experts})")
        if not self.layers or list(self.layers) != sorted(set(self.layers)) or self.layers[0] < 0:
            raise ValueError(f"layers is {list(self.layers)}, expected ascending layer indices, at least one")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "MoeSettings":
        """Checks types as well as values: the dictionary may come from a file of unknown origin."""
        expected: dict[str, tuple[type, ...]] = {
            "num_experts": (int,),
            "top_k": (int,),
            "normalize_topk": (bool,),
            "layers": (list, tuple),
            "router_aux_loss_coef": (float, int),
        }
        if not isinstance(values, dict) or not values.keys() <= expected.keys():
            raise ValueError(f"moe is {values!r}, expected a dictionary of {', '.join(expected)}")
        for name, value in values.items():
            is_stray_bool = isinstance(value, bool) and bool not in expected[name]
            if not isinstance(value, expected[name]) or is_stray_bool:
                raise ValueError(f"moe.{name} is {value!r}, expected {expected[name][0].__name__}")
        layers = values.get("layers", ())
        if not all(type(layer) is int for layer in layers):
            raise ValueError(f"moe.layers is {layers!r}, expected integers")
        try:
            return cls(**{**values, "layers": tuple(layers)})
        except TypeError:
            missing = sorted(expected.keys() - values.keys() - {"router_aux_loss_coef"})
            raise ValueError(f"moe lacks {', '.join(missing)}") from None

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "layers": list(self.layers)}


class MoteConfig(LlavaConfig):
    """`LlavaConfig` with `moe`, the dictionary form of `MoeSettings` (None: a dense model)."""

    model_type = "mote"

    def __init__(self, moe: dict[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.moe = moe
        settings = self.moe_settings
        if settings is not None and settings.layers[-1] >= self.text_config.num_hidden_layers:
            raise ValueError(
                f"moe.layers names layer {settings.layers[-1]}, the decoder has {self.text_config.num_hidden_layers} layers"
            )

    @property
    def moe_settings(self) -> MoeSettings | None:
        return None if self.moe is None else MoeSettings.from_dict(self.moe)
