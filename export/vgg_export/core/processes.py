"""Several processes that compute together: what ``torchrun`` starts, on one or several machines.

The first process does everything; the others wait until it has work that can be divided (``together``), take
their share of the pictures, and wait again. So what is decided, timed, exported and written is so once, by
the first process, and all others go its way. Sums over the shares are reduced over all processes with gloo.
Outside such work, and without torchrun, a process is alone. While the others of its machine wait, the first
one computes with their threads, too.
"""

import contextlib
import datetime
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from . import devices, threads
from .errors import DataError, ProcessLostError, VggExportError
from .progress import Progress, Quiet

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

# The others wait as long as the first process exports, quantizes and times.
PATIENCE = datetime.timedelta(days=7)


class _EndedAlikeError(Exception):
    """The first process has raised an error that ends the work of all; it says so, the others do not."""


class _State:
    """``dividing``: all processes are within ``together``. ``alike``: the error that ended it ends it for
    all. ``broken``: the processes are no longer at the same place. ``threads``: those that the first
    process was given."""

    dividing = alike = broken = False
    threads = threads.Threads(1, 1)


def led(command: Callable[[], int]) -> int:  # noqa: RET503  it ends with _leave
    """Run a command and return its exit code. Under torchrun the first process runs it, and the others help
    it until it has ended.

    Raises:
        ProcessLostError: another process ended while this one needed it.
    """
    if _size() == 1:
        return command()
    import torch.distributed as distributed

    distributed.init_process_group("gloo", timeout=PATIENCE)
    if _number() > 0:
        _help()
        _leave(0)
    _State.threads = threads.own()
    try:
        with _others_wait():
            code = command()
    finally:
        if not _State.broken:
            _send(None)
    _leave(code)  # never returns


def _leave(code: int) -> NoReturn:
    """End a process of a group that has nothing left to do. To take down the group and torch's threads at the
    end of the interpreter aborts one time in twelve (seen with torch 2.14: "terminate called without an
    active exception"), and the work would count as failed."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _help() -> None:
    """Take part in the work of the first process until it says that there is no more."""
    logging.disable(logging.WARNING)  # the first process says the same
    warnings.simplefilter("ignore")
    while (work := _received()) is not None:
        function, given, device = work
        devices.use(device)
        with contextlib.suppress(_EndedAlikeError), _dividing():
            function(*given, Quiet())
            _barrier()


def together(progress: Progress, function: Callable[..., T], *given: Any) -> T:
    """``function(*given, progress)``, computed by all processes. Each calls it with the same arguments, which
    are sent to them; only the first shows progress. The function takes its ``share`` of the pictures and
    returns the same in all of them.

    Args:
        function: a function of a module, so that the others find it by its name.
    """
    if _size() == 1 or _State.dividing:
        return function(*given, progress)
    _send((function, given, devices.asked()))
    _State.alike = False
    try:
        with _dividing(), threads.using(_State.threads):
            made = function(*given, progress)
            _barrier()
    except BaseException:
        _State.broken = not _State.alike
        raise
    return made


@contextlib.contextmanager
def _dividing() -> Iterator[None]:
    _State.dividing = True
    try:
        yield
    finally:
        _State.dividing = False


def _others_wait() -> contextlib.AbstractContextManager[None]:
    """Compute with the threads of this machine's other processes, too."""
    return threads.using(threads.of_machine(_State.threads))


def rank() -> int:
    """The number of this process; 0 for the first one, and outside ``together``."""
    return _number() if _State.dividing else 0


def world() -> int:
    """How many processes there are; 1 outside ``together``."""
    return _size() if _State.dividing else 1


def _number() -> int:
    return int(os.environ.get("RANK", "0"))


