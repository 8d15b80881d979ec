-- Whether an account is banned now: who gave a piece of feedback or, of a user's that names nobody, who asked. A decision for
-- the workload overrides one for all workloads.
CREATE MACRO is_banned(of_workload, of_source, of_user, of_asker) AS coalesce(
    CASE WHEN of_source = 'user' THEN coalesce(of_user, of_asker) ELSE of_user END IN (
        SELECT user_id FROM account_decisions
        WHERE (workload = of_workload OR workload IS NULL) AND superseded_at IS NULL AND action <> 'release'
        GROUP BY user_id
        HAVING arg_max(action, (workload IS NOT NULL, decided_at)) = 'ban'
    ),
    false
);
