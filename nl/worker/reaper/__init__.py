"""The program that starts actions and sees to it that nothing of them stays behind. Standard library only.

Not imported by the server: `processes.py` runs `main` once per worker, isolated from site and environment. That
process, the *reaper*, forks a small process, a *warden*, for every action that runs at a time; wardens are reused. A
warden is a child subreaper (prctl(2)): whatever an action leaves behind, also after setsid and a double fork, becomes
the warden's child, is killed and waited for before the action counts as ended. So its state at the end of an action
is always "no children", by construction and not by bookkeeping.

A confined action (`confined.py`) has one process more, its *keeper*: the first of its pid namespace (`sandbox.py`), or
one with the uid that the action was lent. What the keeper starts ends with it.

Rules for these files:

* The socket to the worker is the life line. At its end (the worker closed it, crashed, was killed) a warden kills
  what it runs and exits; so does the reaper when its own ends.
* Messages are JSON with a 4-byte length in front. A request gets one reply. `kill` gets none, and one that comes too
  late is dropped.
* The reaper is a subreaper too: if an action kills its own warden, what it leaves falls to the reaper, which kills it.
  If it stops its warden, the reaper kills the action and lets the warden go on.
* Signals meant for the server (a terminal's Ctrl-C, a service manager's SIGTERM to the whole group) are ignored
  here: the worker decides when actions end.
"""

