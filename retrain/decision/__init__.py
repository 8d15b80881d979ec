"""Is the candidate better than what serves?"""
