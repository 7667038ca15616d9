"""Small models of transformers with random weights."""

import functools

import torch
import transformers

NAMES = ("background", "disc", "square")
SIZE = 64
# transformers resizes the masks of these networks before it multiplies.
MASK_SIZES = {"mask2former": (384, 384), "eomt": (SIZE, SIZE)}

_LABELS = {"id2label": dict(enumerate(NAMES)), "label2id": {n: i for i, n in enumerate(NAMES)}}
_SWIN = {
    "image_size": SIZE,
    "embed_dim": 8,
    "depths": [1, 1, 1, 1],
    "num_heads": [1, 1, 2, 2],
    "window_size": 2,
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
}
_VIT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": SIZE}
# Their group norms have 32 groups.
_DECODER = {"hidden_dim": 32, "num_attention_heads": 2, "dim_feedforward": 16}
_PIXELS = {"mask_feature_size": 32, "encoder_feedforward_dim": 16, "encoder_layers": 1}


def _maskformer():
    config = transformers.MaskFormerConfig(
        backbone_config=transformers.MaskFormerSwinConfig(**_SWIN),
        decoder_config=transformers.DetrConfig(
            d_model=16,
            encoder_layers=1,
            decoder_layers=1,
            decoder_attention_heads=2,
            encoder_attention_heads=2,
            decoder_ffn_dim=16,
            num_queries=6,
        ),
        fpn_feature_size=32,
        mask_feature_size=32,
        **_LABELS,
    )
    return transformers.MaskFormerForInstanceSegmentation(config)


def _mask2former():
    config = transformers.Mask2FormerConfig(
        backbone_config=transformers.SwinConfig(**_SWIN),
        feature_size=32,
        decoder_layers=2,
        num_queries=6,
        **_DECODER,
        **_PIXELS,
        **_LABELS,
    )
    return transformers.Mask2FormerForUniversalSegmentation(config)


def _oneformer():
    config = transformers.OneFormerConfig(
        backbone_config=transformers.SwinConfig(**_SWIN),
        conv_dim=32,
        mask_dim=32,
        encoder_feedforward_dim=16,
        encoder_layers=1,
        decoder_layers=2,
        query_dec_layers=1,
        num_queries=6,
        task_seq_len=8,
        text_encoder_width=32,
        text_encoder_num_layers=1,
        text_encoder_vocab_size=32,
        **_DECODER,
        **_LABELS,
    )
    return transformers.OneFormerForUniversalSegmentation(config)


def _eomt():
    config = transformers.EomtConfig(**_VIT, num_blocks=1, num_queries=6, **_LABELS)
    return transformers.EomtForUniversalSegmentation(config)


def _segformer():
    config = transformers.SegformerConfig(
        hidden_sizes=[8, 8, 16, 16],
        depths=[1, 1, 1, 1],
        num_attention_heads=[1, 1, 2, 2],
        decoder_hidden_size=16,
        **_LABELS,
    )
    return transformers.SegformerForSemanticSegmentation(config)


def _dinov2():
    return transformers.Dinov2Model(transformers.Dinov2Config(**_VIT))


def _dinov3():
    config = transformers.DINOv3ViTConfig(**_VIT, intermediate_size=32, num_register_tokens=4)
    return transformers.DINOv3ViTModel(config)


_MODELS = {
    "maskformer": _maskformer,
    "mask2former": _mask2former,
    "oneformer": _oneformer,
    "eomt": _eomt,
    "segformer": _segformer,
    "dinov2": _dinov2,
    "dinov3": _dinov3,
}
_PROCESSORS = {
    "maskformer": "MaskFormerImageProcessor",
    "mask2former": "Mask2FormerImageProcessor",
    "oneformer": "OneFormerImageProcessor",
    "eomt": "EomtImageProcessor",
}
QUERIES = tuple(_PROCESSORS)


@functools.cache
def model(kind):
    """A model in evaluation mode, with weights whose answers differ from place to place."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = _MODELS[kind]().eval()
        with torch.no_grad():
            for weights in made.parameters():
                weights.add_(0.2 * torch.randn_like(weights))
    return made


def inputs(kind):
    """A model's arguments for two images."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn((2, 3, SIZE, SIZE), generator=generator)
    task = {"task_inputs": torch.arange(16).reshape(2, 8)} if kind == "oneformer" else {}
    return {"pixel_values": images, **task}


def processor(kind):
    """What turns a model's output into class ids."""
    made = getattr(transformers, _PROCESSORS[kind])
    return made(size={"shortest_edge": SIZE, "longest_edge": SIZE}) if kind == "eomt" else made()
