-- name: champion
-- When the model in service was promoted, and the time of the latest evidence that it learned from.
SELECT a.version, a.created_at AS promoted_at,
       coalesce(try_cast(d.card ->> 'evidence_until' AS TIMESTAMP), d.created_at) AS learned_until
FROM aliases a
LEFT JOIN models m ON m.workload = a.workload AND m.version = a.version
LEFT JOIN datasets d ON d.workload = a.workload AND d.version = m.dataset_version
WHERE a.workload = $workload AND a.alias = 'champion'

-- name: last_run
-- The latest run, with any result.
SELECT started_at, finished_at FROM runs WHERE workload = $workload ORDER BY started_at DESC LIMIT 1

-- name: last_learned
-- The latest run whose evidence is spent. Nothing was decided on that of a run that failed, or whose version an erasure
-- withdrew; one that was cancelled is not to be repeated, unless an erasure alone asked for it. Corrections from during a run
-- are not in its dataset, and count for the next one.
SELECT r.finished_at,
       coalesce(try_cast(d.card ->> 'evidence_until' AS TIMESTAMP), r.started_at) AS learned_until,
       r.version IN (
           SELECT previous_version FROM promotions WHERE workload = $workload AND event IN ('rolled_back', 'canary_rolled_back')
       ) AS taken_back
FROM runs r
LEFT JOIN datasets d ON d.workload = r.workload AND d.version = r.dataset_version
WHERE r.workload = $workload AND r.state <> 'failed'
  AND NOT (r.state = 'cancelled' AND r.cause = 'erasure')
  AND NOT EXISTS (
      FROM promotions p
      WHERE p.workload = $workload AND p.event = 'canary_rolled_back' AND p.actor = 'erasure' AND p.previous_version = r.version
  )
  AND NOT EXISTS (
      FROM approvals a JOIN erased_versions e ON e.workload = a.workload AND e.version = a.version
      WHERE a.run_id = r.id AND a.kind = 'version' AND a.state = 'superseded'
  )
ORDER BY r.started_at DESC LIMIT 1

-- name: failed
-- Runs that failed since the last one that was decided, or that was asked for by hand.
SELECT count(*) AS runs FROM runs
WHERE workload = $workload AND state = 'failed' AND kind = 'retrain' AND started_at > coalesce((
    SELECT max(started_at) FROM runs
    WHERE workload = $workload
      AND (state IN ('succeeded', 'refused') OR cause = 'person')
), TIMESTAMP '1970-01-01')

-- name: refused
-- Runs without a promotion, since the last promotion or run by hand. A version that waits for approval, or was superseded
-- before a decision, does not count, nor does a run that had too few examples: nothing was trained, or the gate left it undecided.
WITH began AS (
    SELECT max(began_at) AS began_at FROM (
        SELECT max(created_at) AS began_at FROM promotions WHERE workload = $workload AND event = 'promoted'
        UNION ALL
        SELECT max(started_at) FROM runs WHERE workload = $workload AND cause = 'person'
    )
)
SELECT count(*) AS runs FROM runs, began
WHERE workload = $workload AND state IN ('succeeded', 'refused') AND kind = 'retrain' AND dataset_version IS NOT NULL
  AND NOT coalesce((detail ->> 'promoted')::BOOLEAN, false)
  AND id NOT IN (SELECT run_id FROM approvals WHERE kind = 'version' AND state IN ('waiting', 'approved', 'superseded'))
  AND id NOT IN (SELECT run_id FROM decisions WHERE workload = $workload AND kind = 'gate' AND (figures ->> 'undecided') IS NOT NULL)
  AND (began_at IS NULL OR started_at > began_at)

-- name: drift
-- Drift that was accepted is no reason any more. Nor is drift from before the last change of version, or while two versions
-- answer, because answers then differ by version.
SELECT drifted FROM drift_checks
WHERE workload = $workload
  AND created_at > greatest(
      $since,
      (SELECT max(created_at) FROM promotions WHERE workload = $workload),
      (SELECT max(created_at) FROM drift_references WHERE workload = $workload)
  )
  AND NOT EXISTS (FROM rollouts WHERE workload = $workload AND state = 'canary' AND share > 0)
ORDER BY created_at DESC LIMIT $checks

-- name: corrections
-- Corrections of an earlier model's answers can be learned from, but are no evidence about the model in service. A
-- demonstration belongs to no model. Nothing is learned from banned accounts.
SELECT count(*) FILTER (received_at > $since_dataset) AS to_learn,
       count(*) FILTER (received_at > $since_run) AS untried,
       count(*) FILTER (received_at > $since_run AND (answered_at >= $promoted_at OR demonstration)) AS new