def local_world() -> int:
    """How many processes of this machine compute together; 1 outside ``together``."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if _State.dividing else 1


def _size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def share(count: int) -> range:
    """The places among ``count`` pictures that are this process's: all where it is alone."""
    return range(rank() * count // world(), (rank() + 1) * count // world())


def slice_of(count: int) -> slice:
    """``share`` as a slice of a tensor's rows."""
    own = share(count)
    return slice(own.start, own.stop)


def shares(*counts: int) -> list[int]:
    """The places of this process's pictures among several sets of ``counts`` pictures, one behind the
    other."""
    return [sum(counts[:k]) + place for k, count in enumerate(counts) for place in share(count)]


def ensure_enough(count: int, pictures: str) -> None:
    """Make sure that every process has a picture.

    Raises:
        DataError: there are fewer than processes.
    """
    if count < world():
        raise DataError(
            f"{count} {pictures} pictures for {world()} processes; expected at least one for each: use fewer"
            " processes or more pictures"
        )


def total(value: float) -> float:
    """The sum over all processes."""
    return _reduced(value, "SUM")


def least(value: int) -> int:
    """The smallest of all processes."""
    return int(_reduced(value, "MIN"))


def _reduced(value: float, how: str) -> float:
    import torch

    if world() == 1:
        return value
    tensor = torch.tensor(float(value), dtype=torch.float64)
    with _in_touch():
        torch.distributed.all_reduce(tensor, getattr(torch.distributed.ReduceOp, how))
    return float(tensor)


def add_up(tensor: "torch.Tensor") -> None:
    """Replace a tensor by its sum over all processes."""
    if world() == 1:
        return
    import torch

    summed = tensor.cpu()  # gloo adds up on the CPU; one that is there is summed in place
    with _in_touch():
        torch.distributed.all_reduce(summed)
    if summed is not tensor:
        tensor.copy_(summed)


def add_up_all(tensors: "Sequence[torch.Tensor]") -> None:
    """``add_up`` each of several tensors of one dtype, in one exchange: an exchange of small tensors costs
    milliseconds for each of them, whatever their size (measured with gloo)."""
    if world() == 1 or not tensors:
        return
    import torch

    flat = torch.cat([tensor.flatten() for tensor in tensors]).cpu()
    add_up(flat)
    done = 0
    for tensor in tensors:
        tensor.copy_(flat[done : done + tensor.numel()].view_as(tensor))
        done += tensor.numel()


def gathered(rows: "torch.Tensor", places: Sequence[int], count: int) -> "torch.Tensor":
    """The rows [count, ...] of all processes, of which this one has ``rows`` at ``places``."""
    if world() == 1:
        return rows
    found = rows.new_zeros(count, *rows.shape[1:])
    found[list(places)] = rows
    add_up(found)
    return found


def from_all(thing: T) -> list[T]:
    """What each process has, in their order."""
    if world() == 1:
        return [thing]
    import torch.distributed as distributed

    things: list[Any] = [None] * world()
    with _in_touch():
        distributed.all_gather_object(things, thing)
    return things


def from_first(make: Callable[[], T]) -> T:
    """What the first process makes, for all. What it decides is so the same everywhere, whatever the others'
    machines round otherwise. An error of it ends the work of all."""
    if world() == 1:
        return make()
    if rank():
        said = _received()
        if said is None:
            raise _EndedAlikeError
        made: T = said[0]
        return made
    try:
        with _others_wait():
            made = make()
    except VggExportError:
        _send(None)
        _State.alike = True
        raise
    _send((made,))
    return made


def _send(thing: object) -> None:
    import torch.distributed as distributed

    with _in_touch():
        distributed.broadcast_object_list([thing], src=0)


def _received() -> Any:
    import torch.distributed as distributed

    things: list[Any] = [None]
    with _in_touch():
        distributed.broadcast_object_list(things, src=0)
    return things[0]


def _barrier() -> None:
    import torch.distributed as distributed

    with _in_touch():
        distributed.barrier()


@contextlib.contextmanager
def _in_touch() -> Iterator[None]:
    """Say in a sentence that the processes have lost each other, which gloo says with an address."""
    try:
        yield
    except RuntimeError as error:
        _State.broken = True
        raise ProcessLostError(
            "another process has ended, so that this one cannot go on; what that one printed says why"
        ) from error
