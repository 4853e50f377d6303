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
"""MegaVit configuration: one set of fields from which plain ViT, ViT-22B, NaViT and mega-vit are settings."""

import difflib
import importlib
import json
import math
from dataclasses import fields
from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers.activations import ACT2FN
from transformers.backbone_utils import BackboneConfigMixin
from transformers.configuration_utils import PreTrainedConfig
from transformers.utils import auto_docstring


_SIZES = ("image_size", "patch_size")
# Far beyond any model. A configuration from a stranger is refused before it costs memory or time.
_LARGEST = {
    "hidden_size": 2**17,
    "num_hidden_layers": 2**12,
    "num_attention_heads": 2**12,
    "head_dim": 2**14,
    "intermediate_size": 2**20,
    "num_channels": 2**12,
    "num_register_tokens": 2**16,
    "num_frames": 2**16,
    "num_temporal_layers": 2**12,
}
_MOST_PIXELS = 2**24
_PROBABILITIES = (
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "embedding_dropout_prob",
    "drop_path_rate",
    "token_dropout_prob",
)

# Fields that have a meaning only beside others
_NEEDED = {
    **dict.fromkeys(("qk_norm_type", "qk_norm_eps", "qk_norm_per_head"), {"qk_norm": True}),
    "position_coordinates": {"position_embedding_type": "factorized"},
    **dict.fromkeys(("position_interpolation", "position_antialias"), {"position_embedding_type": "learned"}),
    "use_cls_position": {"position_embedding_type": "learned", "use_cls_token": True},
    "use_pooler_mlp": {"pooling_type": "attention"},
    "return_class_token": {"use_cls_token": True},
}
# What the block of the packages mega-vit and zeta is defined for
_MEGA_VIT = {
    "norm_type": "layer_norm",
    "norm_bias": True,
    "qk_norm": False,
    "layer_scale_init_value": None,
    "use_final_norm": True,
}


class PatchSize(list):
    """(height, width). transformers' DPT, which knows square patches only, divides a number of pixels by it."""

    def __rfloordiv__(self, pixels: int) -> int:
        if self[0] != self[1]:
            raise ValueError(f"`patch_size` must be square in a DPT, got {list(self)}.")
        return pixels // self[0]


