# Copyright 2026 The MegaVit team. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""MegaVit, top to bottom: from pixels to patches, through the encoder, to pooled features and logits.

What is unusual about it, compared with transformers' ViT:
- attention and MLP run in parallel on one normalised input, with normalised queries and keys and without biases on the
  query, key and value projections and on the norms (ViT-22B, https://huggingface.co/papers/2302.05442, section 2);
  plain ViT's block is one setting away;
- the position embeddings follow the patch grid of the images, so any height and width that the patch size divides
  works, non-square and larger than the pre-training grid included;
- patches are projected by a linear layer over (row, column, channel), SigLIP 2's order, so that one weight serves
  images and ready-cut patches;
- pooling is multihead attention with one learned query (MAP, https://huggingface.co/papers/2106.04560), and its result
  is what the classifier reads.
"""

import math
from collections.abc import Callable

import torch
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling, ImageClassifierOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, auto_docstring
from transformers.utils.generic import can_return_tuple
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .configuration_megavit import MegaVitConfig


def build_norm(config: MegaVitConfig, size: int) -> nn.Module:
    """Returns the norm of `config.norm_type` over a last dimension of `size`."""
    # CODEPATH: rms_norm in the megavit-* presets, layer_norm in vit-b16, vit-l16 and vit-h14.
    if config.norm_type == "rms_norm":
        return nn.RMSNorm(size, eps=config.layer_norm_eps)
    return nn.LayerNorm(size, eps=config.layer_norm_eps, bias=config.norm_bias)


class MegaVitPatchEmbeddings(nn.Module):
    """Cuts images into patches and projects each patch to `hidden_size`."""

    def __init__(self, config: MegaVitConfig):
        super().__init__()
        self.patch_size = config.patch_size
        self.num_channels = config.num_channels
        patch_dim = math.prod(config.patch_size) * config.num_channels
        self.pixel_norm = self.norm = nn.Identity()
        # CODEPATH: the patch norms are vit-pytorch's, mega-vit's and zeta's; no preset has them.
        if config.patch_norm:
            self.pixel_norm = build_norm(config, patch_dim)
            self.norm = build_norm(config, config.hidden_size)
        self.projection = nn.Linear(patch_dim, config.hidden_size)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        batch_size, _, height, width = pixel_values.shape
        patch_height, patch_width = self.patch_size
        rows, columns = height // patch_height, width // patch_width
        # (batch, channel, row * y, column * x) -> (batch, row, column, y, x, channel), by two copies that keep lines of
        # pixels together: faster than one copy that moves every number by itself
        patches = pixel_values.permute(0, 2, 3, 1).reshape(batch_size, rows, patch_height, columns, -1)
        patches = patches.transpose(2, 3).reshape(batch_size, rows * columns, -1)
        return self.norm(self.projection(self.pixel_norm(patches)))


class MegaVitEmbeddings(nn.Module):
    """Patch embeddings plus position embeddings, behind the class token and the register tokens, where there are any."""

    def __init__(self, config: MegaVitConfig):
        super().__init__()
        self.config = config
        self.patch_embeddings = MegaVitPatchEmbeddings(config)
        self.cls_token = self.register_tokens = self.position_embeddings = None
        # CODEPATH: the class token is in the vit-* presets, not in the megavit-* presets, which pool by attention.
        if config.use_cls_token:
            self.cls_token = nn.Parameter(torch.empty(1, 1, config.hidden_size))
        # CODEPATH: register tokens are in timm's vit_pwee_patch16_reg1 and in DINOv2 with registers; no preset has them.
        if config.num_register_tokens:
            self.register_tokens = nn.Parameter(torch.empty(1, config.num_register_tokens, config.hidden_size))
        rows, columns = config.grid_size
        # CODEPATH: "learned" in every preset, "factorized" in NaViT, "sincos2d" in SimpleViT's checkpoints.
        if config.position_embedding_type == "learned":
            # The class token's own position comes first, as in ViT.
            num_positions = rows * columns + int(config.use_cls_token)
            self.position_embeddings = nn.Parameter(torch.empty(1, num_positions, config.hidden_size))
        # CODEPATH: as above.
        elif config.position_embedding_type == "factorized":
            self.row_embeddings = nn.Parameter(torch.empty(rows, config.hidden_size))
            self.column_embeddings = nn.Parameter(torch.empty(columns, config.hidden_size))
        self.token_dropout_prob = config.token_dropout_prob
        self.dropout = nn.Dropout(config.embedding_dropout_prob)

    def learned_positions(self, rows: int, columns: int) -> torch.Tensor:
        """Returns the learned grid, resized to (rows, columns) where it differs: (rows * columns, hidden_size)."""
        positions = self.position_embeddings[0, int(self.config.use_cls_token) :]
        grid_size = self.config.grid_size
        if (rows, columns) == grid_size:
            return positions
        # In float32, because a rounded weight shifts every patch of a row or column alike.
        grid = positions.float().unflatten(0, grid_size).permute(2, 0, 1)[None]
        grid = nn.functional.interpolate(grid, size=(rows, columns), mode="bicubic", align_corners=False)
        return grid[0].flatten(1).T.to(positions.dtype)

    def factorized_positions(self, rows: int, columns: int) -> torch.Tensor:
        """
        Returns the sum of a row's and a column's embedding (NaViT, section 2.1): (rows * columns, hidden_size).
        Coordinates are absolute; a table that is too short for the image is stretched to its length.
        """

        def table(embeddings: torch.Tensor, length: int) -> torch.Tensor:
            if length <= embeddings.shape[0]:
                return embeddings[:length]
            stretched = nn.functional.interpolate(embeddings.float().T[None], size=length, mode="linear")
            return stretched[0].T.to(embeddings.dtype)

        return (table(self.row_embeddings, rows)[:, None] + table(self.column_embeddings, columns)).flatten(0, 1)

    def sincos2d_positions(self, rows: int, columns: int) -> torch.Tensor:
        """Returns MoCo v3's fixed sines and cosines, as big_vision's `posemb_sincos_2d`: (rows * columns, hidden_size)."""
        weight = self.patch_embeddings.projection.weight
        num_frequencies = self.config.hidden_size // 4
        exponents = torch.arange(num_frequencies, dtype=torch.float32, device=weight.device)
        omega = 10_000 ** -(exponents / max(num_frequencies - 1, 1))
        y = torch.arange(rows, dtype=torch.float32, device=weight.device)[:, None] * omega
        x = torch.arange(columns, dtype=torch.float32, device=weight.device)[:, None] * omega
        y, x = y[:, None].expand(-1, columns, -1), x.expand(rows, -1, -1)
        return torch.cat([x.sin(), x.cos(), y.sin(), y.cos()], dim=-1).flatten(0, 1).to(weight.dtype)

    def drop_tokens(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Keeps a random subset of each image's patches, as many as `token_dropout_prob` leaves (NaViT, section 2.1)."""
        num_patches = embeddings.shape[1]
        num_kept = max(1, round(num_patches * (1 - self.token_dropout_prob)))
        kept = torch.rand(embeddings.shape[:2], device=embeddings.device).argsort(dim=1)[:, :num_kept]
        return embeddings.gather(1, kept[..., None].expand(-1, -1, embeddings.shape[2]))

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        rows, columns = (size // patch for size, patch in zip(pixel_values.shape[2:], self.config.patch_size))
        embeddings = self.patch_embeddings(pixel_values)
        position_type = self.config.position_embedding_type
        if position_type != "none":
            embeddings = embeddings + getattr(self, f"{position_type}_positions")(rows, columns)
        if self.training and self.token_dropout_prob > 0:
            embeddings = self.drop_tokens(embeddings)

        prefix = [token for token in (self.cls_token, self.register_tokens) if token is not None]
        if self.cls_token is not None and self.position_embeddings is not None:
            prefix[0] = self.cls_token + self.position_embeddings[:, :1]
        if prefix:
            prefix = [token.expand(embeddings.shape[0], -1, -1) for token in prefix]
            embeddings = torch.cat([*prefix, embeddings], dim=1)
        return self.dropout(embeddings)


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Unpack[TransformersKwargs],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention by its definition, the one implementation that returns the attention maps."""
    attn_weights = torch.matmul(query * scaling, key.transpose(2, 3))
    if attention_mask is not None:
        attn_weights = attn_weights + attention_mask
    attn_weights = nn.functional.softmax(attn_weights, dim=-1)  # torch computes it in float32 whatever the dtype
    attn_weights = nn.functional.dropout(attn_weights, p=dropout, training=module.training)
    attn_output = torch.matmul(attn_weights, value).transpose(1, 2).contiguous()
    return attn_output, attn_weights


class MegaVitSelfAttention(nn.Module):
    """Multi-head attention up to the output projection, among tokens or, for pooling, from queries to tokens."""

    def __init__(self, config: MegaVitConfig):
        super().__init__()
        self.config = config
        self.head_dim = config.head_dim
        self.scaling = config.head_dim**-0.5
        self.is_causal = False
        inner_size = config.num_attention_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, inner_size, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.hidden_size, inner_size, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.hidden_size, inner_size, bias=config.qkv_bias)
        self.q_norm = self.k_norm = self.v_norm = nn.Identity()
        # CODEPATH: the megavit-* presets normalise queries and keys (ViT-22B), the vit-* presets nothing.
        if config.qk_norm:
            self.q_norm, self.k_norm = build_norm(config, config.head_dim), build_norm(config, config.head_dim)
        # CODEPATH: checkpoints of mega-vit 0.0.4 and zeta normalise keys and values.
        if config.layer_type == "mega_vit":
            self.k_norm, self.v_norm = build_norm(config, config.head_dim), build_norm(config, config.head_dim)

    def forward(
        self,
        hidden_states: torch.Tensor,
        queries: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        queries = hidden_states if queries is None else queries
        # (batch, tokens, inner_size) -> (batch, heads, tokens, head_dim); -1 is the number of heads on this rank
        heads = (-1, self.head_dim)
        query = self.q_norm(self.q_proj(queries).unflatten(-1, heads)).transpose(1, 2)
        key = self.k_norm(self.k_proj(hidden_states).unflatten(-1, heads)).transpose(1, 2)
        value = self.v_norm(self.v_proj(hidden_states).unflatten(-1, heads)).transpose(1, 2)

        implementation = self.config._attn_implementation
        is_cpu_bf16 = query.device.type == "cpu" and query.dtype == torch.bfloat16
        if kwargs.get("output_attentions"):
            implementation = "eager"  # the only one that has attention maps to give
        elif implementation == "sdpa" and is_cpu_bf16 and attention_mask is None and key.shape[2] <= 384:
            # sdpa's CPU kernel gains nothing from bfloat16 instructions, two matrix products do. Beyond some hundred
            # tokens their attention map outgrows the caches.
            implementation = "eager"
        attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
        attn_output, attn_weights = attention_interface(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.config.attention_probs_dropout_prob if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        return attn_output.flatten(2), attn_weights


class MegaVitSelfOutput(nn.Module):
    """The output projection of the attention."""

    def __init__(self, config: MegaVitConfig):
        super().__init__()
        inner_size = config.num_attention_heads * config.head_dim
        self.o_proj = nn.Linear(inner_size, config.hidden_size, bias=config.attention_output_bias)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.o_proj(hidden_states))


class MegaVitAttention(nn.Module):
    """The attention branch of a block."""

    def __init__(self, config: MegaVitConfig):
        super().__init__()
        self.attention = MegaVitSelfAttention(config)
        self.output = MegaVitSelfOutput(config)

    def forward(self, hidden_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> torch.Tensor:
        hidden_states, _ = self.attention(hidden_states, **kwargs)
        return self.output(hidden_states)


class MegaVitIntermediate(nn.Module):
    """The first half of the MLP."""

    def __init__(self, config: MegaVitConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.activation_fn = ACT2FN[config.hidden_act]
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.activation_fn(self.fc1(hidden_states)))


class MegaVitOutput(nn.Module):
    """The second half of the MLP."""

    def __init__(self, config: MegaVitConfig):
        super().__init__()
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.fc2(hidden_states))


class MegaVitLayerScale(nn.Module):
    """A learned gain on a residual branch (CaiT, https://huggingface.co/papers/2103.17239)."""

    def __init__(self, config: MegaVitConfig):
        super().__init__()
        self.init_value = config.layer_scale_init_value
        self.lambda1 = nn.Parameter(torch.empty(config.hidden_size))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states * self.lambda1


class MegaVitDropPath(nn.Module):
    """Stochastic depth (https://huggingface.co/papers/1603.09382): drops the branch of whole images in training."""

    def __init__(self, drop_prob: float):
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if self.drop_prob == 0 or not self.training:
            return hidden_states
        keep_prob = 1 - self.drop_prob
        kept = hidden_states.new_empty(hidden_states.shape[0], 1, 1).bernoulli_(keep_prob)
        return hidden_states * (kept / keep_prob)

    def extra_repr(self) -> str:
        return f"p={self.drop_prob}"


class MegaVitLayer(GradientCheckpointingLayer):
    """One block of the encoder, of `config.layer_type`."""

    def __init__(self, config: MegaVitConfig, drop_path_prob: float = 0.0):
        super().__init__()
        self.layer_type = config.layer_type
        self.norm1 = build_norm(config, config.hidden_size)
        self.attention = MegaVitAttention(config)
        self.intermediate = MegaVitIntermediate(config)
        self.output = MegaVitOutput(config)
        # CODEPATH: one norm and one scale in the megavit-* presets; the vit-* presets and mega-vit have one per branch.
        self.norm2 = None if config.layer_type == "parallel" else build_norm(config, config.hidden_size)
        self.layer_scale1 = self.layer_scale2 = nn.Identity()
        # CODEPATH: DINOv2's checkpoints and timm's vit_pwee_patch16_reg1 have scales; no preset has.
        if config.layer_scale_init_value is not None:
            self.layer_scale1 = MegaVitLayerScale(config)
            if self.norm2 is not None:
                self.layer_scale2 = MegaVitLayerScale(config)
        self.drop_path = MegaVitDropPath(drop_path_prob)

    def mlp(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """The MLP branch of the block."""
        return self.output(self.intermediate(hidden_states))

    def forward(self, hidden_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> torch.Tensor:
        x = hidden_states
        # CODEPATH: the megavit-* presets. ViT-22B, section 2: both branches read one norm and add up.
        if self.layer_type == "parallel":
            y = self.norm1(x)
            attention, mlp = self.attention(y, **kwargs), self.mlp(y)
            if torch.compiler.is_compiling():
                # The biases of o_proj and fc2 have the same gradient. Inductor (torch 2.13) gives both sums one name in
                # its C++ for bfloat16 on a CPU, which then doesn't compile; this keeps them apart.
                mlp = mlp * 1.0
            return x + self.drop_path(self.layer_scale1(attention + mlp))
        # CODEPATH: vit-b16, vit-l16, vit-h14.
        if self.layer_type == "sequential":
            x = x + self.drop_path(self.layer_scale1(self.attention(self.norm1(x), **kwargs)))
            return x + self.drop_path(self.layer_scale2(self.mlp(self.norm2(x))))
        # CODEPATH: checkpoints of mega-vit 0.0.4 and zeta: parallel, but each branch has a norm of its own.
        return x + self.drop_path(self.attention(self.norm1(x), **kwargs) + self.mlp(self.norm2(x)))


class MegaVitEncoder(nn.Module):
    """The blocks and the final norm."""

    def __init__(self, config: MegaVitConfig):
        super().__init__()
        self.layer_type = config.layer_type
        # The rate grows linearly with depth, as in the paper on stochastic depth and in timm.
        rates = torch.linspace(0, config.drop_path_rate, config.num_hidden_layers, device="cpu").tolist()
        self.layers = nn.ModuleList([MegaVitLayer(config, rate) for rate in rates])
        self.norm = build_norm(config, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> torch.Tensor:
        for layer in self.layers:
            if self.layer_type == "mega_vit":
                # CODEPATH: mega-vit's one norm, shared by all layers and the end, overwrites the residual stream.
                hidden_states = self.norm(hidden_states)
            hidden_states = layer(hidden_states, **kwargs)
        return self.norm(hidden_states)


class MegaVitPooler(nn.Module):
    """Turns the tokens of an image into one vector, by `config.pooling_type`."""

    def __init__(self, config: MegaVitConfig):
        super().__init__()
        self.pooling_type = config.pooling_type
        self.num_prefix_tokens = int(config.use_cls_token) + config.num_register_tokens
        # CODEPATH: checkpoints of mega-vit 0.0.4 and zeta take the mean over the class token too.
        if config.layer_type == "mega_vit":
            self.num_prefix_tokens = 0
        # CODEPATH: "attention" in the megavit-* presets, "cls" in vit-*, "mean" in SimpleViT's checkpoints.
        if config.pooling_type == "attention":
            # big_vision's MAPHead; its attention follows the settings of the encoder's.
            self.probe = nn.Parameter(torch.empty(1, 1, config.hidden_size))
            self.attention = MegaVitAttention(config)
            self.norm = build_norm(config, config.hidden_size)
            self.intermediate = MegaVitIntermediate(config)
            self.output = MegaVitOutput(config)

    def forward(self, hidden_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> torch.Tensor:
        if self.pooling_type == "cls":
            return hidden_states[:, 0]
        patches = hidden_states[:, self.num_prefix_tokens :]
        if self.pooling_type == "mean":
            return patches.mean(dim=1)
        x = self.attention(patches, queries=self.probe.expand(patches.shape[0], -1, -1), **kwargs)
        x = x + self.output(self.intermediate(self.norm(x)))
        return x[:, 0]


@auto_docstring
class MegaVitPreTrainedModel(PreTrainedModel):
    config: MegaVitConfig
    base_model_prefix = "megavit"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["MegaVitEmbeddings", "MegaVitLayer", "MegaVitPooler"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {
        "hidden_states": MegaVitLayer,
        # The pooler's map has another shape, so it stays out.
        "attentions": OutputRecorder(MegaVitSelfAttention, index=1, layer_name="encoder"),
    }
    _input_embed_layer = "patch_embeddings"

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """Initialises `module` as big_vision's models/vit.py does, but for MLP biases: zero, where it has N(0, 1e-6)."""
        if isinstance(module, nn.Linear):
            if module is self.get_input_embeddings().projection:
                # Flax's lecun_normal; 0.8796 is the standard deviation of N(0, 1) cut off at 2.
                std = module.in_features**-0.5 / 0.87962566
                init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
            else:
                init.xavier_uniform_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, MegaVitEmbeddings):
            # The registers are not zero, as the class token is: equal tokens without positions would stay equal.
            stds = {"cls_token": 0.0, "register_tokens": self.config.initializer_range}
            for name, parameter in module.named_parameters(recurse=False):
                init.normal_(parameter, std=stds.get(name, self.config.hidden_size**-0.5))
        elif isinstance(module, MegaVitLayerScale):
            init.constant_(module.lambda1, module.init_value)
        elif isinstance(module, MegaVitPooler) and module.pooling_type == "attention":
            bound = math.sqrt(6 / (1 + self.config.hidden_size))  # Xavier's for a kernel from 1 to hidden_size
            init.uniform_(module.probe, -bound, bound)
        else:
            super()._init_weights(module)


@auto_docstring(
    custom_intro="""
    The MegaVit encoder with its pooler: `last_hidden_state` holds the normalised tokens of each image (class token,
    register tokens, patches row by row), `pooler_output` one vector per image.
    """
)
class MegaVitModel(MegaVitPreTrainedModel):
    def __init__(self, config: MegaVitConfig):
        super().__init__(config)
        self.embeddings = MegaVitEmbeddings(config)
        self.encoder = MegaVitEncoder(config)
        self.pooler = MegaVitPooler(config)
        # Initialize weights and apply final processing
        self.post_init()

    def _check_inputs(self, pixel_values: torch.Tensor | None, interpolate_pos_encoding: bool | None, kwargs: dict):
        """Raises for inputs that the model can't use, before anything is computed from them."""
        if unknown := kwargs.keys() - TransformersKwargs.__annotations__.keys():
            raise TypeError(f"{type(self).__name__}.forward() got unexpected arguments: {', '.join(sorted(unknown))}.")
        if not isinstance(pixel_values, torch.Tensor) or pixel_values.ndim != 4:
            got = tuple(pixel_values.shape) if isinstance(pixel_values, torch.Tensor) else type(pixel_values).__name__
            raise ValueError(f"`pixel_values` must be a tensor (batch, channels, height, width), got {got}.")
        _, channels, *size = pixel_values.shape
        if channels != self.config.num_channels:
            raise ValueError(f"`pixel_values` must have {self.config.num_channels} channels, got {channels}.")
        if any(pixels % patch or pixels == 0 for pixels, patch in zip(size, self.config.patch_size)):
            raise ValueError(
                "`pixel_values` must have a height and width that are multiples of the patch size "
                f"{self.config.patch_size}, got {size}."
            )
        if interpolate_pos_encoding is False and size != self.config.image_size:
            raise ValueError(
                f"`pixel_values` must have the pre-training size {self.config.image_size} when "
                f"`interpolate_pos_encoding` is False, got {size}."
            )

    @capture_outputs(tie_last_hidden_states=False)
    @auto_docstring
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        interpolate_pos_encoding: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        r"""
        interpolate_pos_encoding (`bool`, *optional*):
            Accepted because transformers' ViT has it. The position embeddings follow the size of the images without
            it; `False` refuses images of any other size than `config.image_size`.
        """
        self._check_inputs(pixel_values, interpolate_pos_encoding, kwargs)
        pixel_values = pixel_values.to(self.embeddings.patch_embeddings.projection.weight.dtype)
        hidden_states = self.embeddings(pixel_values)
        last_hidden_state = self.encoder(hidden_states, **kwargs)
        pooler_output = self.pooler(last_hidden_state, **kwargs)
        return BaseModelOutputWithPooling(last_hidden_state=last_hidden_state, pooler_output=pooler_output)


def image_classification_loss(
    labels: torch.Tensor,
    logits: torch.Tensor,
    config: MegaVitConfig,
    num_items_in_batch: torch.Tensor | int | None = None,
    **kwargs,
) -> torch.Tensor:
    """
    Computes the loss of `config.problem_type`, inferred as transformers does where it is `None`.

    Unlike transformers' `ForImageClassificationLoss`, every problem type honours `num_items_in_batch`, so that gradient
    accumulation gives the gradient of the whole batch, and the multi-label loss is ViT-22B's sigmoid cross-entropy:
    summed over the classes, averaged over the images (big_vision's `sigmoid_xent`).

    Args:
        labels (`torch.Tensor`):
            (batch,) class indices for a single label, with -100 for images to ignore; (batch, num_labels) zeros and
            ones for multiple labels; (batch,) or (batch, num_labels) numbers for a regression.
        logits (`torch.Tensor`):
            (batch, num_labels).
        num_items_in_batch (`torch.Tensor` or `int`, *optional*):
            Number of elements of the labels of all the batches whose gradients are accumulated, -100 left out, as
            `Trainer` counts them.

    Returns:
        The loss, a scalar in float32.

    Raises:
        `ValueError`: if the labels don't fit the problem type or the number of classes.
    """
    num_labels = config.num_labels
    problem_type = config.problem_type
    if problem_type is None:
        if num_labels == 1:
            problem_type = "regression"
        else:
            problem_type = (
                "multi_label_classification" if labels.is_floating_point() else "single_label_classification"
            )
    labels, logits = labels.to(logits.device), logits.float()
    shape = (len(logits),) if problem_type == "single_label_classification" else tuple(logits.shape)
    if labels.numel() != math.prod(shape):
        raise ValueError(
            f"`labels` must have the shape {shape} for problem_type={problem_type!r}, got {tuple(labels.shape)}."
        )
    labels = labels.reshape(shape)
    if problem_type == "single_label_classification":
        # On a GPU, torch's own kernel asserts this; to look at the values here would wait for the device.
        if labels.device.type == "cpu" and not torch.compiler.is_compiling():
            wrong = labels[((labels < 0) & (labels != -100)) | (labels >= num_labels)]
            if wrong.numel():
                raise ValueError(f"`labels` must be from 0 to {num_labels - 1}, or -100, got {wrong[0].item()}.")
        total = nn.functional.cross_entropy(logits, labels, reduction="sum")
        num_items = (labels != -100).sum() if num_items_in_batch is None else num_items_in_batch
        return total / num_items
    if problem_type == "multi_label_classification":
        total = nn.functional.binary_cross_entropy_with_logits(logits, labels.float(), reduction="sum") * num_labels
    else:
        total = nn.functional.mse_loss(logits, labels.float(), reduction="sum")
    return total / (labels.numel() if num_items_in_batch is None else num_items_in_batch)


@auto_docstring(
    custom_intro="""
    The MegaVit model with a linear classifier on the pooled output.
    """
)
class MegaVitForImageClassification(MegaVitPreTrainedModel):
    def __init__(self, config: MegaVitConfig):
        super().__init__(config)
        self.megavit = MegaVitModel(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels) if config.num_labels > 0 else nn.Identity()
        self.loss_function = image_classification_loss
        # Initialize weights and apply final processing
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if module is self.classifier and isinstance(module, nn.Linear):
            init.normal_(module.weight, std=self.config.initializer_range)

    @can_return_tuple
    @auto_docstring
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        interpolate_pos_encoding: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ImageClassifierOutput:
        r"""
        labels (`torch.Tensor` of shape `(batch_size,)` or `(batch_size, num_labels)`, *optional*):
            Class indices, or zeros and ones for multiple labels, or numbers for a regression. `config.problem_type`
            decides; see `image_classification_loss`.
        interpolate_pos_encoding (`bool`, *optional*):
            Accepted because transformers' ViT has it, see [`MegaVitModel`].
        """
        outputs: BaseModelOutputWithPooling = self.megavit(
            pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, **kwargs
        )
        logits = self.classifier(outputs.pooler_output)
        loss = None
        if labels is not None:
            loss = self.loss_function(labels, logits, self.config, **kwargs)
        return ImageClassifierOutput(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


__all__ = ["MegaVitForImageClassification", "MegaVitModel", "MegaVitPreTrainedModel"]
