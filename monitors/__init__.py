"""How is the model doing?"""
