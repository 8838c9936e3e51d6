"""The built-in store kinds, a file or a package each. They know `nl.plugin`, like any third party's."""
