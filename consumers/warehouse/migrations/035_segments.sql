-- How far a daemon of a cluster follows the segments: one row.

CREATE TABLE followed_segments (
    number BIGINT NOT NULL  -- of the last segment that is stored; 0: none, or it reads Kafka itself
);
INSERT INTO followed_segments VALUES (0);
