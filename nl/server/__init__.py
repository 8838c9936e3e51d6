"""The composition root: config to objects to the nursery tree. The only room that knows every other."""
