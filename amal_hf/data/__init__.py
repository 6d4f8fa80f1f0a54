"""Rows of a data set on their way into training."""
