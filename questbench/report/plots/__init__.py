"""Figures: one file per plot, the file's name is the plot's name; see ``_base`` for what a file must define."""