@auto_docstring(
    custom_intro="""
    The configuration of a [`MegaVitModel`]. The defaults are a base-sized model with the block, the normalisation and
    the pooling of [ViT-22B](https://huggingface.co/papers/2302.05442).
    """
)
@strict
class MegaVitConfig(BackboneConfigMixin, PreTrainedConfig):
    r"""
    image_size (`int`, `list[int]` or `tuple[int, int]`, *optional*, defaults to 224):
        Pre-training size in pixels, one number or (height, width). It sets the grid of the position embeddings; the
        model takes any other size that the patch size divides.
    patch_size (`int`, `list[int]` or `tuple[int, int]`, *optional*, defaults to 16):
        Size of a patch in pixels, one number or (height, width).
    layer_type (`str`, *optional*, defaults to `"parallel"`):
        `"parallel"`: attention and MLP read the same normalised input, `y = norm(x); x + attention(y) + mlp(y)`
        (ViT-22B, section 2). `"sequential"`: the pre-norm block of ViT. `"mega_vit"`: what the packages mega-vit 0.0.4
        and zeta compute, for their checkpoints only.
    norm_type (`str`, *optional*, defaults to `"rms_norm"`):
        `"rms_norm"` (ViT-22B: no bias, no centring) or `"layer_norm"`.
    norm_bias (`bool`, *optional*, defaults to `False`):
        Whether layer norms have a bias. An RMSNorm has none.
    qk_norm (`bool`, *optional*, defaults to `True`):
        Whether queries and keys are normalised over `head_dim`, with a gain shared by the heads. The scale of
        `1 / sqrt(head_dim)` stays.
    qk_norm_type (`str`, *optional*):
        `"rms_norm"` or `"layer_norm"` for queries and keys. `None` means `norm_type`; vit-pytorch's NaViT differs.
    qk_norm_eps (`float`, *optional*):
        Epsilon of the norm of queries and keys. `None` means `layer_norm_eps`; vit-pytorch's NaViT differs.
    qk_norm_per_head (`bool`, *optional*, defaults to `False`):
        Whether each head has its own gain in the norm of queries and keys (vit-pytorch's NaViT).
    head_dim (`int`, *optional*):
        Width of a head. `None` means `hidden_size / num_attention_heads`; other values make the inner width of the
        attention differ from `hidden_size`.
    attention_output_bias (`bool`, *optional*, defaults to `True`):
        Whether the output projection of the attention has a bias.
    use_gated_mlp (`bool`, *optional*, defaults to `False`):
        Whether the MLP is gated, `fc2(act(gate_proj(x)) * fc1(x))`, as DINOv2-giant's, whose `hidden_act` is `"silu"`.
    layer_scale_init_value (`float`, *optional*):
        Initial value of the learned gain on each residual branch (CaiT, DINOv2). `None` leaves the gains out.
    patch_norm (`bool`, *optional*, defaults to `False`):
        Whether to normalise the pixels of a patch and its embedding, as vit-pytorch, mega-vit and zeta do.
    patch_bias (`bool`, *optional*, defaults to `True`):
        Whether the projection of the patches has a bias. CLIP's has none.
    use_embedding_norm (`bool`, *optional*, defaults to `False`):
        Whether the embeddings are normalised in front of the first block (CLIP's `pre_layrnorm`, timm's `pre_norm`).
    use_final_norm (`bool`, *optional*, defaults to `True`):
        Whether all tokens are normalised behind the last block. timm's models that pool by the mean are not, nor is CLIP's
        image classifier.
    position_embedding_type (`str`, *optional*, defaults to `"learned"`):
        `"learned"`: one vector per cell of the pre-training grid, resized to other grids. `"factorized"`: a table for
        rows plus one for columns (NaViT, section 2.1). `"sincos2d"`: fixed sines and cosines. `"none"`.
    position_coordinates (`str`, *optional*, defaults to `"absolute"`):
        How factorized positions are looked up. `"absolute"`: by row and column, so the tables must reach as far as the
        largest image. `"fractional"`: by the part of the image's side, so that they are stretched over any image
        (NaViT, section 2.1).
    position_interpolation (`str`, *optional*, defaults to `"bicubic"`):
        How learned positions are resized: `"bicubic"` or `"bilinear"` (SigLIP 2), as `nn.functional.interpolate` does it.
    position_antialias (`bool`, *optional*, defaults to `False`):
        Whether learned positions are resized with antialiasing, as by SigLIP 2, DINOv2 with registers and timm.
    position_keeps_aspect_ratio (`bool`, *optional*, defaults to `False`):
        Whether learned or fractional positions are resized to the square around an image, of which it takes the upper left
        part, so that rows and columns are stretched alike (timm's NaFlexViT, `pos_embed_ar_preserving`).
    use_cls_position (`bool`, *optional*, defaults to `True`):
        Whether the class token has a learned position, where there are such. DeiT III's has none (timm's `no_embed_class`).
    num_register_tokens (`int`, *optional*, defaults to 0):
        Number of learned tokens without a position that are placed before the patches.
    pooling_type (`str`, *optional*, defaults to `"attention"`):
        `"attention"`: multihead attention pooling (MAP) with one learned query; `"cls"`: the class token; `"mean"`:
        the mean of the patch tokens; `"cls_mean"`: both, one behind the other (DINOv2's classifier); `"cls_register"`: the
        class token and the first register token (DeiT's distillation token).
    use_pooler_mlp (`bool`, *optional*, defaults to `True`):
        Whether an MLP follows in attention pooling. vit-pytorch's NaViT has none.
    use_pooler_norm (`bool`, *optional*, defaults to `False`):
        Whether the pooled vector is normalised (timm's `fc_norm`, vit-pytorch's NaViT).
    use_cls_token (`bool`, *optional*):
        Whether there is a class token. `None` means only where `pooling_type` needs it.
    embedding_dropout_prob (`float`, *optional*, defaults to 0.0):
        Dropout on the sum of patch and position embeddings.
    token_dropout_prob (`float`, *optional*, defaults to 0.0):
        Share of the patches of each image that training leaves out (NaViT, section 2.1).
    initializer_range (`float`, *optional*, defaults to 0.02):
        Standard deviation of the initial classifier and register tokens; 0 gives big_vision's all-zero classifier.
        Everything else follows big_vision's initialisation, whatever this value.
    freeze_backbone (`bool`, *optional*, defaults to `False`):
        Whether everything below a head, or all of a [`MegaVitBackbone`], stays as it is: no gradients, no dropout.
    semantic_loss_ignore_index (`int`, *optional*, defaults to 255):
        Label of pixels that don't count in the loss of [`MegaVitForSemanticSegmentation`].
    num_frames (`int`, *optional*, defaults to 16):
        The largest number of frames of a clip for [`MegaVitForVideoClassification`].
    num_temporal_layers (`int`, *optional*, defaults to 4):
        Number of blocks that the features of a clip's frames go through.
    apply_layernorm (`bool`, *optional*, defaults to `True`):
        Whether [`MegaVitBackbone`] applies the final norm to every feature map.
    reshape_hidden_states (`bool`, *optional*, defaults to `True`):
        Whether [`MegaVitBackbone`] returns maps, (batch, hidden_size, rows, columns). Otherwise it returns what DPT's
        decoder reads, (batch, 1 + patches, hidden_size), with the class token or the mean of the patches in front.
    return_class_token (`bool`, *optional*, defaults to `False`):
        Whether [`MegaVitBackbone`] also returns the class token of each of its layers.
    return_register_tokens (`bool`, *optional*, defaults to `False`):
        Whether [`MegaVitBackbone`] also returns the register tokens of each of its layers.

    The argument names of vit-pytorch, mega-vit, zeta and timm work too (`dim`, `depth`, `heads`, `mlp_dim`, `pool`,
    `img_size`, ...: see `attribute_map`), as does `mlp_ratio` in place of `intermediate_size`.

    Example:

    ```python
    >>> from modeling_megavit import MegaVitConfig, MegaVitModel

    >>> configuration = MegaVitConfig.from_preset("megavit-s16")
    >>> model = MegaVitModel(configuration)
    ```"""

    model_type = "megavit"
    attribute_map = {
        # vit-pytorch, mega-vit and zeta
        "dim": "hidden_size",
        "depth": "num_hidden_layers",
        "heads": "num_attention_heads",
        "mlp_dim": "intermediate_size",
        "channels": "num_channels",
        "dim_head": "head_dim",
        "pool": "pooling_type",
        "dropout": "hidden_dropout_prob",
        "emb_dropout": "embedding_dropout_prob",
        "num_classes": "num_labels",
        # timm
        "embed_dim": "hidden_size",
        "num_heads": "num_attention_heads",
        "in_channels": "num_channels",
        "in_chans": "num_channels",
        "img_size": "image_size",
        "drop_rate": "hidden_dropout_prob",
        "attn_drop_rate": "attention_probs_dropout_prob",
        # transformers itself, in other models
        "layer_norm_epsilon": "layer_norm_eps",
    }
    keys_to_ignore_at_inference = ["hidden_states", "attentions", "cu_seq_lens"]
    # Column- then row-parallel pairs, one all-reduce each; the gain of a query or key norm is shared by heads that live
    # on different ranks, so its gradient is summed.
    _tp_attention = {
        **dict.fromkeys(("attention.q_proj", "attention.k_proj", "attention.v_proj"), "colwise"),
        **dict.fromkeys(("attention.q_norm", "attention.k_norm"), "replicated_with_grad_allreduce"),
        "output.o_proj": "rowwise",
    }
    base_model_tp_plan = {
        **{f"encoder.layers.*.attention.{name}": style for name, style in _tp_attention.items()},
        "encoder.layers.*.intermediate.gate_proj": "colwise",
        "encoder.layers.*.intermediate.fc1": "colwise",
        "encoder.layers.*.output.fc2": "rowwise",
        **{f"pooler.attention.{name}": style for name, style in _tp_attention.items()},
        "pooler.intermediate.gate_proj": "colwise",
        "pooler.intermediate.fc1": "colwise",
        "pooler.output.fc2": "rowwise",
    }
    base_model_fsdp_plan = {"encoder.layers.*": "free_full_weight", "encoder.norm": "keep_full_weight"}

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    head_dim: int | None = None
    layer_type: Literal["parallel", "sequential", "mega_vit"] = "parallel"
    norm_type: Literal["rms_norm", "layer_norm"] = "rms_norm"
    norm_bias: bool = False
    layer_norm_eps: float = 1e-6
    qk_norm: bool = True
    qk_norm_type: Literal["rms_norm", "layer_norm"] | None = None
    qk_norm_eps: float | None = None
    qk_norm_per_head: bool = False
    qkv_bias: bool = False
    attention_output_bias: bool = True
    mlp_bias: bool = True
    hidden_act: str = "gelu"
    use_gated_mlp: bool = False
    layer_scale_init_value: float | int | None = None
    image_size: int | list[int] | tuple[int, ...] = 224
    patch_size: int | list[int] | tuple[int, ...] = 16
    num_channels: int = 3
    patch_norm: bool = False
    patch_bias: bool = True
    use_embedding_norm: bool = False
    use_final_norm: bool = True
    position_embedding_type: Literal["learned", "factorized", "sincos2d", "none"] = "learned"
    position_coordinates: Literal["absolute", "fractional"] = "absolute"
    position_interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    position_antialias: bool = False
    position_keeps_aspect_ratio: bool = False
    use_cls_position: bool = True
    num_register_tokens: int = 0
    pooling_type: Literal["attention", "cls", "mean", "cls_mean", "cls_register"] = "attention"
    use_pooler_mlp: bool = True
    use_pooler_norm: bool = False
    use_cls_token: bool | None = None
    hidden_dropout_prob: float | int = 0.0
    attention_probs_dropout_prob: float | int = 0.0
    embedding_dropout_prob: float | int = 0.0
    drop_path_rate: float | int = 0.0
    token_dropout_prob: float | int = 0.0
    initializer_range: float | int = 0.02
    freeze_backbone: bool = False
    semantic_loss_ignore_index: int = 255
    num_frames: int = 16
    num_temporal_layers: int = 4
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None
    apply_layernorm: bool = True
    reshape_hidden_states: bool = True
    return_class_token: bool = False
    return_register_tokens: bool = False

    def __setattr__(self, key, value):
        if self.attribute_map.get(key, key) in _SIZES:
            value = [value, value] if isinstance(value, int) else list(value)
            value = PatchSize(value) if key == "patch_size" else value
        super().__setattr__(key, value)

    def __post_init__(self, **kwargs):
        layers = {name: kwargs.pop(name, None) for name in ("out_features", "out_indices")}
        kwargs = self._take_foreign_names(kwargs)
        self._check_ranges()
        if self.head_dim is None:
            if self.hidden_size % self.num_attention_heads:
                raise ValueError(
                    f"`hidden_size` must be a multiple of `num_attention_heads` unless `head_dim` is given, got "
                    f"{self.hidden_size} and {self.num_attention_heads}."
                )
            self.head_dim = self.hidden_size // self.num_attention_heads
        if self.use_cls_token is None:
            self.use_cls_token = self.pooling_type.startswith("cls")
        self._check_contradictions()
        self.set_output_features_output_indices(**layers)
        # The plan may name nothing that this configuration leaves out.
        missing = [] if self.pooling_type == "attention" else ["pooler."]
        missing += [] if self.qk_norm else [".q_norm", ".k_norm"]
        # No style shards a gain of (heads, head_dim), and that block's norms of keys and values are in no plan.
        missing += ["attention."] if self.qk_norm_per_head or self.layer_type == "mega_vit" else []
        missing += [] if self.use_gated_mlp else [".gate_proj"]
        missing += [] if self.use_pooler_mlp else ["pooler.intermediate", "pooler.output"]
        self.base_model_tp_plan = {
            name: style for name, style in self.base_model_tp_plan.items() if not any(part in name for part in missing)
        }
        if not self.use_final_norm:
            self.base_model_fsdp_plan = {"encoder.layers.*": "free_full_weight"}
        super().__post_init__(**kwargs)

    def _take_foreign_names(self, kwargs: dict) -> dict:
        """Sets what `attribute_map` and `mlp_ratio` stand for, and returns the rest of `kwargs`."""
        defaults = {field.name: field.default for field in fields(self)}
        labels = max(kwargs.get(name) or 0 for name in ("num_labels", "num_classes"))
        if labels > _MOST_PIXELS:  # the base class would list their names first
            raise ValueError(f"`num_labels` must be at most {_MOST_PIXELS}, got {labels}.")
        if (mlp_ratio := kwargs.pop("mlp_ratio", None)) is not None:
            hidden_size = next((kwargs[name] for name in ("dim", "embed_dim") if name in kwargs), self.hidden_size)
            kwargs["mlp_dim"] = int(hidden_size * mlp_ratio)
        if "num_classes" in kwargs:
            kwargs["num_labels"] = kwargs.pop("num_classes")
        for name in [name for name in kwargs if name in self.attribute_map]:
            field = self.attribute_map[name]
            default = [defaults[field]] * 2 if field in _SIZES else defaults[field]
            before = getattr(self, field)
            setattr(self, field, kwargs.pop(name))
            if before not in (default, getattr(self, field)):
                raise ValueError(
                    f"`{name}` is another name of `{field}`: got both, {getattr(self, field)} and {before}."
                )
        if "return_embeddings" in kwargs:
            raise ValueError(
                "`return_embeddings` is not a setting of MegaVitConfig: build a `MegaVitModel`, whose `pooler_output` "
                "and `last_hidden_state` are the embeddings; `unpack` gives them image by image."
            )
        # The base class keeps whatever it doesn't know as an attribute; a misspelt field must not end there unnoticed.
        known = defaults.keys() | self.attribute_map.keys() | {"num_labels", "output_attentions"}
        for name in kwargs.keys() - known:
            if close := difflib.get_close_matches(name, known, n=1, cutoff=0.85):
                raise ValueError(f"MegaVitConfig has no field `{name}`: did you mean `{close[0]}`?")
        return kwargs

    def _check_ranges(self):
        """Raises a `ValueError` for a field that is wrong by itself."""
        for name in _SIZES:
            size = getattr(self, name)
            if len(size) != 2 or min(size) < 1:
                raise ValueError(f"`{name}` must be a positive number or (height, width), got {size}.")
        for name, largest in _LARGEST.items():
            size = getattr(self, name)
            least = 0 if name == "num_register_tokens" else 1
            if size is not None and not least <= size <= largest:
                raise ValueError(f"`{name}` must be at least {least} and at most {largest}, got {size}.")
        if math.prod(self.patch_size) > _MOST_PIXELS or math.prod(self.grid_size) > _MOST_PIXELS:
            raise ValueError(
                f"`image_size` must be at most {_MOST_PIXELS} patches, and `patch_size` as many pixels, got "
                f"{self.image_size} and {self.patch_size}."
            )
        for name in _PROBABILITIES:
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 0 and below 1, got {getattr(self, name)}.")
        if self.hidden_act not in ACT2FN:
            raise ValueError(f"`hidden_act` must be one of transformers' activations, got {self.hidden_act!r}.")

    def _check_contradictions(self):
        """Raises a `ValueError` that names the fields which cannot stand together."""
        if any(image % patch for image, patch in zip(self.image_size, self.patch_size)):
            raise ValueError(
                f"`image_size` must be a multiple of `patch_size`, got {self.image_size} and {self.patch_size}."
            )
        if self.norm_type == "rms_norm" and self.norm_bias:
            raise ValueError("`norm_bias=True` contradicts `norm_type='rms_norm'`: an RMSNorm has no bias.")
        if self.pooling_type.startswith("cls") and not self.use_cls_token:
            raise ValueError(f"`pooling_type={self.pooling_type!r}` contradicts `use_cls_token=False`.")
        for name, value in {"pooling_type": "cls_register", "return_register_tokens": True}.items():
            if getattr(self, name) == value and not self.num_register_tokens:
                raise ValueError(f"`{name}={value!r}` contradicts `num_register_tokens=0`.")
        if self.position_embedding_type == "sincos2d" and self.hidden_size % 4:
            raise ValueError(
                f"`position_embedding_type='sincos2d'` needs a `hidden_size` that 4 divides, got {self.hidden_size}."
            )
        if self.position_keeps_aspect_ratio and not (
            self.position_embedding_type == "learned" or self.position_coordinates == "fractional"
        ):
            raise ValueError(
                "`position_keeps_aspect_ratio=True` contradicts "
                f"`position_embedding_type={self.position_embedding_type!r}`, whose positions are not resized."
            )
        if self.qk_norm_per_head and (self.qk_norm_type or self.norm_type) != "rms_norm":
            raise ValueError("`qk_norm_per_head=True` contradicts `qk_norm_type='layer_norm'`.")
        self._check_meaning()

    def _check_meaning(self):
        """Raises a `ValueError` for a field that others leave without a meaning."""
        defaults = {field.name: field.default for field in fields(self)}
        for setting, needed in _NEEDED.items():
            for name, value in needed.items() if getattr(self, setting) != defaults[setting] else ():
                if getattr(self, name) != value:
                    raise ValueError(
                        f"`{setting}={getattr(self, setting)!r}` contradicts `{name}={getattr(self, name)!r}`: it has a "
                        f"meaning only for {name}={value!r}."
                    )
        if self.layer_type == "mega_vit":
            for name, value in _MEGA_VIT.items():
                if getattr(self, name) != value:
                    raise ValueError(
                        f"`layer_type='mega_vit'` contradicts `{name}={getattr(self, name)!r}`: that block, which "
                        f"normalises keys and values, is defined for {name}={value!r} only."
                    )

    def validate_architecture(self):
        """Part of `@strict`'s validation when a configuration is made or saved; unlike the base class, it lets the
        inner width of the attention, `num_attention_heads * head_dim`, differ from `hidden_size`."""
        self._check_ranges()
        self._check_contradictions()

    @property
    def grid_size(self) -> tuple[int, int]:
        """Rows and columns of the pre-training patch grid."""
        return self.image_size[0] // self.patch_size[0], self.image_size[1] // self.patch_size[1]

    @property
    def stage_names(self) -> list[str]:
        """The names by which a backbone's `out_features` choose among the embeddings and the layers."""
        return ["stem", *(f"stage{index}" for index in range(1, self.num_hidden_layers + 1))]

    @property
    def num_prefix_tokens(self) -> int:
        """Number of tokens before the patches: the class token, if there is one, and the registers."""
        return int(self.use_cls_token) + self.num_register_tokens

    @property
    def pooled_size(self) -> int:
        """Width of the pooled vector."""
        return self.hidden_size * (2 if self.pooling_type in ("cls_mean", "cls_register") else 1)

    @classmethod
    def from_preset(cls, name: str, **kwargs) -> "MegaVitConfig":
        """
        Returns the configuration of a preset that comes with the package.

        Args:
            name (`str`):
                A file name under `configuration/models` without `.json`, such as `"megavit-22b-14"`.
            kwargs:
                Fields that replace the preset's own, by any of their names.

        Raises:
            `ValueError`: if there is no such preset.
        """
        # Not a static import, because this file also travels to the Hub, without the rest of the package.
        presets = importlib.import_module("modeling_megavit.presets")
        preset = json.loads(presets.find("models", name).read_text(encoding="utf-8"))
        replaced = {cls.attribute_map.get(name, name) for name in kwargs}
        return cls(**{name: value for name, value in preset.items() if name not in replaced}, **kwargs)


__all__ = ["MegaVitConfig"]
