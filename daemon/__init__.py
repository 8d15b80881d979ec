"""What runs when, and who may ask for it?"""
