"""Is there a better model?"""
