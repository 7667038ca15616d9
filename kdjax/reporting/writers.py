"""Where the numbers and pictures of a running training go: a file, TensorBoard, the terminal."""

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

# How often files are brought up to date that would be slow to write with every line: those in an
# object store, which cannot append and is given the whole file, and TensorBoard's.
_INTERVAL = 30.0  # seconds

# Metrics that are shares of one; people read them in percent.
_SHARES = ("miou", "pixel_accuracy", "agreement")


class Writer(Protocol):
    """Something that takes the scalars and pictures of a step.

    Scalars are named `group/name`. The group `train` is what a training step yields; any other
    group, such as `val`, is the result of an evaluation. Whoever makes a writer also closes it.
    """

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Records numbers by name."""
        ...

    def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Records pictures by name, uint8 `[H, W, 3]`."""
        ...


def check_writers(writers: Sequence[Any]) -> None:
    """Requires that each is a `Writer`.

    Raises:
      UserError: naming the first that is none, and the method that it lacks.
    """
    for place, writer in enumerate(writers):
        for method in ("scalars", "images"):
            if not callable(getattr(writer, method, None)):
                raise UserError(
                    f"writers[{place}] is a {type(writer).__name__} without the method {method}; a "
                    "writer has scalars(step, values) and images(step, images)"
                )


class Writers:
    """Hands everything to each of several writers, in their order."""

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
    """A file with one JSON object a line: `{"step": 10, "train/loss": 1.25}`.

    A number that is not finite becomes `null`, so that every line is valid JSON. Pictures are
    left to the other writers.

    Args:
      path: The file, local or in an object store (`gs://`). Locally every line is on disk when
        `scalars` returns; in a store the file is brought up to date every half minute.
      resume_step: The step of the checkpoint that the run continues from. A killed run may have
        written past it; those lines, and a last line cut short, are dropped. None starts the
        file anew.
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
        line = _json_line(step, values)
        if self._file:
            with _naming(self._path):
                self._file.write(line)
                self._file.flush()
            return
        self._text += line
        if time.monotonic() - self._uploaded > _INTERVAL:
            self._upload()

    def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Leaves pictures to the other writers."""

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
    """Adds the path to errors of writing to an open file, which have none."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise


def read_metrics(path: epath.PathLike) -> list[dict[str, Any]]:
    """Reads what `JsonLines` wrote, oldest line first; a last line cut short is left out."""
    # Whatever follows the last line break was being written when the run was killed.
    lines = epath.Path(path).read_text().split("\n")[:-1]
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise UserError(
                f"{path}, line {number}: not a JSON object ({error.msg}); the file was changed by "
                "something else than kdjax. Remove the line to go on."
            ) from None
    return records


class TensorBoard:
    """TensorBoard event files.

    What was logged is in the file after every evaluation, and every half minute.

    Args:
      directory: Where the event files go, local or in an object store (`gs://`).
      resume_step: The step of the checkpoint that the run continues from; TensorBoard then
        hides what an earlier process wrote after it. None hides everything written before.
    """

    def __init__(self, directory: epath.PathLike, resume_step: int | None = None):
        # Imports PyTorch where that is installed: a second that other commands need not wait.
        from tensorboardX import event_file_writer, summary
        from tensorboardX.proto import event_pb2

        self._directory, self._summary = epath.Path(directory), summary
        # Its classes are made when it is imported; no checker of types knows them.
        self._protos: Any = event_pb2
        self._directory.mkdir(parents=True, exist_ok=True)
        # An object store gets copies of a local file: tensorboardX would need the store's own
        # client for it.
        self._copied = (
            tempfile.TemporaryDirectory(prefix="kdjax-") if is_remote(directory) else None
        )
        local = epath.Path(self._copied.name) if self._copied else self._directory
        # In this thread: the one of tensorboardX's `SummaryWriter` ends where a disk is full, and
        # whoever fills its queue then waits for ever.
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

    def _write(self, step: int, **what: Any) -> None:
        with _naming(self._directory):
            self._file.write_event(self._protos.Event(wall_time=time.time(), step=step, **what))

    def _publish(self) -> None:
        with _naming(self._directory):
            self._file.flush()
        if self._copied:
            for path in epath.Path(self._copied.name).iterdir():
                (self._directory / path.name).write_bytes(path.read_bytes())
        self._published = time.monotonic()


class Console:
    """The training as a progress bar, and each evaluation as a line above it.

    If the stream is neither a terminal nor a notebook (a log file, a batch system), every call
    prints a plain line and no bar is drawn.

    Args:
      total_steps: The step at which the training ends.
      start_step: The step that it starts or continues from.
      description: What is being trained, in front of every line.
      stream: Where to print; standard output by default, unless the level of the logger "kdjax" is
        above INFO.
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
            self._print(f"{self._bar.desc}: step {step}, {_in_words(evaluation)}")
        if len(evaluation) == len(values):
            return
        shown = {"train/loss": "loss {:.4f}", "train/images_per_second": "{:.1f} images/s"}
        self._bar.n = step
        words = [form.format(values[key]) for key, form in shown.items() if key in values]
        self._bar.set_postfix_str(", ".join([*words, *self._times(step)]))
        if not self._drawn:
            self._print(str(self._bar))

    def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Leaves pictures to the other writers."""

    def close(self) -> None:
        """Leaves the bar as it stands."""
        self._bar.close()

    def _times(self, step: int) -> Iterator[str]:
        """Time since the start, in a log, and time left at the mean rate since the first report."""
        now = time.monotonic()
        if not self._drawn:
            yield f"{tqdm.format_interval(now - self._started)} elapsed"
        if self._first is None:
            self._first = step, now
        first_step, first_time = self._first
        if step > first_step:
            # Evaluations are part of it.
            seconds = (now - first_time) / (step - first_step)
            yield f"{tqdm.format_interval(seconds * (self._bar.total - step))} left"

    def _print(self, line: str) -> None:
        tqdm.write(line, file=self._stream)  # lifts the bar, prints, and draws it again
        self._stream.flush()


def _in_notebook() -> bool:
    """Returns True in the cells of a notebook."""
    ipython = sys.modules.get("IPython")
    shell = ipython and ipython.get_ipython()
    return shell is not None and "IPKernelApp" in shell.config


def _json_line(step: int, values: Mapping[str, float]) -> str:
    """One line of JSON from Python, NumPy or JAX scalars."""
    numbers = {name: float(value) for name, value in values.items()}
    return to_json({"step": int(step), **numbers}, indent=None)


def _in_words(values: Mapping[str, float]) -> str:
    """`val mIoU 54.21 %, val pixel accuracy 91.30 %`."""
    words = []
    for key, value in values.items():
        group, _, metric = key.rpartition("/")
        if metric == "seconds":
            words.append(f"{group} took {value:.1f} s")
            continue
        share = metric in _SHARES
        number = f"{100 * value:.2f} %" if share else f"{value:.4g}"
        name = key.replace("/", " ").replace("_", " ").replace("miou", "mIoU")
        words.append(f"{name} {number}")
    return ", ".join(words)
