"""CamVid at 180 x 240, small enough for a CPU: a PSPNet-R18 of width 48 teaches one of width 16.

    python -m kdjax.prepare folder --source CAMVID --data_dir data/camvid --ignore 11
    python -m kdjax.compare --config configs/camvid_pspnet_r18.py --workdir runs/camvid

CAMVID holds `images/<split>` and `labels/<split>` with the 11 classes of SegNet's copy, 11 for
unlabelled. No weights from elsewhere. Only the sequence Seq05VD of the test split was never seen in
training, so it is reported apart.
"""

from ml_collections import ConfigDict

from kdjax import config as configuration


def get_config() -> configuration.Config:
    """Returns the config."""
    config = configuration.default()
    config.steps = 1200
    config.eval_every = 400
    config.data.name = "folder"
    config.data.data_dir = "data/camvid"
    config.data.test_split = "test"
    config.data.batch_size = 8
    config.data.eval_batch_size = 16
    config.data.crop_size = (160, 208)
    config.data.photometric = False
    config.teacher.update(configuration.network("pspnet_r18", width=48))
    config.student.update(configuration.network("pspnet_r18", width=16))
    config.loss.auxiliary = 0.0
    config.student.auxiliary = False
    config.optimizer.learning_rate = 0.05
    config.compare.seeds = (0, 1, 2)
    config.compare.teacher_steps = 2000
    config.compare.teacher_learning_rate = 0.05
    with config.unlocked():
        config.data.test_groups = ConfigDict({"unseen": "Seq05VD"})
        config.compare.methods = ConfigDict(
            {
                "plain": {},
                "cwd": {"cwd": configuration.term("cwd")},
                "pixelwise_kl": {"pixelwise_kl": configuration.term("pixelwise_kl")},
            }
        )
    return config
