-- name: mark
-- The mark for the next `changed`: every transaction below it is finished and was visible to this snapshot.
select pg_snapshot_xmin(pg_current_snapshot())::text::bigint

-- name: changed
-- Alerts of transactions from a mark on, retired ones too (0: those that are not retired).
select * from network.alert where changed_xid >= $1::text::xid8 and ($1 <> '0' or retired_at is null)

-- name: alerts
-- An operator's alerts, newest first, from below a cursor ('*': every operator's).
select * from network.alert
where ($1 = '*' or partner_id = $1) and alert_id < $2::uuid and (retired_at is null or $4)
order by alert_id desc limit $3

-- name: alert
-- One alert, locked to the end of the transaction.
select * from network.alert where partner_id = $1 and alert_id = $2::uuid for update

-- name: standing
-- How many alerts of an operator are not retired.
select count(*) from network.alert where partner_id = $1 and retired_at is null

-- name: add
-- A new alert.
insert into network.alert (alert_id, partner_id, feed_id, cause, effect, level, header, description, url, periods, selectors)
values ($1::uuid, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) returning *

-- name: change
-- The next version of an alert.
update network.alert set cause = $3, effect = $4, level = $5, header = $6, description = $7, url = $8, periods = $9, selectors = $10,
  retired_at = $11, version = version + 1, changed_at = clock_timestamp()
where partner_id = $1 and alert_id = $2::uuid returning *
