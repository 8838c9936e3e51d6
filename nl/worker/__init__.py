"""Workers: run actions for a scheduler that they reach over the wire, also when it lives in the same process."""
