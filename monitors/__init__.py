"""Monitors how the model performs in production: drift, quality, watch, money."""
