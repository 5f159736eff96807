"""The MoTE layer (arXiv 2506.14435): y = FFN_shared(x) + sum over the selected experts of p_e(x) * FFN_ternary_e(x)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mote_export.model.configuration import MoeSettings
from mote_export.model.quantizers import fake_quantize_activations, fake_ternarize

ROUTER_INIT_STD = 0.02


class TernaryExperts(nn.Module):
    """E gated FFNs, `down(silu(gate(x)) * up(x))`, that compute with ternary weights and int8 activations.

    The parameters are the full-precision master weights that quantization-aware training updates:
    gate_proj and up_proj [E, I, H], down_proj [E, H, I]. Each [., .] matrix has a ternary scale of its own.
    """

    def __init__(self, num_experts: int, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_proj = nn.Parameter(torch.empty(num_experts, intermediate_size, hidden_size))
        self.up_proj = nn.Parameter(torch.empty(num_experts, intermediate_size, hidden_size))
        self.down_proj = nn.Parameter(torch.empty(num_experts, hidden_size, intermediate_size))
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)

    def copy_from(self, mlp: nn.Module) -> None:
        """Starts every expert as the pretrained FFN."""
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                parameter.copy_(mlp.get_parameter(f"{name}.weight"))

    def forward(self, x: Tensor, expert: Tensor, weight: Tensor) -> Tensor:
        """Weighted sum of the selected experts.

        Args:
            x: [T, H]. expert: int64 [T, k], indices of the selected experts. weight: [T, k], their gates.

        Returns:
            [T, H], dtype of x.
        """
        x_quantized = fake_quantize_activations(x)
        y = torch.zeros_like(x)
        for index in range(self.gate_proj.shape[0]):
            token, rank = torch.where(expert == index)
            if token.numel() == 0:
                continue
            tokens = x_quantized[token]
            gate = F.linear(tokens, fake_ternarize(self.gate_proj[index]))
            up = F.linear(tokens, fake_ternarize(self.up_proj[index]))
            hidden = fake_quantize_activations(F.silu(gate) * up)
            output = F.linear(hidden, fake_ternarize(self.down_proj[index]))
            y = y.index_add(0, token, output * weight[token, rank, None].to(output.dtype))
        return y


class MoteLayer(nn.Module):
    """Replaces a gated MLP: the MLP itself as `shared_expert`, a `router` [E, H] without bias, and ternary `experts`.

    forward: [..., H] to [..., H]. In training mode `aux_loss` holds the load-balancing loss of the last forward pass;
    `expert_counts` [E] counts the tokens that each expert received in it.
    """

    def __init__(self, shared_expert: nn.Module, settings: MoeSettings) -> None:
        super().__init__()
        intermediate_size, hidden_size = shared_expert.get_parameter("gate_proj.weight").shape
        self.settings = settings
        self.shared_expert = shared_expert
        self.router = nn.Linear(hidden_size, settings.num_experts, bias=False)
        nn.init.normal_(self.router.weight, std=ROUTER_INIT_STD)
        self.experts = TernaryExperts(settings.num_experts, hidden_size, intermediate_size)
        self.aux_loss: Tensor | None = None
        self.expert_counts: Tensor | None = None

    def forward(self, hidden_states: Tensor) -> Tensor:
        x = hidden_states.reshape(-1, hidden_states.shape[-1])
        logits = F.linear(x.float(), self.router.weight.float())
        probability = logits.softmax(dim=-1)
        expert = logits.topk(self.settings.top_k, dim=-1).indices
        weight = probability.gather(-1, expert)
        if self.settings.normalize_topk:
            weight = weight / weight.sum(dim=-1, keepdim=True)
        self.expert_counts = torch.bincount(expert.flatten(), minlength=self.settings.num_experts).detach()
        self.aux_loss = router_load_balancing_loss(probability, self.expert_counts) if self.training else None
        y = self.experts(x, expert, weight)
        return self.shared_expert(hidden_states) + y.view_as(hidden_states)


def router_load_balancing_loss(probability: Tensor, expert_counts: Tensor) -> Tensor:
    """E * sum_i f_i * P_i (Switch Transformers, arXiv 2101.03961, eq. 4 without its coefficient); 1 when balanced.

    Args:
        probability: [T, E], the router's softmax. expert_counts: int64 [E], selections of each expert.

    Returns:
        A scalar with a gradient through `probability`.
    """
    fraction = expert_counts / expert_counts.sum().clamp(min=1)
    return probability.shape[-1] * (fraction * probability.mean(dim=0)).sum()
