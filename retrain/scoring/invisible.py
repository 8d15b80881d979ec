"""Invisible characters that carry no meaning.

This module needs no library, because the gateway identifies questions.
"""

import re

INVISIBLE = re.compile("[\u00ad\u061c\u200b\u200e\u200f\u202a-\u202c\u2060\u2066-\u2069\ufe0e\ufe0f\ufeff]")
"""Soft hyphens, marks of direction and of the form of an emoji. Joiners are kept, because they
make one emoji of several, and so are overrides of the direction, which change the order in which a text is read."""
