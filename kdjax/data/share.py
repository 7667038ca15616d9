"""Which rows of a global batch are a process's own."""

from kdjax.errors import UserError


def rows_of_process(batch_size: int, process_index: int, process_count: int) -> range:
    """The rows of a batch that process `process_index` of `process_count` reads.

    Raises:
        UserError: the batch cannot be shared evenly.
    """
    if not 0 <= process_index < process_count:
        raise ValueError(f"process {process_index} of {process_count}: count from 0")
    size, rest = divmod(batch_size, process_count)
    if rest:
        raise UserError(f"a batch of {batch_size} cannot be shared by {process_count} processes")
    return range(process_index * size, (process_index + 1) * size)
