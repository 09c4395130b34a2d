-- name: load
-- What a provider remembers of a payment.
select body, version from simulator.charge where provider = $1 and key = $2

-- name: make
-- A new payment, if there is none with that key; null else. Its commit does not wait for the disk: what becomes of it here (money.settle) is
-- written after it to the same log and does wait, so that no crash keeps that and loses this; where both are lost nothing was charged.
insert into simulator.charge (provider, key, body, version)
select $1, $2, $3, 1 from (select set_config('synchronous_commit', 'off', true)) s on conflict do nothing returning version

-- name: change
-- Memory as it now is, if nobody changed it since version $4; null else.
update simulator.charge set body = $3, version = version + 1 where provider = $1 and key = $2 and version = $4 returning version

-- name: post
-- Webhooks to come, of a change that is stored in the same statement: as `make` and `change`, by version $4 (0: make).
with made as (
  insert into simulator.charge (provider, key, body, version) select $1, $2, $3, 1 where $4 = 0
  on conflict do nothing returning version),
changed as (
  update simulator.charge set body = $3, version = version + 1 where $4 > 0 and provider = $1 and key = $2 and version = $4 returning version),
stored as (select version from made union all select version from changed),
posts as (
  insert into simulator.delivery (provider, due_at_ms, body)
  select $1, due, $2 || ' ' || event from stored, unnest($5::bigint[], $6::text[]) with ordinality p(due, event, place) order by place)
select version from stored

-- name: due
-- Webhooks that are due at $2, each put off for a minute until it is said to be sent.
update simulator.delivery set tries = tries + 1, due_at_ms = $2 + 60000 where delivery_id = any(array(
  select delivery_id from simulator.delivery where provider = $1 and due_at_ms <= $2 and tries < 60 order by due_at_ms, delivery_id limit $3
  for update skip locked))
returning delivery_id, due_at_ms, body

-- name: sent
-- Webhooks that were accepted.
delete from simulator.delivery where delivery_id = any($1::bigint[])
