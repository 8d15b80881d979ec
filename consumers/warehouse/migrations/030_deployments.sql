-- What the targets of a workload (model servers, webhooks, registries) should have, written in the transaction that changes
-- the aliases; and what a webhook acknowledged, which cannot be asked for what it has.

CREATE TABLE deployments (
    workload  VARCHAR   NOT NULL,
    version   VARCHAR,                                      -- null: the base model
    share     DOUBLE    NOT NULL,                           -- of new conversations, 0 to 1; 0: loaded until it is drained
    since     TIMESTAMP NOT NULL,                           -- when it got this share
    served_at TIMESTAMP                                     -- when enough replicas of its targets first answered with it; null: not yet
);

INSERT INTO deployments SELECT workload, version, 1.0, created_at, NULL FROM aliases WHERE alias = 'champion';
INSERT INTO deployments
SELECT workload, version, 0.0, created_at, NULL FROM aliases AS former
WHERE alias = 'previous' AND version IS NOT NULL AND version NOT IN (
    SELECT version FROM deployments WHERE workload = former.workload AND version IS NOT NULL
);

CREATE TABLE webhook_models (
    url             VARCHAR   NOT NULL,
    model           VARCHAR   NOT NULL,                     -- name on a server, workload@version
    aliases         VARCHAR   NOT NULL,                     -- comma-separated
    acknowledged_at TIMESTAMP NOT NULL
);
