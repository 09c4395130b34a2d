-- name: marks
-- Number of every area whose rules were ever set.
select feed_id, number from fleet.rule_mark

-- name: rules
-- Thresholds and window of one area.
select watch::text, on_time_early_s, on_time_late_s from fleet.rules where feed_id = $1

-- name: orders
-- Words in force on who drives what, of trips that are not long over.
select trip_id, start_date, bus_id, driver_id, said_as, said_by, said_at from fleet.trip_order
where feed_id = $1 and withdrawn_at is null and ends_at > clock_timestamp() order by said_at, order_id

-- name: put_rules
-- Sets thresholds and window of one area; null where the row is no longer of the version that the caller read ($6; null: whatever it is).
insert into fleet.rules as r (feed_id, watch, on_time_early_s, on_time_late_s, changed_by) values ($1, $2::text::jsonb, $3, $4, $5)
on conflict (feed_id) do update set watch = excluded.watch, on_time_early_s = excluded.on_time_early_s,
  on_time_late_s = excluded.on_time_late_s, changed_by = excluded.changed_by, changed_at = clock_timestamp(), version = r.version + 1
  where $6::int is null or r.version = $6
returning version

-- name: read_rules
-- As an editor reads them.
select watch::text, on_time_early_s, on_time_late_s, version from fleet.rules where feed_id = $1
