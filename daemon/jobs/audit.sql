-- name: last_state
-- How the configuration or the principals were when that was recorded last.
SELECT details FROM audit WHERE action = $action AND actor_kind = 'local' ORDER BY sequence DESC LIMIT 1
