-- What experts do with label requests in the console. An answer itself is feedback, and arrives by its topic.
CREATE TABLE label_work (
    request_id VARCHAR   NOT NULL,  -- label_requests.id
    expert     VARCHAR   NOT NULL,  -- name of the principal
    state      VARCHAR   NOT NULL,  -- claimed, skipped or answered
    since      TIMESTAMP NOT NULL,
    name       VARCHAR,             -- of the feedback, once it is answered
    value      JSON,
    PRIMARY KEY (request_id, expert)
);
