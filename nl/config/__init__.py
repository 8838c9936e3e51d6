"""JSON5 to typed options: values, units, error paths, the entry-point registry. Knows no component."""
