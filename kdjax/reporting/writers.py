"""Writers, which record the numbers and pictures of a running training."""

import contextlib
import io
import json
import logging
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, TextIO

import numpy as np
from etils import epath
from tqdm import tqdm

from kdjax.utils.errors import UserError
from kdjax.utils.files import is_remote, to_json, write_atomically
from kdjax.utils.log import logger

# Seconds between two uploads of a file to an object store, which cannot append, and between two
# flushes of TensorBoard's file.
_INTERVAL = 30.0

# Metrics that are fractions, shown in percent.
_FRACTIONS = ("miou", "pixel_accuracy", "agreement", "agreement_miou")
_CLASS_IOU = "iou_"  # before the name of a class


class Writer(Protocol):
    """The interface of a writer.

    Scalars are named `group/name`. The group `train` is what a training step logs. Any other
    group, such as `val`, is the result of an evaluation. The code that creates a writer closes it.
    """

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Records numbers by name."""
        ...

    def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Records pictures by name, uint8 `[H, W, 3]`."""
        ...


def check_writers(writers: Sequence[Any]) -> None:
    """Checks that each object has the methods of a `Writer`."""
    for index, writer in enumerate(writers):
        for method in ("scalars", "images"):
            if not callable(getattr(writer, method, None)):
                raise UserError(
                    f"writers[{index}] is a {type(writer).__name__} without the method {method}; a "
                    "writer has scalars(step, values) and images(step, images)"
                )


class Writers:
    """A writer that passes everything to several others, in order."""

    def __init__(self, writers: Sequence[Writer]):
        self._writers = tuple(writers)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Records numbers by name."""
        for writer in self._writers:
            writer.scalars(step, values)

    def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Records pictures by name, uint8 `[H, W, 3]`."""
        for writer in self._writers:
            writer.images(step, images)


class JsonLines:
    """A file with one JSON object per line: `{"step": 10, "train/loss": 1.25}`.

    A number that is not finite becomes `null`, so that every line is valid JSON. Pictures are
    ignored.

    Args:
      path: the file, local or in an object store (`gs://`). A local file contains every line when
        `scalars` returns; in a store it is updated every half minute.
      resume_step: the step of the checkpoint that the run continues from. Later lines, which a
        killed run may have written, and an incomplete last line are removed. None starts a new
        file.
    """

    def __init__(self, path: epath.PathLike, resume_step: int | None = None):
        self._path = epath.Path(path)
        kept = []
        if resume_step is not None and self._path.exists():
            kept = [record for record in read_metrics(path) if record["step"] <= resume_step]
        self._text = "".join(to_json(record, indent=None) for record in kept)
        self._upload()
        self._file = None if is_remote(self._path) else self._path.open("a")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Appends one line."""
        numbers = {name: float(value) for name, value in values.items()}
        line = to_json({"step": int(step), **numbers}, indent=None)
        if self._file:
            with _naming(self._path):
                self._file.write(line)
                self._file.flush()
            return
        self._text += line
        if time.monotonic() - self._uploaded > _INTERVAL:
            self._upload()

    def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Ignores pictures."""

    def close(self) -> None:
        """Closes the file."""
        if self._file:
            self._file.close()
        else:
            self._upload()

    def _upload(self) -> None:
        write_atomically(self._path, self._text)
        self._uploaded = time.monotonic()


