"""A configuration -> a run folder -> a grid of runs -> the tables of the paper."""
