"""The memory of corrections: approved answers, given to the model as context until its weights have learned them."""
