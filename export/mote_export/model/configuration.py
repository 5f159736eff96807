"""Configuration of a MoTE model: a LLaVA or a text model's configuration plus what its MoE layers are."""

from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, get_args

from transformers import CONFIG_MAPPING, AutoConfig, LlavaConfig, PretrainedConfig

from mote_export.model.bitnet import BitnetSettings

MAX_EXPERTS = 256  # the operator's limit, docs/operator.md

ExpertFormat = Literal["ternary", "full"]
SharedFormat = Literal["full", "ternary", "none"]


@dataclass(frozen=True)
class MoeSettings:
    """Hyper-parameters shared by all MoE layers of a model.

    Attributes:
        num_experts: routed experts per layer (E), 1 to 256.
        top_k: experts computed for a token, 1 to E. MoTE uses 1.
        normalize_topk: divide the selected probabilities by their sum (MoE-LLaVA's top-2) instead of using them raw (MoTE).
        layers: indices of the decoder layers that have experts, ascending.
        router_aux_loss_coef: weight of the load-balancing loss, 0.01 in MoE-LLaVA.
        experts: weights of the routed experts in the forward pass: "ternary" (MoTE) or "full" (MoE-LLaVA).
        shared_expert: the FFN that every token passes: "full" (MoTE), "ternary" (an ablation of its paper) or "none" (MoE-LLaVA).
    """

    num_experts: int
    top_k: int
    normalize_topk: bool
    layers: tuple[int, ...]
    router_aux_loss_coef: float = 0.01
    experts: ExpertFormat = "ternary"
    shared_expert: SharedFormat = "full"

    def __post_init__(self) -> None:
        if not 1 <= self.num_experts <= MAX_EXPERTS:
            raise ValueError(f"num_experts is {self.num_experts}, expected 1 to {MAX_EXPERTS}")
        if not 1 <= self.top_k <= self.num_experts:
            raise ValueError(f"top_k is {self.top_k}, expected 1 to num_experts ({self.num_experts})")
        if not self.layers or list(self.layers) != sorted(set(self.layers)) or self.layers[0] < 0:
            raise ValueError(f"layers is {list(self.layers)}, expected ascending layer indices, at least one")
        for name, value, allowed in (
            ("experts", self.experts, get_args(ExpertFormat)),
            ("shared_expert", self.shared_expert, get_args(SharedFormat)),
        ):
            if value not in allowed:
                raise ValueError(f"{name} is {value!r}, expected one of {', '.join(allowed)}")

    @property
    def is_mote(self) -> bool:
        """The layer of MoTE, which `mote::ternary_moe` computes; others are baselines to compare it with."""
        return self.experts == "ternary" and self.shared_expert == "full"

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "MoeSettings":
        """Checks types as well as values: the dictionary may come from a file of unknown origin."""
        expected: dict[str, tuple[type, ...]] = {
            "num_experts": (int,),
            "top_k": (int,),
            "normalize_topk": (bool,),
            "layers": (list, tuple),
            "router_aux_loss_coef": (float, int),
            "experts": (str,),
            "shared_expert": (str,),
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
            missing = sorted(expected.keys() - values.keys() - {"router_aux_loss_coef", "experts", "shared_expert"})
            raise ValueError(f"moe lacks {', '.join(missing)}") from None

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "layers": list(self.layers)}


class MoteConfig(LlavaConfig):
    """`LlavaConfig` with `moe`, the dictionary form of `MoeSettings` (None: a dense model)."""

    model_type = "mote"

    def __init__(self, moe: dict[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.moe = moe
        _check_layers(self.moe_settings, self.text_config)

    @property
    def moe_settings(self) -> MoeSettings | None:
        return None if self.moe is None else MoeSettings.from_dict(self.moe)


class MoteTextConfig(PretrainedConfig):
    """A MoTE model without pictures: `text_config`, of any decoder that transformers knows, and `moe` as in `MoteConfig`.

    `bitnet`, the dictionary form of `BitnetSettings`, makes the decoder's linear layers ternary; such a model has no experts.
    """

    model_type = "mote_text"
    sub_configs: ClassVar[dict[str, type]] = {"text_config": AutoConfig}

    def __init__(
        self,
        text_config: Any = None,
        moe: dict[str, Any] | None = None,
        bitnet: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        values = {"model_type": "qwen2"} if text_config is None else text_config
        if isinstance(values, dict):
            model_type = values.get("model_type")
            if model_type not in CONFIG_MAPPING:
                raise ValueError(
                    f"text_config.model_type is {model_type!r}, expected a decoder that transformers knows"
                )
            values = CONFIG_MAPPING[model_type](**{key: value for key, value in values.items() if key != "model_type"})
        self.text_config = values
        self.moe = moe
        self.bitnet = bitnet
        if moe is not None and self.bitnet_settings is not None:
            raise ValueError("the configuration has both moe and bitnet, expected one of them")
        # The text model decides: its head and its embedding are the whole model's.
        kwargs["tie_word_embeddings"] = values.tie_word_embeddings
        super().__init__(**kwargs)
        _check_layers(self.moe_settings, self.text_config)

    @property
    def moe_settings(self) -> MoeSettings | None:
        return None if self.moe is None else MoeSettings.from_dict(self.moe)

    @property
    def bitnet_settings(self) -> BitnetSettings | None:
        return None if self.bitnet is None else BitnetSettings.from_dict(self.bitnet)


def _check_layers(settings: MoeSettings | None, text_config: PretrainedConfig) -> None:
    if settings is not None and settings.layers[-1] >= text_config.num_hidden_layers:
        raise ValueError(
            f"moe.layers names layer {settings.layers[-1]}, the decoder has {text_config.num_hidden_layers} layers"
        )
