"""A process that adds cases until it is killed, and says which are stored.

python -m tests.case_writer FOLDER FIRST COUNT BATCH
"""

import sys
from pathlib import Path

from medsiam.cases.index import CaseIndex
from tests import case_maker as maker


def main(folder, first, count, batch):
    """Each number is told after its case was acknowledged."""
    index = CaseIndex.open(Path(folder))
    for start in range(first, first + count, batch):
        numbers = range(start, min(start + batch, first + count))
        index.add([maker.case(number) for number in numbers])
        print(*numbers, flush=True)
        if start % (4 * batch) == 0:
            index.settle()


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