FROM judgements
WHERE workload = $workload AND name = 'correction' AND NOT is_banned($workload, source, user_id, asker_id)

-- name: past_runs
-- Duration and scores of the latest decided runs, and how many corrections each had that its parent had not. A run whose
-- version waits for approval is not decided.
WITH latest AS MATERIALIZED (
    SELECT r.*, coalesce(r.train_seconds, 0) + coalesce(r.evaluate_seconds, 0) AS seconds
    FROM runs r SEMI JOIN datasets d ON d.workload = r.workload AND d.version = r.dataset_version
    WHERE r.workload = $workload AND r.state = 'succeeded' AND seconds > 0
        AND r.id NOT IN (SELECT run_id FROM approvals WHERE kind = 'version' AND state = 'waiting')
    ORDER BY r.started_at DESC LIMIT 20
), learned AS (
    SELECT version, coalesce(try_cast(card ->> 'evidence_until' AS TIMESTAMP), created_at) AS until
    FROM datasets
    WHERE workload = $workload
), past AS (
    SELECT r.id, r.seconds,
           coalesce((r.detail ->> 'promoted')::BOOLEAN, false)
               OR r.id IN (SELECT run_id FROM approvals WHERE kind = 'version' AND state = 'approved') AS promoted,
           coalesce(r.detail -> 'scores' ->> 'champion', r.detail -> 'scores' ->> 'base')::DOUBLE AS before,
           (r.detail -> 'scores' ->> 'candidate')::DOUBLE AS after,
           coalesce(inherited.until, TIMESTAMP '1970-01-01') AS since, own.until
    FROM latest r
    JOIN learned own ON own.version = r.dataset_version
    LEFT JOIN models parent ON parent.workload = r.workload AND parent.version = r.parent_version
    LEFT JOIN learned inherited ON inherited.version = parent.dataset_version
), told AS (
    SELECT received_at FROM judgements WHERE workload = $workload AND name = 'correction'
)
SELECT past.seconds, past.promoted, past.before, past.after, count(told.received_at) AS corrections
FROM past LEFT JOIN told ON told.received_at > past.since AND told.received_at <= past.until
GROUP BY past.id, past.seconds, past.promoted, past.before, past.after

-- name: earned
-- What was booked as gained by being right, and what was answered meanwhile: a call that an answer replaces is replaced by
-- a wrong one, too. Imported history earned nothing here.
WITH answered AS (
    SELECT count(*) AS answers, min(received_at) AS first_at FROM traffic
    WHERE workload = $workload AND received_at > $since AND NOT starts_with(topic, 'import:')
)
SELECT (SELECT coalesce(sum(amount), 0.0) FROM ledger
        WHERE workload = $workload AND kind = 'gain' AND item <> 'third_party_replaced' AND created_at > $since
            AND abs(amount) < 1e150) AS gains,
       answers, first_at
FROM answered

-- name: schedule
-- The time after which times of schedule.retrain_cron count; no row before the first decision under this expression.
WITH own AS (
    SELECT created_at, figures ->> 'retrain_cron' AS expression, (figures ->> 'scheduled_time_settled')::BOOLEAN AS settled
    FROM decisions WHERE workload = $workload AND kind = 'retrain'
)
SELECT greatest(min(created_at), $last_run::TIMESTAMP, max(created_at) FILTER (settled)) AS since
FROM own
WHERE expression = $expression
  AND created_at >= coalesce((SELECT max(created_at) FROM own WHERE expression IS DISTINCT FROM $expression), created_at)
HAVING count(*) > 0

-- name: last_decision
SELECT outcome, reasons, figures ->> 'retrain_cron' AS retrain_cron FROM decisions
WHERE workload = $workload AND kind = 'retrain'
ORDER BY created_at DESC LIMIT 1

-- name: waits_for_erasure
SELECT id FROM runs WHERE id = $run_id AND state = 'waiting' AND cause = 'erasure'

-- name: forget
-- The last one stays: what repeats it is no news.
DELETE FROM decisions
WHERE workload IN (SELECT unnest($workloads::VARCHAR[]))
    AND created_at < $old AND kind = 'retrain' AND NOT outcome
    AND (workload, created_at) NOT IN (SELECT workload, max(created_at) FROM decisions WHERE kind = 'retrain' GROUP BY workload)
