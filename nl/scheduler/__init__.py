"""Which action runs where, and what became of it: a pure core (queue, matching, state) and the trio shell around it."""
