"""Datasets: what a training learns from and is evaluated on."""
