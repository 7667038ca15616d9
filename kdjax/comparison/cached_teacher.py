"""Decides which methods of a comparison read the teacher from a cache."""

from typing import NamedTuple

from etils import epath

from kdjax.config import RunOptions
from kdjax.data.caching import machine_bytes
from kdjax.data.interface import SegmentationSet
from kdjax.data.options import fitted_size
from kdjax.data.run_data import RunData
from kdjax.distillation import need_teacher
from kdjax.models.network import SCORES
from kdjax.utils.files import is_remote

FOLDER = "teacher_cache"
_STRIDE = 4  # pixels per cell of the finest scores of kdjax's networks
_BYTES = 2  # of a score
_MEMORY_SHARE = 0.25  # a step reads random images, so the cache should stay in memory


class CachePlan(NamedTuple):
    """The cache that a comparison makes.

    Attributes:
      path: its directory; empty if every method runs the teacher live.
      line: why, for the log.
    """

    path: str
    line: str


def reads_scores_alone(options: RunOptions) -> bool:
    """Returns True if a run has a teacher, and the cache can serve its terms without features."""
    terms = [loss for loss in options.terms.values() if loss.names("teacher")]
    return need_teacher(options.terms) and all(
        set(loss.names("teacher")) == {SCORES} and loss.resize == "teacher" for loss in terms
    )


def plan_cache(options: RunOptions, workdir: epath.Path, data: SegmentationSet | None) -> CachePlan:
    """Plans the cache of a comparison whose config names none.

    Args:
      options: the config.
      workdir: the directory of the comparison.
      data: the data set if it is an object.
    """
    if options.teacher.cache or not options.compare.cache:
        return CachePlan("", "")
    live = "every step runs the teacher"
    if is_remote(workdir):
        return CachePlan("", f"{workdir} is not on a disk, so {live}: set config.teacher.cache")
    images = RunData(options.data, data)
    base, memory = options.data.base_size, machine_bytes()
    sizes = [fitted_size(size, base) for size in images.train_sizes()]
    cells = sum(-(-height // _STRIDE) * -(-width // _STRIDE) for height, width in sizes)
    size = cells * images.num_classes * _BYTES
    about = f"the teacher's scores of {len(sizes)} images take about {size / 2**20:.0f} MiB"
    share = f"{_MEMORY_SHARE:.0%} of the memory"
    if size > _MEMORY_SHARE * memory:
        return CachePlan("", f"{about}, more than {share}, so {live}")
    path = workdir / FOLDER
    return CachePlan(
        str(path),
        f"{about}, less than {share}: methods whose terms read scores alone take them from {path} "
        "(config.compare.cache=False runs the teacher in every step)",
    )
