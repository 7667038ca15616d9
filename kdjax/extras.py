"""What the package's extras bring, and what a command says where one is not installed."""

import sys
from types import TracebackType

# Extra -> what its packages are imported as; see pyproject.toml.
MODULES = {
    "data": (
        "tensorflow",
        "tensorflow_datasets",
        "importlib_resources",
        "array_record",
        "PIL",
        "scipy",
        "matplotlib",
        "tqdm",
    ),
    "report": ("tensorboardX", "tqdm", "matplotlib", "jinja2", "PIL", "scipy"),
    "convert": ("safetensors",),
}
# What a command takes to run: one installation, and not one for each module that is missed.
NEEDED = {
    "prepare": ("data",),
    "train": ("data", "report"),
    "compare": ("data", "report"),
    "evaluate": ("data",),
    "predict": ("report",),
    "convert": ("convert",),
}


def advice(command: str, error: ImportError) -> str | None:
    """Returns what to install, in a line; None for what no extra of the command brings.

    Args:
      command: as "kdjax.train".
      error: of an import, wherever it was.
    """
    needed = NEEDED.get(command.removeprefix("kdjax."), ())
    package = (error.name or "").partition(".")[0]
    if not any(package in MODULES[extra] for extra in needed):
        return None
    return f'{package} is not installed: pip install "kdjax[{",".join(needed)}]"'


def explain_imports() -> None:
    """Makes a line of what a command's own imports end in, and status 2.

    They come before anything else that could catch it, so this is `sys.excepthook`'s to do, in the
    process of a command alone.
    """
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    command = spec.name if spec else ""
    if command.removeprefix("kdjax.") not in NEEDED:
        return

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        line = advice(command, error) if isinstance(error, ModuleNotFoundError) else None
        if line is None:
            sys.__excepthook__(kind, error, trace)
            return
        sys.stderr.write(f"{command}: error: {line}\n")
        sys.exit(2)

    sys.excepthook = hook
