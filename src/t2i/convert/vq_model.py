"""A tokenizer as the folder of a diffusers VQModel: `t2i export ckpt=… out=… format=diffusers`.

Read back it is by `t2i.convert.tokenizers`, and by `diffusers.VQModel.from_pretrained`. What that class is not made of
(folded pixels, attention heads, bounded latents, quantisers other than vq and ema) is refused.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import nn

from t2i.checkpoint.atomic import write_bytes, write_text
from t2i.convert.tokenizers import VQ_MODEL, diffusers_name
from t2i.nets.autoencoder import Autoencoder
from t2i.nets.resnet_blocks import Attention, Upsample
from t2i.nets.tokenizer import ImageTokenizer
from t2i.quantizers.ema import EMA
from t2i.quantizers.vq import VQ

WEIGHTS, CONFIG = "diffusion_pytorch_model.safetensors", "config.json"


def _faults(tokenizer: ImageTokenizer) -> list[str]:
    """What of a tokenizer a VQModel cannot express."""
    net: Any = tokenizer.autoencoder
    quantizer = tokenizer.quantizer
    if not isinstance(net, Autoencoder):
        return [f"autoencoder {type(net).__name__}"]
    encoder: Any = net.encoder
    found = [] if isinstance(quantizer, VQ | EMA) else [f"quantizer {type(quantizer).__name__}"]
    found += ["quantizer.normalize"] if isinstance(quantizer, VQ) and quantizer.normalize else []
    if isinstance(quantizer, EMA) and not bool(quantizer.initialised):
        found.append("a codebook that has not begun (quantizer.warmup_steps)")
    widths = encoder.widths
    found += [f"autoencoder.patch_size={encoder.patch_size}"] if encoder.patch_size > 1 else []
    found += ["autoencoder.local_encoder"] if encoder.stem.kernel_size == (1, 1) else []
    heads = max((module.num_heads for module in net.modules() if isinstance(module, Attention)), default=1)
    found += [f"autoencoder.attention_heads={heads}"] if heads > 1 else []
    found += ["autoencoder.antialias"] if any(isinstance(module, Upsample) and module.mode == "bilinear"
                                              for module in net.modules()) else []
    if (first := encoder.stem.out_channels) != widths[0]:
        found.append(f"autoencoder.multipliers that begin with {widths[0] // first}")
    norms = {module.num_groups for module in net.modules() if isinstance(module, nn.GroupNorm)}
    found += [] if norms else ["autoencoder.num_groups=0"]
    found += ["autoencoder.num_groups that not all channels divide by"] if len(norms) > 1 else []
    return found + (["bounded_latents"] if tokenizer.bounded_latents else [])


def _config(tokenizer: ImageTokenizer) -> dict[str, Any]:
    net: Any = tokenizer.autoencoder
    attended = [len(level.attentions) > 0 for level in net.encoder.levels]
    return {
        **VQ_MODEL, "block_out_channels": net.encoder.widths, "layers_per_block": len(net.encoder.levels[0].blocks),
        "down_block_types": [f"{'Attn' if here else ''}DownEncoderBlock2D" for here in attended],
        "up_block_types": [f"{'Attn' if here else ''}UpDecoderBlock2D" for here in reversed(attended)],
        "mid_block_add_attention": isinstance(net.encoder.middle[1], Attention),
        "norm_num_groups": net.encoder.norm.num_groups, "latent_channels": net.z_channels,
        "num_vq_embeddings": tokenizer.codebook_size, "vq_embed_dim": tokenizer.dim,
        "sample_size": tokenizer.image_size,
    }


def write_vq_model(tokenizer: ImageTokenizer, folder: str | Path, source: str | Path) -> Path:
    """Writes config.json and diffusion_pytorch_model.safetensors into `folder`, which it returns.

    ValueError, which names `source`, says what of the tokenizer a VQModel cannot express.
    """
    if faults := _faults(tokenizer):
        raise ValueError(f"format=diffusers: {source} has {', '.join(faults)}, and a VQModel of diffusers is vq or ema"
                         " over VQGAN's plain autoencoder (model/autoencoder=conv)")
    name_of = diffusers_name(len(_config(tokenizer)["block_out_channels"]))
    state = {name: value for name, value in tokenizer.state_dict().items() if not name.startswith("quantizer.")}
    state["quantizer.codebook"] = tokenizer.codebooks()[0]
    renamed = {name_of(name): value.contiguous().clone() for name, value in state.items()}
    for name in renamed:
        if name.endswith(("to_q.weight", "to_k.weight", "to_v.weight", "to_out.0.weight")):
            renamed[name] = renamed[name][:, :, 0, 0].contiguous()  # diffusers' are linear layers
    folder = Path(folder).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(folder / WEIGHTS, save(renamed, {"format": "pt"}))
    write_text(folder / CONFIG, json.dumps(_config(tokenizer), indent=2))
    return folder
