"""The door: from tokens, JSON web tokens and certificates to identities. What those may do: `nl.model.access`."""
