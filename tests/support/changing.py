"""Files that change: also for whoever looks at times, which a kernel counts in steps of some milliseconds."""

import os


def change(path, text):
    """Writes a file anew, and its time is another than before whatever the clock says."""
    later = path.stat().st_mtime_ns + 1_000_000_000
    path.write_text(text)
    os.utime(path, ns=(later, later))
