"""The policy: when to retrain."""
