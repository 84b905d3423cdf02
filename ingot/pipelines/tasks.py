"""Rows on Ray Data: its scheduling, streaming and retries, with the settings that suit rows which take
a tenth of a second or many minutes each."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ingot.pipelines.cluster import chatter_aside

if TYPE_CHECKING:
    import ray.data

# Of a task whose worker or node died. Ray Data's own default is to repeat for ever: a unit that always
# kills its worker (too little memory, a crash in a library) would never end.
RETRIES = 8
MOST_ROWS = 64  # of a task: more would leave too little to nodes that join
LIMITS_SECONDS = 0.1  # for how long Ray Data believes what it last heard of the cluster's resources

Row = dict[str, Any]


def run_tasks(rows: Sequence[Row], task: Callable[[Row], Row], workers: int | None) -> Generator[Row]:
    """What `task` gives for every row, as each is done; at most `workers` at once.

    Between two tasks a worker waits for the driver, a tenth of a second and more. So a task has several rows,
    the later it begins the fewer (factoring: Hummel, Schonberg, Flynn, CACM 35:8, 1992), and hands over each
    as it is done."""
    import ray.data

    sizes = factored(len(rows), workers or max(1, int(ray.cluster_resources().get("CPU", 1))))
    with _context(), _deprecation_aside():
        done = _blocks(rows, sizes).map(
            task,
            num_cpus=1,
            compute=ray.data.TaskPoolStrategy(size=workers and min(workers, len(sizes))),
            max_retries=RETRIES,
            _generator_backpressure_num_objects=-1,  # a worker does not wait until the driver has taken a row
        )
    yield from _rows(done)


def run_actors(
    rows: Sequence[Row],
    actor: type,
    arguments: Sequence[Any],
    workers: int | None,
    cpus: float,
    gpus: float,
) -> Generator[Row]:
    """As `run_tasks`, by a pool of actors: `actor(*arguments)`, called with batches of one row."""
    import ray.data

    with _context(), _deprecation_aside():
        done = _blocks(rows, [1] * len(rows)).map_batches(
            actor,
            fn_constructor_args=arguments,
            batch_size=1,
            num_cpus=cpus,
            num_gpus=gpus,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=min(len(rows), workers or len(rows))),
            max_restarts=RETRIES,
            max_task_retries=RETRIES,
        )
    with chatter_aside():
        yield from _rows(done)


def factored(rows: int, slots: int) -> list[int]:
    """The rows of each task: again and again `slots` of them share half of what is left."""
    sizes: list[int] = []
    left = rows
    while left:
        size = max(1, min(MOST_ROWS, left // (2 * slots)))
        sizes += [size] * min(slots, left // size)
        left = rows - sum(sizes)
    return sizes


def _blocks(rows: Sequence[Row], sizes: Sequence[int]) -> ray.data.Dataset:
    import pyarrow
    import ray.data

    table = pyarrow.Table.from_pylist(list(rows))
    blocks, begin = [], 0
    for size in sizes:
        blocks.append(table.slice(begin, size))
        begin += size
    return ray.data.from_blocks(blocks)  # `from_arrow` asks a task what is in each


def _rows(dataset: ray.data.Dataset) -> Iterator[Row]:
    # what prefetches has the next row before it gives one
    for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        yield from batch.to_pylist()


@contextmanager
def _context() -> Iterator[None]:
    """The settings of what is made in the block."""
    import ray.data
    from ray.data._internal.execution.resource_manager import ResourceManager

    # it starts from nothing, which means one task at a time, and would look again after a second
    ResourceManager.GLOBAL_LIMITS_UPDATE_INTERVAL_S = LIMITS_SECONDS
    context = ray.data.DataContext.get_current().copy()
    context.target_max_block_size = 1  # what is handed over as it is done is a row
    with ray.data.DataContext.current(context):
        yield


@contextmanager
def _deprecation_aside() -> Iterator[None]:
    """Ray 2.60 has no other way to say how often, and announces another for 2.64."""
    from ray.util.annotations import RayDeprecationWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RayDeprecationWarning)
        yield
