"""Which prompts are the same question."""

from retuned.retrain.data.identity import normalise, text_hash


def test_prompts_that_differ_in_the_number_of_a_placeholder_are_duplicates() -> None:
    one, other = "I am <EMAIL_1>, where is order 7?", "I am <EMAIL_12>, where is ORDER 7?"
    assert normalise(one) == normalise(other) == "i am <email> where is order 7"
    assert text_hash(normalise(one)) == text_hash(normalise("I am <EMAIL>, where is order 7?"))
    assert normalise("I am <NATIONAL_ID_3>") == "i am <national_id>"
    assert normalise("order <ITEM_1>") != normalise("order <ITEM_2>")
