"""Do the passages that an answer was given say what it says?"""
