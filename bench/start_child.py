"""``python start_child.py APP PICTURE [THREADS]``: classifies one picture with what ``vgg-export ship``
wrote, started by ``start.py``. Prints the seconds of each step, and sets marks for the counting plugin
between them."""

import contextlib
import itertools
import os
import sys
import time

MARK = 0x7667  # as in emulated_count.c: a getpriority that the system refuses

times: list[float] = []


def done() -> None:
    """One step is done."""
    with contextlib.suppress(OSError):
        os.getpriority(MARK, len(times))
    times.append(time.perf_counter())


app, picture, *threads = sys.argv[1:]
done()
sys.path.insert(0, f"{app}/runtime")
from vgg_runtime import Classifier  # noqa: E402  its import is a step

done()
classifier = Classifier(app, threads=int(threads[0]) if threads else None)
done()
(best, *_) = classifier.classify(picture)
done()
classifier.classify(picture)
done()
print(best.label, *(round(b - a, 6) for a, b in itertools.pairwise(times)))
