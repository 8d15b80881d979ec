-- Which tools the approved answer of a row calls: the gate looks at each of them.

ALTER TABLE evaluations ADD COLUMN tools JSON;              -- list of names; empty: it calls none
