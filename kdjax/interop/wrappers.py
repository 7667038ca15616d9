"""Names of a network's weights without what training frameworks put before them."""

from collections.abc import Iterable

# PyTorch's data-parallel wrapper.
PARALLEL = "module."
# What distillers call the student that stands beside its teacher, connectors and losses in one
# file: mmrazor before 1.0, mmrazor, and mmsegmentation-distiller.
STUDENTS = ("architecture.model.", "architecture.", "student.")


def unwrapped(names: Iterable[str]) -> dict[str, str]:
    """Returns each weight's own name by its name in the file; of a distiller, the student's alone.

    Args:
      names: all names in the file.
    """
    own = {name: name.removeprefix(PARALLEL) for name in names}
    for prefix in STUDENTS:
        found = {
            name: rest.removeprefix(prefix) for name, rest in own.items() if rest.startswith(prefix)
        }
        if found:
            return found
    return own
