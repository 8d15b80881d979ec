-- The sentence of a drift check is a figure, which viewers read: it quotes no prompt. The features of the check have examples.
UPDATE drift_checks SET detail = regexp_replace(detail, ', for example “[^”]*”', '', 'g') WHERE contains(detail, ', for example “');
