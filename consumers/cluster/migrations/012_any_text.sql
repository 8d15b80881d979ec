-- What people write may hold \u0000, which JSONB refuses. JSON keeps the text as it is.
ALTER TABLE retuned.erasure_requests ALTER COLUMN request TYPE JSON USING request::JSON;
ALTER TABLE retuned.audit_entries ALTER COLUMN entry TYPE JSON USING entry::JSON;
