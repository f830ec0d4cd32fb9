"""Modules of im2sp-evaluate: stages, metrics, intervals, tables."""
