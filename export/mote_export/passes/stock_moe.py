"""MoteLayer of MoE-LLaVA (full routed experts, no shared one) -> stock operators: the baseline that MoTE is compared with.

Every expert computes every token and is weighted by its gate, which is 0 where it was not chosen: correct in every runtime, and
slower than an operator for it could be. What it is for is the bytes and the answers of the baseline, not its speed.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mote_export.model import MoteLayer, RoutedExperts
from mote_export.model.surgery import PROJECTIONS
from mote_export.passes.base import ModulePass
from mote_export.passes.pack_ternary_experts import PackOptions
from mote_export.passes.quantize_linear import quantized
from mote_export.quantize.base import WeightFormat
from mote_export.quantize.model import ROUTED_EXPERTS
from mote_export.weights import read, read_part


class GatedFFN(nn.Module):
    """down(silu(gate(x)) * up(x)) in linear layers of any kind; forward: [T, H] to [T, H]."""

    def __init__(self, gate: nn.Module, up: nn.Module, down: nn.Module) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = gate, up, down

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return y


class StockMoeLayer(nn.Module):
    """Router and experts as `MoteLayer` computes them, without a shape that depends on the router's choice.

    Buffers: router float32 [E, H]; numbers int64 [E], those of the experts. forward: [..., H] to [..., H].
    """

    router: Tensor
    numbers: Tensor

    def __init__(self, layer: MoteLayer, form: WeightFormat | None) -> None:
        super().__init__()
        self.top_k, self.normalize_topk = layer.settings.top_k, layer.settings.normalize_topk
        self.num_experts, self.intermediate_size, self.hidden_size = layer.experts.gate_proj.shape
        self.register_buffer("router", read(layer.router.weight).float())
        self.register_buffer("numbers", torch.arange(self.num_experts))
        self.experts = nn.ModuleList(
            GatedFFN(*(_linear(layer.experts, name, index, form) for name in PROJECTIONS))
            for index in range(self.num_experts)
        )

    def forward(self, hidden_states: Tensor) -> Tensor:
        x = hidden_states.reshape(-1, self.hidden_size)
        value, index = F.linear(x, self.router).softmax(dim=-1).topk(self.top_k, dim=-1)
        if self.normalize_topk:
            value = value / value.sum(dim=-1, keepdim=True)
        chosen = (index.unsqueeze(-1) == self.numbers).to(value.dtype)  # [T, k, E]
        gate = (value.unsqueeze(-1) * chosen).sum(dim=1)
        y = gate[:, :1] * self.experts[0](x)
        for number in range(1, self.num_experts):
            y = y + gate[:, number : number + 1] * self.experts[number](x)
        return y.view_as(hidden_states)


def _linear(experts: RoutedExperts, name: str, index: int, form: WeightFormat | None) -> nn.Module:
    weight = read_part(experts.get_parameter(name), index)
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    # A copy in memory only where the numbers are used as they are.
    linear.weight = nn.Parameter(weight.float() if form is None else weight, requires_grad=False)
    return linear if form is None else quantized(linear, form, ROUTED_EXPERTS)


def stock_moe(options: PackOptions) -> ModulePass:
    """The pass for experts stored as `options.full_experts` says."""
    form = options.weight_format(options.full_experts)

    def rewrite(module: nn.Module) -> nn.Module:
        assert isinstance(module, MoteLayer)
        return StockMoeLayer(module, form)

    return ModulePass(name="stock-moe", pattern=_is_baseline, check=lambda module: None, rewrite=rewrite)


def _is_baseline(module: nn.Module) -> bool:
    if not isinstance(module, MoteLayer):
        return False
    return module.settings.experts == "full" and module.settings.shared_expert == "none"
