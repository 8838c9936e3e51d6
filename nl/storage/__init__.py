"""The Store contract and what builds a chain of stores from config. Knows no store kind."""
