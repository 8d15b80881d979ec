-- Questions have other keys: they tell the roles of turns apart, and one with redacted values has none. The memory reads all
-- feedback anew, and finds them.
DELETE FROM memory_positions;
