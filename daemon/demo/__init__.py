"""`retuned demo`."""
