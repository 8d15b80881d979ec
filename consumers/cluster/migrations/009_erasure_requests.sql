-- Requests of kafka.erasure_topic, from the segment of their message until the leader has taken them over.
CREATE TABLE retuned.erasure_requests (
    id         TEXT        PRIMARY KEY,  -- of the erasure: topic, partition and offset, and the topic's own id
    request    JSONB       NOT NULL,     -- its row in the table erasures; users are pseudonyms
    created_at TIMESTAMPTZ NOT NULL DEFAULT now()
);
