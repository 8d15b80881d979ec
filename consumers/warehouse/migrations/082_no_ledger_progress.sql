DROP TABLE IF EXISTS ledger_progress;
