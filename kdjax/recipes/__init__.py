"""What the files in `configs/` share: data sets with networks and schedules, and the methods."""

from kdjax.recipes.methods import METHODS as METHODS
from kdjax.recipes.methods import compare_methods as compare_methods
from kdjax.recipes.methods import teach as teach
from kdjax.recipes.methods import terms_of as terms_of
from kdjax.recipes.published import PAIRS as PAIRS
from kdjax.recipes.published import SCHEDULES as SCHEDULES
from kdjax.recipes.published import TEACHER as TEACHER
from kdjax.recipes.published import published as published
from kdjax.recipes.small import camvid as camvid
from kdjax.recipes.small import compare_camvid_methods as compare_camvid_methods
from kdjax.recipes.small import shapes as shapes
from kdjax.recipes.small import teacher_of as teacher_of
