"""The MoTE layer (arXiv 2506.14435): y = FFN_shared(x) + sum over the selected experts of p_e(x) * FFN_ternary_e(x)."""

from contextlib import AbstractContextManager, nullcontext
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mote_export.model.configuration import MoeSettings
from mote_export.model.quantizers import fake_quantize_activations, fake_ternarize

ROUTER_INIT_STD = 0.02


class RoutedExperts(nn.Module):
    """E gated FFNs, `down(silu(gate(x)) * up(x))`, in full precision: the experts of MoE-LLaVA.

    Parameters: gate_proj and up_proj [E, I, H], down_proj [E, H, I].
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

    def used_weight(self, weight: Tensor) -> Tensor:
        """What the forward pass computes with, for master weights [..., N, K]."""
        return weight

    def used_activations(self, x: Tensor) -> Tensor:
        """What the linear layers are given, for activations [..., n]."""
        return x

    def forward(self, x: Tensor, expert: Tensor, weight: Tensor) -> Tensor:
        """Weighted sum of the selected experts.

        Args:
            x: [T, H]. expert: int64 [T, k], indices of the selected experts. weight: [T, k], their gates.

        Returns:
            [T, H], dtype of x.
        """
        x_used = self.used_activations(x)
        y = torch.zeros_like(x)
        for index in range(self.gate_proj.shape[0]):
            token, rank = torch.where(expert == index)
            if token.numel() == 0:
                continue
            tokens = x_used[token]
            gate = F.linear(tokens, self.used_weight(self.gate_proj[index]))
            up = F.linear(tokens, self.used_weight(self.up_proj[index]))
            hidden = self.used_activations(F.silu(gate) * up)
            output = F.linear(hidden, self.used_weight(self.down_proj[index]))
            # Under autocast `output` is narrower than y.
            y = y.index_add(0, token, (output * weight[token, rank, None].to(output.dtype)).to(y.dtype))
        return y


class TernaryExperts(RoutedExperts):
    """`RoutedExperts` that compute with ternary weights and int8 activations.

    The parameters are the full-precision master weights that quantization-aware training updates; each [., .] matrix has a
    ternary scale of its own.
    """

    def used_weight(self, weight: Tensor) -> Tensor:
        return fake_ternarize(weight)

    def used_activations(self, x: Tensor) -> Tensor:
        return fake_quantize_activations(x)


class TernaryMLP(nn.Module):
    """A gated FFN as a ternary expert computes it, for one that every token passes. Parameters as in the FFN it replaces."""

    def __init__(self, mlp: nn.Module) -> None:
        super().__init__()
        self.gate_proj = mlp.get_submodule("gate_proj")
        self.up_proj = mlp.get_submodule("up_proj")
        self.down_proj = mlp.get_submodule("down_proj")

    def forward(self, x: Tensor) -> Tensor:
        x = fake_quantize_activations(x)
        gate, up, down = (
            fake_ternarize(self.get_parameter(f"{name}.weight")) for name in ("gate_proj", "up_proj", "down_proj")
        )
        hidden = fake_quantize_activations(F.silu(F.linear(x, gate)) * F.linear(x, up))
        return F.linear(hidden, down)


class MoteLayer(nn.Module):
    """Replaces a gated MLP: the MLP itself as `shared_expert`, a `router` [E, H] without bias, and `experts`.

    With other `settings.experts` and `settings.shared_expert` it is the layer of MoE-LLaVA or of an ablation.

    forward: [..., H] to [..., H]. Of the last forward pass, without the tokens that `token_mask` leaves out, it keeps
    `expert_counts`, int64 [E], the tokens that each expert received, and in training mode `probability_sum`, [E], with a
    gradient, and `aux_loss`, the load-balancing loss of both.

    `token_mask`: bool, one entry a token of the coming forward passes, False for padding; the model's forward sets it.
    """

    def __init__(self, mlp: nn.Module, settings: MoeSettings) -> None:
        super().__init__()
        intermediate_size, hidden_size = mlp.get_parameter("gate_proj.weight").shape
        shared: dict[str, nn.Module | None] = {"full": mlp, "none": None}
        experts = TernaryExperts if settings.experts == "ternary" else RoutedExperts
        self.settings = settings
        self.shared_expert = TernaryMLP(mlp) if settings.shared_expert == "ternary" else shared[settings.shared_expert]
        self.router = nn.Linear(hidden_size, settings.num_experts, bias=False)
        nn.init.normal_(self.router.weight, std=ROUTER_INIT_STD)
        self.experts = experts(settings.num_experts, hidden_size, intermediate_size)
        self.token_mask: Tensor | None = None
        self.probability_sum: Tensor | None = None
        self.expert_counts: Tensor | None = None

    @property
    def aux_loss(self) -> Tensor | None:
        """The load-balancing loss of the last forward pass; None where it was not in training mode."""
        if self.probability_sum is None or self.expert_counts is None:
            return None
        return balancing_loss_of_sums(self.probability_sum, self.expert_counts, self.num_tokens(self.expert_counts))

    def num_tokens(self, expert_counts: Tensor) -> Tensor:
        """How many tokens were counted: each is sent to `top_k` experts."""
        return expert_counts.sum() // self.settings.top_k

    def train(self, mode: bool = True) -> Self:
        # A mask stays for gradient checkpointing, which runs the layer again in the backward pass; not for another use of it.
        self.token_mask = self.probability_sum = None
        return super().train(mode)

    def forward(self, hidden_states: Tensor) -> Tensor:
        x = hidden_states.reshape(-1, hidden_states.shape[-1])
        with _full_precision(x.device):
            logits = F.linear(x.float(), self.router.weight.float())
        probability = logits.softmax(dim=-1)
        expert = logits.topk(self.settings.top_k, dim=-1).indices
        weight = probability.gather(-1, expert)
        if self.settings.normalize_topk:
            weight = weight / weight.sum(dim=-1, keepdim=True)
        self._record(probability, expert)
        y = self.experts(x, expert, weight).view_as(hidden_states)
        return y if self.shared_expert is None else self.shared_expert(hidden_states) + y

    def _record(self, probability: Tensor, expert: Tensor) -> None:
        if self.token_mask is not None:
            is_token = self.token_mask.reshape(-1)
            probability, expert = probability[is_token], expert[is_token]
        self.expert_counts = torch.bincount(expert.flatten(), minlength=self.settings.num_experts).detach()
        self.probability_sum = probability.sum(dim=0) if self.training else None
        if self.probability_sum is not None and _is_in_backward():
            # Gradient checkpointing runs the layer again: this graph is not the loss's, and would keep all that it saves.
            self.probability_sum = self.probability_sum.detach()


def _is_in_backward() -> bool:
    return torch._C._current_graph_task_id() != -1


def _full_precision(device: torch.device) -> AbstractContextManager[None]:
    """No autocast within: a router in bfloat16 would choose other experts. Nothing where it is off, as in a graph for export."""
    if not torch.is_autocast_enabled(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def router_load_balancing_loss(probability: Tensor, expert_counts: Tensor) -> Tensor:
    """E * sum_i f_i * P_i (Switch Transformers, arXiv 2101.03961, eq. 4 without its coefficient); 1 when balanced.

    Args:
        probability: [T, E], the router's softmax. expert_counts: int64 [E], selections of each expert.

    Returns:
        A scalar with a gradient through `probability`.
    """
    return balancing_loss_of_sums(probability.sum(dim=0), expert_counts, probability.shape[0])


def balancing_loss_of_sums(probability_sum: Tensor, expert_counts: Tensor, tokens: Tensor | int) -> Tensor:
    """`router_load_balancing_loss` from sums over tokens.

    Args:
        probability_sum: [E], of the router's softmax over tokens. expert_counts: int64 [E]. tokens: T, that the mean is over.

    The loss is linear in `probability_sum`: with the counts and T of all processes, the processes' losses add up to that of all
    their tokens.
    """
    fraction = expert_counts / expert_counts.sum().clamp(min=1)
    mean = probability_sum / (tokens.clamp(min=1) if isinstance(tokens, Tensor) else max(1, tokens))
    return probability_sum.shape[-1] * (fraction * mean).sum()