@contextlib.contextmanager
def _naming(path: epath.Path) -> Iterator[None]:
    """Adds the path to errors of writing to an open file, which lack it."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise


def read_metrics(path: epath.PathLike) -> list[dict[str, Any]]:
    """Reads a file of `JsonLines`, without an incomplete last line."""
    lines = epath.Path(path).read_text().split("\n")[:-1]
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise UserError(
                f"{path}, line {number}: not a JSON object ({error.msg}). Another program changed "
                "the file. Remove the line to continue."
            ) from None
    return records


class TensorBoard:
    """TensorBoard event files, flushed after every evaluation and every half minute.

    Args:
      directory: the directory of the event files, local or in an object store (`gs://`).
      resume_step: the step of the checkpoint that the run continues from. TensorBoard then hides
        what an earlier process wrote after it. None hides everything written before.
    """

    def __init__(self, directory: epath.PathLike, resume_step: int | None = None):
        # Imports PyTorch if it is installed, which takes a second that other commands save.
        from tensorboardX import event_file_writer, summary
        from tensorboardX.proto import event_pb2

        self._directory, self._summary = epath.Path(directory), summary
        # Type checkers do not know the classes that it makes when it is imported.
        self._protos: Any = event_pb2
        self._directory.mkdir(parents=True, exist_ok=True)
        # tensorboardX would need the client of the object store, so copies are uploaded instead.
        self._copied = (
            tempfile.TemporaryDirectory(prefix="kdjax-") if is_remote(directory) else None
        )
        local = epath.Path(self._copied.name) if self._copied else self._directory
        # Not tensorboardX's `SummaryWriter`: on a full disk its thread ends, and the thread that
        # fills its queue waits forever.
        self._file = event_file_writer.EventsWriter(str(local / "events"))
        self._write(
            0 if resume_step is None else resume_step + 1,
            session_log=self._protos.SessionLog(status=self._protos.SessionLog.START),
        )
        self._publish()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Records numbers by name."""
        for name, value in values.items():
            self._write(step, summary=self._summary.scalar(name, float(value)))
        if time.monotonic() - self._published > _INTERVAL:
            self._publish()

    def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Records pictures by name, uint8 `[H, W, 3]`."""
        for name, image in images.items():
            self._write(step, summary=self._summary.image(name, image, dataformats="HWC"))
        self._publish()

    def close(self) -> None:
        """Closes the event file."""
        try:
            self._publish()
        finally:
            self._file.close()
            if self._copied:
                self._copied.cleanup()

    def _write(self, step: int, **content: Any) -> None:
        with _naming(self._directory):
            self._file.write_event(self._protos.Event(wall_time=time.time(), step=step, **content))

    def _publish(self) -> None:
        with _naming(self._directory):
            self._file.flush()
        if self._copied:
            for path in epath.Path(self._copied.name).iterdir():
                (self._directory / path.name).write_bytes(path.read_bytes())
        self._published = time.monotonic()


class Console:
    """A progress bar of the training, with each evaluation on a line above it.

    If the stream is neither a terminal nor a notebook (a log file, a batch system), every call
    prints a plain line instead.

    Args:
      total_steps: the step at which the training ends.
      start_step: the step from which it starts or continues.
      description: the beginning of every line.
      stream: by default standard output, or nothing if the logger "kdjax" is quieter than INFO.
    """

    def __init__(
        self,
        total_steps: int,
        start_step: int = 0,
        description: str = "training",
        stream: TextIO | None = None,
    ):
        notebook = stream is None and _in_notebook()
        silenced = stream is None and not logger.isEnabledFor(logging.INFO)
        self._stream = io.StringIO() if silenced else stream or sys.stdout
        self._drawn = not silenced and (notebook or self._stream.isatty())
        self._started = time.monotonic()
        # Step and time of the first report, which compilation delays.
        self._first: tuple[int, float] | None = None
        bar = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}"
        line = "{desc}: step {n_fmt}/{total_fmt}{postfix}"
        self._bar = tqdm(
            total=total_steps,
            initial=start_step,
            desc=description,
            bar_format=bar if self._drawn else line,
            file=self._stream if self._drawn else io.StringIO(),
            dynamic_ncols=True,
        )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Moves the bar if there are `train/` values, and prints the others as one line."""
        evaluation = {k: v for k, v in values.items() if not k.startswith("train/")}
        if evaluation:
            words = ", ".join(_in_words(name, value) for name, value in evaluation.items())
            self._print(f"{self._bar.desc}: step {step}, {words}")
        if len(evaluation) == len(values):
            return
        shown = {"train/loss": "loss {:.4f}", "train/images_per_second": "{:.1f} images/s"}
        self._bar.n = step
        words = [form.format(values[key]) for key, form in shown.items() if key in values]
        self._bar.set_postfix_str(", ".join([*words, *self._times(step)]))
        if not self._drawn:
            self._print(str(self._bar))

    def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Ignores pictures."""

    def close(self) -> None:
        """Leaves the bar on the screen."""
        self._bar.close()

    def _times(self, step: int) -> Iterator[str]:
        """Yields the time since the start, in a log, and the time left at the mean rate."""
        now = time.monotonic()
        if not self._drawn:
            yield f"{tqdm.format_interval(now - self._started)} elapsed"
        if self._first is None:
            self._first = step, now
        first_step, first_time = self._first
        if step > first_step:
            # The rate includes evaluations.
            seconds = (now - first_time) / (step - first_step)
            yield f"{tqdm.format_interval(seconds * (self._bar.total - step))} left"

    def _print(self, line: str) -> None:
        tqdm.write(line, file=self._stream)  # clears the bar, prints, and draws it again
        self._stream.flush()


def _in_notebook() -> bool:
    """Returns True in the cells of a notebook."""
    ipython = sys.modules.get("IPython")
    shell = ipython and ipython.get_ipython()
    return shell is not None and "IPKernelApp" in shell.config


def _in_words(name: str, value: float) -> str:
    """Returns `val mIoU 54.21 %`."""
    group, _, metric = name.rpartition("/")
    if metric == "seconds":
        return f"{group} took {value:.1f} s"
    is_share = metric in _FRACTIONS or metric.startswith(_CLASS_IOU)
    number = f"{100 * value:.2f} %" if is_share else f"{value:.4g}"
    words = name.replace("/", " ").replace(_CLASS_IOU, "IoU of ")
    words = words.replace("_", " ").replace("miou", "mIoU")
    return f"{words} {number}"
