"""Do the requests and answers still look like those of the reference?"""
