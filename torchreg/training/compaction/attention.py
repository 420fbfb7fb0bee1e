"""Attention heads that add nothing, or a constant, and attention without them.

A head adds ``W_h (softmax(q k) v_h)``. It adds nothing where its columns ``W_h`` of the output projection are zero, or
its values are: zero rows of the value projection, and a bias of zero. With a bias b that is not zero its values all
equal b, so that a weighted mean of them is b, and ``W_h b`` belongs to the bias of the output projection; dropout of
the weights and an appended zero key (add_zero_attn) spoil that. Where every key of a query is
masked there is no mean, and what attention gives there is not defined.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import Module
from torch.nn.functional import pad, scaled_dot_product_attention
from torch.nn.utils import skip_init

from torchreg.functional.reductions import wide


def removable_heads(module: nn.MultiheadAttention) -> Tensor:
    """The heads without which the output is the same, (heads,); at least one stays.

    A head with constant values counts where dropout of the attention weights is off: it is 0, or the module evaluates.
    """
    n, values, bias = module.num_heads, _projections(module)[2], _values_bias(module)
    unread = (_out_columns(module) == 0).all(2).all(0)
    same = (values.reshape(n, -1) == 0).all(1)
    zero = same & (bias == 0).all(1)
    if module.bias_v is not None:
        extra = module.bias_v.detach().reshape(n, -1)
        zero, same = zero & (extra == 0).all(1), same & (extra == bias).all(1)
    if module.add_zero_attn or (module.dropout and module.training):
        same = zero
    removable = unread | zero | same
    if bool(removable.all()):
        removable = removable.clone()
        removable[0] = False
    return removable


class ReducedAttention(Module):
    """Attention with fewer heads than its width holds, behind the interface of ``nn.MultiheadAttention``.

    ``nn.MultiheadAttention`` ties the number of heads to the width; here the projections are plain Linear layers of
    (kept heads * head width) outputs, and attention is ``scaled_dot_product_attention``. Masks, batches, nested inputs
    and appended keys are as there. Attention weights are not returned: the second output is None, and to ask for the
    weights of each head is an error.

    Args:
        module: the attention that it replaces.
        keep: (heads,), the heads that stay.

    Raises:
        ValueError: in ``forward``, if the weights of each head are asked for.
    """

    q_proj: nn.Linear
    k_proj: nn.Linear
    v_proj: nn.Linear
    heads: Tensor
    bias_k: nn.Parameter | None
    bias_v: nn.Parameter | None

    def __init__(self, module: nn.MultiheadAttention, keep: Tensor) -> None:
        super().__init__()
        self.embed_dim, self.kdim, self.vdim = module.embed_dim, module.kdim, module.vdim
        self.batch_first, self.dropout, self.add_zero_attn = module.batch_first, module.dropout, module.add_zero_attn
        self.num_heads, self.head_dim, self.all_heads = int(keep.sum()), module.head_dim, module.num_heads
        self._qkv_same_embed_dim = False  # an encoder layer of torch asks this before it reads one fused weight
        rows = keep.repeat_interleave(module.head_dim)
        self.register_buffer("heads", keep.nonzero()[:, 0])
        bias, sources = module.in_proj_bias, _sources(module)
        biases = [None] * 3 if bias is None else [b[rows] for b in bias.detach().chunk(3)]
        self.q_proj, self.k_proj, self.v_proj = (
            linear(w[rows], b, source, bias) for w, b, source in zip(_projections(module), biases, sources, strict=True)
        )
        for name in ("bias_k", "bias_v"):
            extra = getattr(module, name)
            self.register_parameter(name, None if extra is None else _parameter(extra.detach()[..., rows], extra))
        self.out_proj = _output(module, keep, rows)
        self.train(module.training)

    @property
    def in_proj_weight(self) -> Tensor:
        """A weight whose type and device torch's encoder asks for; it computes by `forward`."""
        return self.q_proj.weight

    @property
    def in_proj_bias(self) -> Tensor | None:
        """A bias whose type and device torch's encoder asks for; it computes by `forward`."""
        return self.q_proj.bias

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, None]:
        """Attention as ``nn.MultiheadAttention`` defines it, and None in the place of the weights."""
        if need_weights and not average_attn_weights:
            raise ValueError(
                f"{self.all_heads - self.num_heads} of {self.all_heads} heads were removed, so there are no attention "
                "weights of each head to return; keep the attention as it was, or use need_weights=False."
            )
        if is_causal and attn_mask is None:
            raise RuntimeError("Need attn_mask if specifying the is_causal hint.")
        if query.is_nested:
            return self._nested(query, key, value), None
        batched = query.dim() == 3
        if not batched:
            query, key, value = (x[None] for x in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask[None]
        elif not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        output = self._attend(query, key, value, self._mask(attn_mask, key_padding_mask, query))
        if not batched:
            return output[0], None
        return output if self.batch_first else output.transpose(0, 1), None

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = self.q_proj(query), self.k_proj(key), self.v_proj(value)
        if self.bias_k is not None and self.bias_v is not None:
            k = torch.cat([k, self.bias_k.expand(len(k), 1, -1)], 1)
            v = torch.cat([v, self.bias_v.expand(len(v), 1, -1)], 1)
        if self.add_zero_attn:
            k, v = (pad(x, (0, 0, 0, 1)) for x in (k, v))
        if mask is not None:
            mask = pad(mask, (0, k.shape[1] - mask.shape[-1]))  # appended keys are never masked
        q, k, v = (x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2) for x in (q, k, v))
        dropout = self.dropout if self.training else 0.0
        mixed = scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))

    def _mask(self, attn_mask: Tensor | None, key_padding_mask: Tensor | None, query: Tensor) -> Tensor | None:
        """What is added to the scores, (batch or 1, heads or 1, queries or 1, keys)."""
        parts = []
        if attn_mask is not None:
            if attn_mask.dim() == 3:
                attn_mask = attn_mask.unflatten(0, (-1, self.all_heads))[:, self.heads]
            parts.append(_added(attn_mask, query))
        if key_padding_mask is not None:
            parts.append(_added(key_padding_mask, query)[:, None, None])
        if not parts:
            return None
        mask = parts[0] if len(parts) == 1 else parts[0] + parts[1]
        return mask[(None,) * (4 - mask.dim())] if mask.dim() < 4 else mask

    def _nested(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Sequences of several lengths, which an encoder makes of a padded batch."""
        lengths = [len(x) for x in key.unbind()]
        q, k, v = (x.to_padded_tensor(0.0) for x in (query, key, value))
        places = torch.arange(k.shape[1], device=k.device)
        padding = places >= torch.tensor(lengths, device=k.device)[:, None]
        output = self._attend(q, k, v, self._mask(None, padding, q))
        parts = [x[: len(own)] for x, own in zip(output, query.unbind(), strict=True)]
        return torch.nested.as_nested_tensor(parts)


def _added(mask: Tensor, query: Tensor) -> Tensor:
    if mask.dtype is not torch.bool:
        return mask.to(query.dtype)
    return torch.zeros_like(mask, dtype=query.dtype).masked_fill(mask, -torch.inf)


def _sources(module: nn.MultiheadAttention) -> list[Tensor]:
    """The parameters that hold the weights of queries, keys and values."""
    apart = [module.q_proj_weight, module.k_proj_weight, module.v_proj_weight]
    return apart if module.in_proj_weight is None else [module.in_proj_weight] * 3


def _projections(module: nn.MultiheadAttention) -> list[Tensor]:
    """The weights of queries, keys and values, (width, inputs) each."""
    apart = module.in_proj_weight is None
    return [w.detach() for w in (_sources(module) if apart else module.in_proj_weight.chunk(3))]


def _values_bias(module: nn.MultiheadAttention) -> Tensor:
    """The bias of each head's values, (heads, head width)."""
    like = module.out_proj.weight
    bias = like.new_zeros(module.embed_dim) if module.in_proj_bias is None else module.in_proj_bias.chunk(3)[2]
    return bias.detach().reshape(module.num_heads, -1)


def _out_columns(module: nn.MultiheadAttention) -> Tensor:
    """The output projection's columns by head, (width, heads, head width)."""
    return module.out_proj.weight.detach().unflatten(1, (module.num_heads, -1))


def _output(module: nn.MultiheadAttention, keep: Tensor, rows: Tensor) -> nn.Linear:
    """The output projection of the kept heads, with the constants of the others in its bias."""
    same = ~keep & (_projections(module)[2].reshape(module.num_heads, -1) == 0).all(1)
    constant = wide(_values_bias(module)) * same[:, None]
    offset = torch.einsum("ohd,hd->o", wide(_out_columns(module)), constant)
    weight, bias = module.out_proj.weight, module.out_proj.bias
    if bias is not None:
        total: Tensor | None = (wide(bias.detach()) + offset).to(bias.dtype)
    else:
        total = offset.to(weight.dtype) if bool(offset.any()) else None
    return linear(weight.detach()[:, rows], total, weight, bias)


def linear(weight: Tensor, bias: Tensor | None, of_weight: Tensor, of_bias: Tensor | None) -> nn.Linear:
    """A Linear layer of these tensors, trained where the parameters they come from are."""
    outputs, inputs = weight.shape
    made = skip_init(nn.Linear, inputs, outputs, bias=bias is not None, device=weight.device, dtype=weight.dtype)
    made.weight = _parameter(weight, of_weight)
    if bias is not None:
        made.bias = _parameter(bias, of_weight if of_bias is None else of_bias)
    return made


def _parameter(value: Tensor, like: Tensor) -> nn.Parameter:
    return nn.Parameter(value.detach().clone(), requires_grad=like.requires_grad)
