-- Entries of the audit by daemons that stand by, until the leader appends them to the chain.
CREATE TABLE retuned.audit_entries (
    id         TEXT        PRIMARY KEY,
    entry      JSONB       NOT NULL,
    created_at TIMESTAMPTZ NOT NULL DEFAULT now()
);
