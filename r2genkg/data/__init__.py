"""Data sets and image files -> `Study` records with labels and splits, and pixels."""
