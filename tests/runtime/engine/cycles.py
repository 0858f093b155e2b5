"""Open, ask and close a bundle again and again, in a process of its own, and print what memory that took.

    python cycles.py BUNDLE CYCLES [leak]

With `leak` no engine is closed and no session shared: what a leak looks like.
"""

import re
import sys
from pathlib import Path

from ptexport.runtime import Engine
from ptexport.runtime.ort import shared_session

WARM_UP = 30


def anonymous_bytes() -> int:
    """Of this process, in memory: what it allocated, without files."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    found = re.search(r"RssAnon:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024


bundle, cycles, leak = sys.argv[1], int(sys.argv[2]), "leak" in sys.argv
kept = []
for number in range(WARM_UP + cycles):
    if number == WARM_UP:
        before = anonymous_bytes()
    engine = Engine.open(bundle, threads=2)
    engine.predict([f"story {number} was slow", "the film"])
    if leak:
        kept.append(engine)
        shared_session._of_key.clear()
    else:
        engine.close()
print(anonymous_bytes() - before)
